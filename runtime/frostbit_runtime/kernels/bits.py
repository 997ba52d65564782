"""Signs as bits: bit c % 32 of word c // 32 is 1 where channel c is +1; unused bits are 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from frostbit_runtime.kernels.simd import F32, NIBBLES, PAIRS, PANEL, PLAIN, TARGET, Vectors, emitted, kernel
from frostbit_runtime.kernels.threads import split

Array = NDArray[Any]
COST = 0.2  # nanoseconds a float or a word, about


def words(channels: int) -> int:
    """Return the number of words that hold ``channels`` signs."""
    return -(-channels // 32)


def _signs_of_32(v: Vectors, address: ir.Value) -> ir.Value:
    """Return the word of signs of 32 floats: x >= 0 and never the sign bit, so -0.0 is +1."""
    floats = [v.load(v.offset(address, 4 * i), F32) for i in range(0, PANEL, TARGET.lanes)]
    return v.bits([v.builder.fcmp_ordered(">=", part, v.constant(F32, 0.0)) for part in floats])


@emitted
def _pack_word(typing_context: Any, address: Any) -> Any:
    """Return the word of signs of the 32 floats at ``address``."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        return _signs_of_32(Vectors(builder), values[0])

    return types.uint32(types.int64), generate


@emitted
def _pack_pairs(typing_context: Any, source: Any, target: Any, count: Any, folded: Any) -> Any:
    """Write ``count`` pairs of words for 64 floats each; ``folded`` is all ones (PAIRS) or 0 (PLAIN)."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        v, (source, target, count, folded) = Vectors(builder), values
        with cgutils.for_range(builder, count) as loop:
            floats, place = v.offset(source, loop.index, 8 * PANEL), v.offset(target, loop.index, 8)
            first, second = (_signs_of_32(v, v.offset(floats, 4 * PANEL * n)) for n in (0, 1))
            v.store(first, place)
            v.store(builder.xor(second, builder.and_(first, folded)), v.offset(place, 4))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.uint32), generate


@kernel
def _form_words(words: Any, width: int, form: int, out: Any) -> None:
    """Bring units of ``width`` words into a form."""
    if form == NIBBLES:
        for i in range(words.size):
            out[2 * i] = words[i] & np.uint32(0x0F0F0F0F)
            out[2 * i + 1] = (words[i] >> np.uint32(4)) & np.uint32(0x0F0F0F0F)
    elif form == PAIRS and width % 2 == 0:
        for i in range(words.size // 2):
            out[2 * i] = words[2 * i]
            out[2 * i + 1] = words[2 * i + 1] ^ words[2 * i]
    else:
        for i in range(words.size):
            out[i] = words[i] ^ words[i - 1] if form == PAIRS and i % width % 2 == 1 else words[i]


@kernel
def _pack_lines(x: Any, channels: int, units: int, lines: Any, out: Any, form: int, first: int, last: int) -> None:
    """Pack lines [first, last) of ``units`` units of ``channels`` floats; line i goes to out[lines[i]:]."""
    whole, rest = channels // 32, channels % 32
    width = (channels + 31) // 32
    mask = np.uint32((1 << rest) - 1)
    origin, target = np.int64(x.ctypes.data), np.int64(out.ctypes.data)
    packed = np.empty(units * width, np.uint32)
    for line in range(first, last):
        begin, end = line * units * channels, (line + 1) * units * channels
        if channels % 64 == 0 and form != NIBBLES:
            folded = np.uint32(0xFFFFFFFF if form == PAIRS else 0)
            _pack_pairs(origin + 4 * begin, target + 4 * lines[line], (end - begin) // 64, folded)
            continue
        place = 0
        for start in range(begin, end, channels):
            for i in range(whole):
                packed[place + i] = _pack_word(origin + 4 * (start + 32 * i))
            place += width
            if rest > 0:
                tail = start + 32 * whole
                word = np.uint32(0)
                if tail + 32 <= x.size:  # reads into the next unit, and drops what it read
                    word = _pack_word(origin + 4 * tail) & mask
                else:
                    for c in range(rest):
                        word |= np.uint32(x[tail + c] >= 0) << np.uint32(c)
                packed[place - 1] = word
        _form_words(packed, width, form, out[lines[line] :])


@kernel
def _copy_lines(x: Any, width: int, units: int, lines: Any, out: Any, form: int, first: int, last: int) -> None:
    """Copy lines [first, last) of ``units`` units of ``width`` words; line i goes to out[lines[i]:]."""
    size = units * width
    for line in range(first, last):
        _form_words(x[line * size : (line + 1) * size], width, form, out[lines[line] :])


@kernel
def _unpack(x: Any, channels: int, out: Any) -> None:
    for pixel in range(out.shape[0]):
        for c in range(channels):
            out[pixel, c] = np.float32(2 * np.int32((x[pixel, c >> 5] >> np.uint32(c & 31)) & np.uint32(1)) - 1)


def formed(x: Array, form: int) -> Array:
    """Return words [..., W] in a form: [..., W] or [..., 2 W] (see `products`)."""
    out = np.empty((*x.shape[:-1], x.shape[-1] * (2 if form == NIBBLES else 1)), np.uint32)
    _form_words(np.ascontiguousarray(x).reshape(-1), x.shape[-1], form, out.reshape(-1))
    return out


def write_lines(out: Array, x: Array, units: int, lines: Array, form: int, threads: int) -> None:
    """Write signs line by line.

    Args:
        out: uint32, flat; line i is written from element ``lines[i]`` (int64) on.
        x: [units in all, floats per unit], packed on the way, or [units in all, words per unit].
        units: units per line.
        lines: one entry per line.
        form: of the words; a unit is formed by itself.
        threads: number of threads.
    """
    write = _pack_lines if x.dtype == np.float32 else _copy_lines
    flat, size = x.reshape(-1), x.shape[-1]
    cost = COST * units * size
    split(lambda first, last: write(flat, size, units, lines, out, form, first, last), len(lines), threads, cost)


def pack(x: Array) -> Array:
    """Return the signs of x float32 [..., C] as words uint32 [..., ceil(C/32)]; +1 where x >= 0."""
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty((*x.shape[:-1], words(x.shape[-1])), np.uint32)
    if x.size:
        rows = x.reshape(-1, x.shape[-1])
        write_lines(out.reshape(-1), rows, len(rows), np.zeros(1, np.int64), PLAIN, 1)
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
