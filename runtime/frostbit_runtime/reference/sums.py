"""Convolutions, dense layers and products: exact integer sums, and float32 sums of a defined order.

A real sum is one float32 accumulator that starts at 0 and takes one fused multiply-add a term: over kernel positions
in row-major order, and within a position over channels. A bias is added last, rounded by itself. A transposed
convolution takes its positions backwards, which is row-major order seen from its input. So results depend neither on
batch, layout nor number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from frostbit_runtime.program import Array, Shape
from frostbit_runtime.reference.elementwise import Attrs, Inputs, Tensors, along, real

_TINY = float(np.finfo(np.float32).tiny)


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return ``a · b + c`` rounded once to float32.

    Args:
        a: float32.
        b: float32.
        c: float32 of the result's shape.

    Returns:
        float32. The product of two float32 is exact in float64; its sum with ``c`` may not be, and would then be
        rounded twice. That matters only where the float64 sum lies half-way between two float32, or below the
        normal ones: there the sum is first rounded to odd, which keeps on which side the exact sum lies.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    halfway = (total.view(np.int64) & 0x1FFF_FFFF) == 0x1000_0000
    doubtful = halfway | (np.abs(total) < _TINY)
    if doubtful.any():
        product = np.broadcast_to(product, total.shape)
        total[doubtful] = _to_odd(product[doubtful], np.broadcast_to(c, total.shape)[doubtful].astype(np.float64))
    with np.errstate(over="ignore"):
        return np.asarray(total.astype(np.float32))


def _to_odd(a: Array, b: Array) -> Array:
    """Return ``a + b`` in float64, rounded to the neighbour with an odd last bit where it is not exact."""
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)  # exact: total + error = a + b
    bits = total.view(np.int64)
    even = (error != 0) & (bits & 1 == 0)
    outward = (error > 0) == (total > 0)
    return np.asarray(np.where(even, bits + np.where(outward, 1, -1), bits).view(np.float64))


def taps(x: Array, kernel: Shape, out: Shape, stride: Sequence[int], dilation: Sequence[int]) -> Iterator[Array]:
    """Yield, for each kernel position in row-major order, the entries of ``x [N, C, *padded]`` that it meets.

    Args:
        x: padded.
        kernel: kernel sizes.
        out: output sizes.
        stride: per dimension.
        dilation: per dimension.

    Yields:
        Views ``[N, C, *out]``.
    """
    for span in _spans(kernel, out, stride, dilation):
        yield x[span]


def _spans(kernel: Shape, count: Shape, stride: Sequence[int], dilation: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return, for each kernel position, the index of the ``count`` entries that lie ``stride`` apart from it."""
    rows = list(zip(dilation, count, stride, strict=True))
    return [
        (..., *(slice(p * d, p * d + (n - 1) * s + 1, s) for p, (d, n, s) in zip(position, rows, strict=True)))
        for position in itertools.product(*map(range, kernel))
    ]


def _padded(x: Array, attrs: Attrs, value: int) -> Array:
    pairs = [tuple(pair) for pair in attrs["padding"]]
    return np.pad(x, [(0, 0), (0, 0), *pairs], constant_values=value) if any(map(any, pairs)) else x


def _out(padded: Shape, kernel: Shape, attrs: Attrs) -> Shape:
    sizes = zip(padded, kernel, attrs["stride"], attrs["dilation"], strict=True)
    return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)


def binary_conv(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Exact sums of products of ±1; positions padded with 0 contribute nothing."""
    groups, weight = attrs["groups"], tensors["weight"]
    x = _padded(inputs[0], attrs, attrs["pad_value"]).astype(np.float64)  # float64 holds every sum exactly
    kernel, n = weight.shape[2:], len(x)
    out = _out(x.shape[2:], kernel, attrs)
    by_position = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).astype(np.float64)
    total = np.zeros((n, groups, len(weight) // groups, int(np.prod(out))), np.int32)
    for position, tap in enumerate(taps(x, kernel, out, attrs["stride"], attrs["dilation"])):
        total += (by_position[..., position] @ tap.reshape(n, groups, weight.shape[1], -1)).astype(np.int32)
    return total.reshape(n, len(weight), *out)


def binary_dense(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Exact sums of products of ±1 over the last axis."""
    return np.asarray((inputs[0].astype(np.float64) @ tensors["weight"].T.astype(np.float64)).astype(np.int32))


def conv(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Convolution with zero padding in the defined order."""
    groups, weight = attrs["groups"], real(tensors["weight"])
    x = _padded(real(inputs[0]), attrs, 0)
    kernel, n = weight.shape[2:], len(x)
    out = _out(x.shape[2:], kernel, attrs)
    channels, filters = weight.shape[1], len(weight) // groups
    by_position = weight.reshape(groups, filters, channels, -1)
    total = np.zeros((n, groups, filters, int(np.prod(out))), np.float32)
    for position, tap in enumerate(taps(x, kernel, out, attrs["stride"], attrs["dilation"])):
        columns = tap.reshape(n, groups, 1, channels, -1)
        for channel in range(channels):
            total = fma(columns[:, :, :, channel], by_position[:, :, channel, position, None], total)
    return _with_bias(total.reshape(n, len(weight), *out), tensors, 1)


def dense(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Sums over the last axis, first feature first."""
    x, weight = real(inputs[0]), real(tensors["weight"])
    total = np.zeros((*x.shape[:-1], len(weight)), np.float32)
    for k in range(x.shape[-1]):
        total = fma(x[..., k, None], weight[:, k], total)
    return _with_bias(total, tensors, -1)


def _with_bias(total: Array, tensors: Tensors, axis: int) -> Array:
    return total + along(real(tensors["bias"]), axis, total.ndim) if "bias" in tensors else total


def _full(size: Shape, kernel: Shape, attrs: Attrs) -> Shape:
    """Return the sizes of a transposed convolution's output before its padding is cut."""
    rows = zip(size, kernel, attrs["stride"], attrs["dilation"], attrs["output_padding"], strict=True)
    return tuple((n - 1) * s + d * (k - 1) + 1 + extra for n, k, s, d, extra in rows)


def _cut(full: Array, attrs: Attrs) -> Array:
    sizes = full.shape[2:]
    index: tuple[Any, ...] = tuple(slice(p, n - p) for p, n in zip(attrs["padding"], sizes, strict=True))
    return full[(..., *index)]


def binary_conv_transpose(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Exact sums; every input entry adds its multiple of the kernel to the output."""
    (x,), groups, weight = inputs, attrs["groups"], tensors["weight"]
    n, filters, channels = len(x), weight.shape[1], len(weight) // groups
    full = _full(x.shape[2:], weight.shape[2:], attrs)
    spans = _spans(weight.shape[2:], x.shape[2:], attrs["stride"], attrs["dilation"])
    columns = x.reshape(n, groups, channels, -1).astype(np.float64)
    by_position = weight.reshape(groups, channels, filters, -1).transpose(3, 0, 2, 1).astype(np.float64)
    total = np.zeros((n, groups * filters, *full), np.int32)
    for span, matrix in zip(spans, by_position, strict=True):
        total[span] += (matrix @ columns).astype(np.int32).reshape(n, -1, *x.shape[2:])
    return _cut(total, attrs)


def conv_transpose(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Transposed convolution; kernel positions in reverse row-major order, then channels."""
    x, groups, weight = real(inputs[0]), attrs["groups"], real(tensors["weight"])
    n, filters, channels = len(x), weight.shape[1], len(weight) // groups
    full = _full(x.shape[2:], weight.shape[2:], attrs)
    spans = _spans(weight.shape[2:], x.shape[2:], attrs["stride"], attrs["dilation"])
    rows = x.reshape(n, groups, 1, channels, *x.shape[2:])
    by_position = weight.reshape(groups, channels, filters, -1)
    total = np.zeros((n, groups, filters, *full), np.float32)
    ones = [1] * len(full)
    for position in reversed(range(len(spans))):
        span = spans[position]
        for channel in range(channels):
            column = by_position[:, channel, :, position].reshape(groups, filters, *ones)
            total[span] = fma(rows[:, :, :, channel], column, total[span])
    return _with_bias(_cut(total.reshape(n, groups * filters, *full), attrs), tensors, 1)


def matmul(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Matrix product of two values by numpy's rules for shapes, sums in the defined order."""
    left, right = real(inputs[0]), real(inputs[1])
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    total = np.zeros((*lead, left.shape[-2], right.shape[-1]), np.float32)
    for k in range(left.shape[-1]):
        total = fma(left[..., k, None], right[..., None, k, :], total)
    return total
