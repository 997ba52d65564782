"""Poolings and means; sums are float32, one term after the other in row-major order of the window."""

from __future__ import annotations

import math

import numpy as np

from frostbit_runtime.program import Array, Shape
from frostbit_runtime.reference.elementwise import Attrs, Inputs, Tensors, real
from frostbit_runtime.reference.sums import taps
from frostbit_runtime.shapes import pooled_size, pooled_span


def _windows(x: Array, attrs: Attrs, fill: float) -> tuple[Array, Shape]:
    """Return the input padded as far as its windows reach, and the output sizes."""
    dilation = attrs.get("dilation", [1] * (x.ndim - 2))
    out, pads = [], []
    for index, size in enumerate(x.shape[2:]):
        kernel, stride, pad = (attrs[name][index] for name in ("kernel", "stride", "padding"))
        out.append(pooled_size(size, kernel, stride, pad, dilation[index], attrs["ceil_mode"]))
        pads.append((pad, max(0, pooled_span(attrs, index, out[-1]) - size - pad)))
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill), tuple(out)


def max_pool(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Largest entry of each window; of signs, whether any is +1."""
    (x,) = inputs
    lowest = {"f": -np.inf, "i": -1 if x.dtype == np.int8 else np.iinfo(np.int32).min}[x.dtype.kind]
    padded, out = _windows(x, attrs, lowest)
    result = np.full((*x.shape[:2], *out), lowest, x.dtype)
    for tap in taps(padded, tuple(attrs["kernel"]), out, attrs["stride"], attrs["dilation"]):
        np.maximum(result, tap, out=result)
    return result


def avg_pool(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Sum of each window divided by the number of its positions: all in the padded input, or the real ones only."""
    x = real(inputs[0])
    padded, out = _windows(x, attrs, 0)
    total = np.zeros((*x.shape[:2], *out), np.float32)
    for tap in taps(padded, tuple(attrs["kernel"]), out, attrs["stride"], [1] * len(out)):
        total += tap
    return total / pool_counts(x.shape[2:], out, attrs)


def pool_counts(sizes: Shape, out: Shape, attrs: Attrs) -> Array:
    """Return what each window's sum is divided by, float32 ``[*out]``."""
    counts = np.ones((), np.float32)
    for index, (size, n) in enumerate(zip(sizes, out, strict=True)):
        kernel, stride, pad = (attrs[name][index] for name in ("kernel", "stride", "padding"))
        reach = pad if attrs["count_include_pad"] else 0
        first = np.arange(n) * stride - pad
        row = np.minimum(first + kernel, size + reach) - np.maximum(first, -reach)
        counts = np.multiply.outer(counts, row.astype(np.float32))
    return np.asarray(counts, np.float32)


def mean(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Sum over the axes, divided by the number of entries."""
    x = real(inputs[0])
    axes = tuple(sorted(axis % x.ndim for axis in attrs["axes"]))
    moved = np.moveaxis(x, axes, range(len(axes)))
    kept, count = moved.shape[len(axes) :], math.prod(moved.shape[: len(axes)])
    # accumulate adds strictly one after the other; a plain sum may add in pairs
    total = np.add.accumulate(moved.reshape(count, -1), axis=0)[-1].reshape(kept)
    result = total / np.float32(count)
    return np.asarray(np.expand_dims(result, axes) if attrs["keepdims"] else result)
