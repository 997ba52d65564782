"""Softmax and layer norm, a row at a time: `frostbit_runtime.reference.rows`, to the bit."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostbit_runtime.kernels.simd import kernel
from frostbit_runtime.kernels.threads import split
from frostbit_runtime.reference.rows import EXPONENTIAL, LANES, LOWEST

Array = NDArray[Any]
SOFTMAX, LAYER_NORM = 2.0, 2.0  # nanoseconds an entry, about


@kernel
def _row_sum(row: Any, lanes: Any) -> Any:
    """Return the sum of a row in the order of ``lanes``, which are room for the partial sums."""
    whole = row.size - row.size % LANES
    lanes[:] = 0
    for c in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += row[c + j]
    for c in range(whole, row.size):
        lanes[c - whole] += row[c]
    width = LANES // 2
    while width:
        for j in range(width):
            lanes[j] += lanes[j + width]
        width //= 2
    return lanes[0]


@kernel
def _softmax(x: Any, out: Any, lanes: Any, first: int, last: int) -> None:
    """Compute rows [first, last)."""
    per_ln2, high, low, magic, p0, p1, p2, p3, p4, p5 = EXPONENTIAL
    n = x.shape[1]
    whole = n - n % LANES
    for i in range(first, last):
        row, y = x[i], out[i]
        lanes[:] = -np.inf
        for c in range(0, whole, LANES):
            for j in range(LANES):
                lanes[j] = row[c + j] if row[c + j] > lanes[j] else lanes[j]
        top = np.float32(-np.inf)
        for j in range(LANES):
            top = max(top, lanes[j])
        for c in range(whole, n):
            top = max(top, row[c])
        for c in range(n):
            z = row[c] - top
            near = LOWEST if z < LOWEST else z
            m = (near * per_ln2 + magic) - magic
            r = (near - m * high) - m * low
            p = ((((p0 * r + p1) * r + p2) * r + p3) * r + p4) * r + p5
            power_of_2 = np.int32((np.int32(m) + np.int32(127)) << np.int32(23)).view(np.float32)
            raised = ((p * (r * r) + r) + np.float32(1)) * power_of_2
            y[c] = np.float32(0) if z < LOWEST else raised
        total = _row_sum(y, lanes)
        for c in range(n):
            y[c] = y[c] / total


@kernel
def _layer_norm(x: Any, eps: float, weight: Any, bias: Any, out: Any, lanes: Any, first: int, last: int) -> None:
    """Compute rows [first, last)."""
    n = x.shape[1]
    centred, squares = np.empty(n, np.float64), np.empty(n, np.float64)
    for i in range(first, last):
        row, y = x[i], out[i]
        mean = _row_sum(row, lanes) / n
        for c in range(n):
            centred[c] = row[c] - mean
            squares[c] = centred[c] * centred[c]
        root = np.sqrt(_row_sum(squares, lanes) / n + eps)
        for c in range(n):
            y[c] = np.float32(centred[c] / root) * weight[c] + bias[c]


def softmax(x: Array, threads: int = 1) -> Array:
    """Return the softmax over the last axis.

    Args:
        x: float32 [..., n].
        threads: number of threads; results do not depend on it.

    Returns:
        float32 [..., n].
    """
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)

    def work(first: int, last: int) -> None:
        _softmax(rows, out, np.empty(LANES, np.float32), first, last)

    split(work, len(rows), threads, SOFTMAX * rows.shape[1])
    return out.reshape(x.shape)


def layer_norm(
    x: Array, axes: int, eps: float, weight: Array | None = None, bias: Array | None = None, threads: int = 1
) -> Array:
    """Return x normed over its last ``axes`` dimensions.

    Args:
        x: float32 [..., n], n standing for ``axes`` dimensions.
        axes: how many; >= 1.
        eps: added to the variance; > 0.
        weight: float32 [n] of as many dimensions.
        bias: likewise.
        threads: number of threads; results do not depend on it.

    Returns:
        float32 of x's shape.
    """
    width = prod(x.shape[-axes:])
    rows = np.ascontiguousarray(x).reshape(-1, width)
    by = np.ones(width, np.float32) if weight is None else weight.reshape(-1)  # ×1 and + −0.0 change no value
    plus = np.full(width, -0.0, np.float32) if bias is None else bias.reshape(-1)
    out = np.empty_like(rows)

    def work(first: int, last: int) -> None:
        _layer_norm(rows, float(eps), by, plus, out, np.empty(LANES, np.float64), first, last)

    split(work, len(rows), threads, LAYER_NORM * width)
    return out.reshape(x.shape)
