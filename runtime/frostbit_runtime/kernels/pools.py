"""Pools, channels last."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from frostbit_runtime.kernels.plan import Window, plan
from frostbit_runtime.kernels.simd import kernel
from frostbit_runtime.kernels.threads import split
from numpy.typing import NDArray

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]


@lru_cache(maxsize=64)
def _sources(window: Window, space: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """Return which pixel each output reads at each position, int32 [outputs, positions], -1 outside; and the size."""
    inner = np.full([size + sum(pair) for size, pair in zip(space, window.padding, strict=True)], -1, np.int32)
    places = tuple(slice(b, b + size) for (b, _), size in zip(window.padding, space, strict=True))
    inner[places] = np.arange(int(np.prod(space))).reshape(space)
    laid = plan(window, (1, *space), 1, 1)
    return inner.reshape(-1)[(laid.rows[:, None] + laid.taps) // 4], laid.output[1:]


@kernel
def _maximum(x: Any, sources: Any, out: Any, first: int, last: int) -> None:
    """X [N, pixels, C] -> out [N, outputs, C]; lines [first, last) of N * outputs."""
    outputs = sources.shape[0]
    for line in range(first, last):
        image, row = line // outputs, line % outputs
        fresh = True
        for source in sources[row]:
            if source >= 0 and fresh:
                out[image, row] = x[image, source]
                fresh = False
            elif source >= 0:
                for c in range(x.shape[2]):
                    a, b = out[image, row, c], x[image, source, c]
                    out[image, row, c] = b if b > a else a


@kernel
def _union(x: Any, sources: Any, out: Any, first: int, last: int) -> None:
    outputs = sources.shape[0]
    for line in range(first, last):
        image, row = line // outputs, line % outputs
        out[image, row] = 0
        for source in sources[row]:
            if source >= 0:
                for c in range(x.shape[2]):
                    out[image, row, c] |= x[image, source, c]


@kernel
def _total(x: Any, sources: Any, divisors: Any, out: Any, first: int, last: int) -> None:
    outputs = sources.shape[0]
    for line in range(first, last):
        image, row = line // outputs, line % outputs
        out[image, row] = np.float32(0)
        for source in sources[row]:
            if source >= 0:
                for c in range(x.shape[2]):
                    out[image, row, c] += x[image, source, c]
        for c in range(x.shape[2]):
            out[image, row, c] /= divisors[row]


def max_pool(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pairs = ((0, 0), (0, 0)),
    dilation: tuple[int, ...] = (1, 1),
    threads: int = 1,
) -> Array:
    """Return the maximum over windows; the border takes no part.

    Args:
        x: float32 or int32 [N, *S, C], or words of signs uint32 [N, *S, W], whose maximum is the union of their bits.
        kernel, stride, dilation: per dimension of space; padding: (before, after) each.
        threads: number of threads.

    Returns:
        [N, *S_out, C], the same type.

    Raises:
        ValueError: a window that lies wholly in the border, or an argument that does not fit.
    """
    window = Window(tuple(kernel), tuple(stride), tuple(tuple(p) for p in padding), tuple(dilation))  # type: ignore[misc]
    sources, size = _sources(window, x.shape[1:-1])
    if (sources < 0).all(1).any():
        raise ValueError(f"padding: expected every window to reach the input, found {window} on {x.shape[1:-1]}")
    flat, out = _flat(x), np.empty((x.shape[0], len(sources), x.shape[-1]), x.dtype)
    walk = _union if x.dtype == np.uint32 else _maximum
    split(lambda first, last: walk(flat, sources, out, first, last), out.shape[0] * out.shape[1], threads)
    return out.reshape(x.shape[0], *size, x.shape[-1])


def avg_pool(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pairs = ((0, 0), (0, 0)),
    count_include_pad: bool = True,
    divisors: Array | None = None,
    threads: int = 1,
) -> Array:
    """Return window sums, in row-major order from 0, divided by a count.

    Args:
        x: float32 [N, *S, C].
        kernel, stride: per dimension of space; padding: (before, after) each.
        count_include_pad: whether the border counts.
        divisors: float32 [*S_out], instead of these counts.
        threads: number of threads.

    Returns:
        float32 [N, *S_out, C].
    """
    window = Window(tuple(kernel), tuple(stride), tuple(tuple(p) for p in padding), (1,) * len(kernel))  # type: ignore[misc]
    sources, size = _sources(window, x.shape[1:-1])
    if divisors is None:
        counts = np.full(len(sources), sources.shape[1]) if count_include_pad else (sources >= 0).sum(1)
        divisors = counts.astype(np.float32)
    divisors = np.ascontiguousarray(divisors, np.float32).reshape(-1)
    flat, out = _flat(x), np.empty((x.shape[0], len(sources), x.shape[-1]), np.float32)
    split(lambda a, b: _total(flat, sources, divisors, out, a, b), out.shape[0] * out.shape[1], threads)
    return out.reshape(x.shape[0], *size, x.shape[-1])


def global_mean(x: Array, threads: int = 1) -> Array:
    """Return the mean over all of space: float32 [N, *S, C] -> [N, C]; row-major sums from 0, divided by the count."""
    space = x.shape[1:-1]
    return avg_pool(x, space, space, ((0, 0),) * len(space), threads=threads).reshape(x.shape[0], x.shape[-1])


def _flat(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(x.shape[0], -1, x.shape[-1])
