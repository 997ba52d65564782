"""Products of two values: the walk over one matrix after another, the right one brought into panels on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostbit_runtime.kernels.block import REAL, REALS
from frostbit_runtime.kernels.layer import NANOSECONDS
from frostbit_runtime.kernels.simd import PANEL, kernel
from frostbit_runtime.kernels.threads import split
from frostbit_runtime.kernels.walk import GRAIN, walk

Array = NDArray[Any]


@kernel
def _matmul(left: Any, right: Any, out: Any, first: int, last: int) -> None:
    """Compute rows [first, last) of all matrices; int32 [B, M, K], [B, K, N] and [B, M, N] stand for float32."""
    _, height, inner = left.shape
    width = right.shape[2]
    count = (width + PANEL - 1) // PANEL
    panels = np.zeros((count, inner, PANEL), np.int32)
    spans = np.zeros((count, 3), np.int64)  # see `walk`, here and below
    for p in range(count):
        spans[p, 1], spans[p, 2] = PANEL * p, min(PANEL, width - PANEL * p)
    rows, taps = np.arange(height) * np.int64(4 * inner), (4 * np.arange(inner)).astype(np.int32)
    classes, zeros = np.zeros(height, np.int32), np.zeros((1, PANEL * count), np.int32)
    flip, residual = np.zeros(count, np.uint32), np.zeros(0, np.float32)
    one, nothing = np.ones(PANEL * count, np.float32), np.full(PANEL * count, np.float32(-0.0))
    for b in range(first // height, (last + height - 1) // height):
        for k in range(inner):
            for n in range(width):
                panels[n // PANEL, k, n % PANEL] = right[b, k, n]
        walk(
            REAL, REALS, 0, left[b].reshape(-1), rows, taps, 0, panels, spans, classes, zeros, nothing, one, nothing,
            zeros[0], flip, residual, out[b].reshape(-1), width,
            max(first - b * height, 0), min(last - b * height, height), 0, count,
        )  # fmt: skip


def matmul(left: Array, right: Array, threads: int = 1) -> Array:
    """Return the matrix products of two stacks: each entry one fused multiply-add per k, ascending.

    Args:
        left: float32 [B, M, K].
        right: float32 [B, K, N].
        threads: number of threads; results do not depend on it.

    Returns:
        float32 [B, M, N].
    """
    out = np.empty((*left.shape[:2], right.shape[2]), np.float32)
    a, b, c = (np.ascontiguousarray(stack).view(np.int32) for stack in (left, right, out))
    if out.size:
        rows, cost = out.shape[0] * out.shape[1], NANOSECONDS * out.shape[2] * left.shape[2]
        split(lambda first, last: _matmul(a, b, c, first, last), rows, threads, cost, GRAIN)
    return out
