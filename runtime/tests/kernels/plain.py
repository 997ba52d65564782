"""The kernels written plainly in numpy: what each of them means."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a*b + c in float32 with one rounding: the product is exact in float64, the sum is rounded to odd first."""
    p = a.astype(np.float64) * b.astype(np.float64)
    c64 = c.astype(np.float64)
    s = p + c64
    t = s - p
    error = (p - (s - t)) + (c64 - t)
    bits = s.view(np.int64)
    inexact = (error != 0) & (bits & 1 == 0)
    bits = np.where(inexact, np.where((error > 0) == (s > 0), bits + 1, bits - 1), bits)
    return bits.view(np.float64).astype(np.float32)


def pack(x: Array) -> Array:
    """Return the sign bits of x [..., C] as uint32 [..., ceil(C/32)]; bit c % 32 of word c // 32 is x[c] >= 0."""
    return pack_bool(x >= 0)


def pack_bool(bits: Array) -> Array:
    """Return booleans [..., C] as words [..., ceil(C/32)]."""
    *lead, channels = bits.shape
    full = np.zeros((*lead, -(-channels // 32) * 32), np.uint8)
    full[..., :channels] = bits
    return np.packbits(full, axis=-1, bitorder="little").view(np.uint32)


def unpack(words: Array, channels: int) -> Array:
    """Return words as float32 [..., channels] of -1 and +1."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")[..., :channels]
    return bits.astype(np.float32) * 2 - 1


def windows(x: Array, kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any, value: float) -> Array:
    """Return the windows of x [N, *S, C] as [N, *S_out, positions, C]."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)
    sizes = [(x.shape[1 + i] - dilation[i] * (k - 1) - 1) // stride[i] + 1 for i, k in enumerate(kernel)]
    taken = []
    for position in product(*map(range, kernel)):
        index = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(position, dilation, sizes, stride, strict=True)
        )
        taken.append(x[(slice(None), *index)])
    return np.stack(taken, axis=-2)


def binary_conv(x: Array, weight: Array, stride: Any, padding: Any, dilation: Any, groups: int, value: int) -> Array:
    """Return the int32 sums of signs x [N, *S, C] with weight [O, C/groups, *K]."""
    cols = windows(x.astype(np.float32), weight.shape[2:], stride, padding, dilation, value)
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    flat = np.moveaxis(weight.reshape(*weight.shape[:2], -1), 1, 2).astype(np.float32)
    parts = [
        np.einsum("...pc,opc->...o", cols[..., g * inputs : (g + 1) * inputs], flat[g * outputs : (g + 1) * outputs])
        for g in range(groups)
    ]
    return np.concatenate(parts, -1).astype(np.int32)


def real_conv(x: Array, weight: Array, stride: Any, padding: Any, dilation: Any, groups: int) -> Array:
    """Return the float32 convolution of x [N, *S, C], one fused multiply-add per kernel position, then channel."""
    cols = windows(x, weight.shape[2:], stride, padding, dilation, 0)
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    flat = weight.reshape(*weight.shape[:2], -1)
    parts = []
    for g in range(groups):
        acc = np.zeros((*cols.shape[:-2], outputs), np.float32)
        for position in range(cols.shape[-2]):
            for c in range(inputs):
                acc = fma(
                    cols[..., position, g * inputs + c, None], flat[g * outputs : (g + 1) * outputs, c, position], acc
                )
        parts.append(acc)
    return np.concatenate(parts, -1)


def finish(
    sums: Array,
    *,
    bias: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    at: Array | None = None,
    flip: Array | None = None,
    relu: bool = False,
) -> Array:
    """Apply what follows the sums, every step rounded on its own."""
    if at is not None:
        return pack_bool((sums >= at) != (np.zeros(at.shape, bool) if flip is None else flip))
    if sums.dtype == np.int32 and scale is None and shift is None and residual is None and not relu:
        return sums
    y = sums.astype(np.float32)
    if bias is not None:
        y = y + bias
    if scale is not None:
        y = y * scale
    if shift is not None:
        y = y + shift
    if residual is not None:
        y = y + residual
    return np.where(y > 0, y, np.float32(0)) if relu else y


def max_pool(x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Array:
    """Return the maximum over windows of x [N, *S, C]; of words: the union of their bits."""
    if x.dtype == np.uint32:
        return np.bitwise_or.reduce(windows(x, kernel, stride, padding, dilation, 0), axis=-2)
    low = -np.inf if x.dtype == np.float32 else np.iinfo(x.dtype).min
    return windows(x, kernel, stride, padding, dilation, low).max(-2)


def window_sum(cols: Array) -> Array:
    """Return the float32 sum over axis -2, in order."""
    acc = np.zeros((*cols.shape[:-2], cols.shape[-1]), np.float32)
    for i in range(cols.shape[-2]):
        acc = acc + cols[..., i, :]
    return acc
