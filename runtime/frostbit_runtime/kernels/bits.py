"""Signs as bits: bit c % 32 of word c // 32 is 1 where channel c is +1; unused bits are 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from frostbit_runtime.kernels.simd import F32, PANEL, TARGET, Vectors, kernel
from frostbit_runtime.kernels.threads import split
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[Any]


def words(channels: int) -> int:
    """Return the number of words that hold ``channels`` signs."""
    return -(-channels // 32)


@intrinsic
def _signs_of_32(typing_context: Any, address: Any) -> Any:
    """Return the word of signs of 32 floats: x >= 0 and never the sign bit, so -0.0 is +1."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        v = Vectors(builder)
        floats = [v.load(v.offset(values[0], 4 * i), F32) for i in range(0, PANEL, TARGET.lanes)]
        return v.bits([builder.fcmp_ordered(">=", part, v.constant(F32, 0.0)) for part in floats])

    return types.uint32(types.int64), generate


@kernel
def _pack_lines(x: Any, channels: int, pixels: int, lines: Any, out: Any, first: int, last: int) -> None:
    """Pack lines [first, last) of ``pixels`` pixels each; line i goes to out[lines[i]:].

    Args:
        x: float32, flat [lines, pixels, channels]; out: uint32, flat.
        channels: per pixel.
        pixels: per line.
        lines: int64, where each line's words begin.
        first, last: which lines.
    """
    width = (channels + 31) // 32
    whole, rest = channels // 32, channels % 32
    mask = np.uint32((1 << rest) - 1)
    origin = np.int64(x.ctypes.data)
    for line in range(first, last):
        place = lines[line]
        for pixel in range(line * pixels, (line + 1) * pixels):
            start = pixel * channels
            for i in range(whole):
                out[place + i] = _signs_of_32(origin + 4 * (start + 32 * i))
            if rest > 0:
                start += 32 * whole
                if start + 32 <= x.size:  # reads into the next pixel, and drops what it read
                    out[place + whole] = _signs_of_32(origin + 4 * start) & mask
                else:
                    word = np.uint32(0)
                    for c in range(rest):
                        word |= np.uint32(x[start + c] >= 0) << np.uint32(c)
                    out[place + whole] = word
            place += width


@kernel
def _unpack(x: Any, channels: int, out: Any) -> None:
    for pixel in range(out.shape[0]):
        for c in range(channels):
            out[pixel, c] = np.float32(2 * np.int32((x[pixel, c >> 5] >> np.uint32(c & 31)) & np.uint32(1)) - 1)


def pack_into(out: Array, x: Array, lines: Array, threads: int = 1) -> None:
    """Pack x float32 [L, pixels, C] line by line: line i into flat ``out`` (uint32) from ``lines[i]`` (int64) on."""
    flat = x.reshape(-1)
    split(lambda first, last: _pack_lines(flat, x.shape[-1], x.shape[-2], lines, out, first, last), len(lines), threads)


def pack(x: Array) -> Array:
    """Return the signs of x float32 [..., C] as words uint32 [..., ceil(C/32)]; +1 where x >= 0."""
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty((*x.shape[:-1], words(x.shape[-1])), np.uint32)
    if x.size:
        pack_into(out.reshape(-1), x.reshape(1, -1, x.shape[-1]), np.zeros(1, np.int64))
    return out


def unpack(x: Array, channels: int) -> Array:
    """Return words uint32 [..., ceil(channels/32)] as float32 [..., channels] of -1 and +1."""
    out = np.empty((*x.shape[:-1], channels), np.float32)
    _unpack(np.ascontiguousarray(x).reshape(-1, x.shape[-1]), channels, out.reshape(-1, channels))
    return out


def pack_bool(bits: Array) -> Array:
    """Return booleans [..., C] as words uint32 [..., ceil(C/32)]."""
    full = np.zeros((*bits.shape[:-1], 32 * words(bits.shape[-1])), np.uint8)
    full[..., : bits.shape[-1]] = bits
    return np.packbits(full, axis=-1, bitorder="little").view("<u4").astype(np.uint32, copy=False)
