"""Pools, channels last."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from frostbit_runtime.kernels.plan import Window, plan
from frostbit_runtime.kernels.simd import F32, I32, I64, TARGET, Vectors, emitted, kernel
from frostbit_runtime.kernels.threads import split

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]
MAXIMUM, INT_MAXIMUM, UNION, TOTAL = range(4)
COST = 0.2  # nanoseconds an entry of the input, about
OPERATIONS = {np.dtype(np.float32): MAXIMUM, np.dtype(np.int32): INT_MAXIMUM, np.dtype(np.uint32): UNION}


def _combine(builder: ir.IRBuilder, operation: int, a: ir.Value, b: ir.Value) -> ir.Value:
    if operation == MAXIMUM:
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)
    if operation == INT_MAXIMUM:
        return builder.select(builder.icmp_signed(">", b, a), b, a)
    return builder.or_(a, b) if operation == UNION else builder.fadd(a, b)


START: dict[int, tuple[ir.Type, float]] = {
    MAXIMUM: (F32, float("-inf")),
    INT_MAXIMUM: (I32, -(2**31)),
    UNION: (I32, 0),
    TOTAL: (F32, 0.0),
}


@emitted
def _reduce(
    typing_context: Any, operation: Any, x: Any, sources: Any, count: Any, out: Any, channels: Any, divisor: Any
) -> Any:
    """Combine ``count`` pixels of x, those that ``sources`` (int32, -1: none) tells, and divide totals."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        v, (which, x, sources, count, out, channels, divisor) = Vectors(builder), values

        def channels_at(channel: ir.Value, operation: int, lanes: int) -> None:
            element, start = START[operation]
            place = v.offset(x, channel, 4)
            total = v.variable(v.constant(element, start, lanes))
            with cgutils.for_range(builder, count) as loop:
                source = builder.sext(v.scalar(v.offset(sources, loop.index, 4), I32), I64)
                with builder.if_then(builder.icmp_signed(">=", source, v.index(0))):
                    value = v.load(v.offset(place, builder.mul(source, channels), 4), element, lanes)
                    builder.store(_combine(builder, operation, builder.load(total), value), total)
            result = builder.load(total)
            if operation == TOTAL:
                result = builder.fdiv(result, v.splat(divisor, lanes))
            v.store(result, v.offset(out, channel, 4))

        end = builder.append_basic_block("end")
        switch = builder.switch(which, end)
        for operation in START:
            block = builder.append_basic_block(f"operation.{operation}")
            switch.add_case(v.index(operation), block)
            builder.position_at_end(block)
            whole = builder.sub(channels, builder.srem(channels, v.index(TARGET.lanes)))
            with cgutils.for_range_slice(builder, v.index(0), whole, v.index(TARGET.lanes)) as (channel, _):
                channels_at(channel, operation, TARGET.lanes)
            with cgutils.for_range_slice(builder, whole, channels, v.index(1)) as (channel, _):
                channels_at(channel, operation, 1)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(operation, x, sources, count, out, channels, divisor), generate


@kernel
def _pool(operation: int, x: Any, sources: Any, divisors: Any, out: Any, channels: int, first: int, last: int) -> None:
    """Compute output pixels [first, last), counted through the batch.

    x and out are flat, any four-byte type; sources int32 [outputs, positions]; divisors float32 [outputs].
    """
    outputs = sources.shape[0]
    image_bytes = x.size // (out.size // (outputs * channels)) * 4
    for pixel in range(first, last):
        image, row = pixel // outputs, pixel % outputs
        _reduce(
            operation,
            np.int64(x.ctypes.data) + image * image_bytes,
            np.int64(sources.ctypes.data) + row * sources.strides[0],
            sources.shape[1],
            np.int64(out.ctypes.data) + 4 * pixel * channels,
            channels,
            divisors[row],
        )


@dataclass(frozen=True)
class _Geometry:
    """What a pool reads, and where from.

    Attributes:
        sources: int32 [outputs, positions], the pixel that each output reads at each position, -1 outside.
        size: of the output.
        inside: float32 [outputs], number of positions that are not outside.
        positions: float32 [outputs], number of positions.
    """

    sources: Array
    size: tuple[int, ...]
    inside: Array
    positions: Array


@lru_cache(maxsize=64)
def _geometry(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pairs,
    dilation: tuple[int, ...],
) -> _Geometry:
    window = Window(kernel, stride, padding, dilation)
    numbers = np.full([size + sum(pair) for size, pair in zip(space, padding, strict=True)], -1, np.int32)
    inner = tuple(slice(b, b + size) for (b, _), size in zip(padding, space, strict=True))
    numbers[inner] = np.arange(prod(space)).reshape(space)
    laid = plan(window, (1, *space), 1, 1)
    sources = numbers.reshape(-1)[(laid.rows[:, None] + laid.taps) // 4]
    inside = (sources >= 0).sum(1, dtype=np.float32)
    return _Geometry(sources, laid.output[1:], inside, np.full_like(inside, prod(kernel)))


def _run(operation: int, x: Array, geometry: _Geometry, divisors: Array, threads: int) -> Array:
    """Return [N, *S_out, C]."""
    channels = x.shape[-1]
    out = np.empty((x.shape[0], *geometry.size, channels), x.dtype)
    arguments = (
        np.ascontiguousarray(x).reshape(-1).view(np.int32),
        geometry.sources,
        divisors,
        out.reshape(-1).view(np.int32),
        channels,
    )
    pixels = x.shape[0] * len(geometry.sources)
    cost = COST * geometry.sources.shape[1] * channels
    split(lambda first, last: _pool(operation, *arguments, first, last), pixels, threads, cost)
    return out


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
        kernel: size per dimension of space.
        stride: the same.
        padding: (before, after) per dimension of space.
        dilation: per dimension of space.
        threads: number of threads.

    Returns:
        [N, *S_out, C], the same type.

    Raises:
        ValueError: a window that lies wholly in the border, or an argument that does not fit.
    """
    geometry = _geometry(x.shape[1:-1], kernel, stride, padding, dilation)
    if not geometry.inside.all():
        raise ValueError(f"padding: expected every window to reach the input, found {padding} around {x.shape[1:-1]}")
    return _run(OPERATIONS[x.dtype], x, geometry, geometry.inside, threads)


def avg_pool(
    x: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pairs = ((0, 0), (0, 0)),
    count_include_pad: bool = True,
    divisors: Array | None = None,
    threads: int = 1,
) -> Array:
    """Return window sums, float32 in row-major order from 0, divided by a count.

    Args:
        x: float32 [N, *S, C].
        kernel: size per dimension of space.
        stride: the same.
        padding: (before, after) per dimension of space.
        count_include_pad: whether the border counts.
        divisors: float32 [*S_out], instead of these counts.
        threads: number of threads.

    Returns:
        float32 [N, *S_out, C].

    Raises:
        ValueError: an argument does not fit.
    """
    geometry = _geometry(x.shape[1:-1], kernel, stride, padding, (1,) * len(kernel))
    if divisors is None:
        divisors = geometry.positions if count_include_pad else geometry.inside
    elif divisors.shape != geometry.size:
        raise ValueError(f"divisors: expected shape {geometry.size}, found {divisors.shape}")
    return _run(TOTAL, x, geometry, np.ascontiguousarray(divisors, np.float32).reshape(-1), threads)


def global_mean(x: Array, threads: int = 1) -> Array:
    """Return the mean over all of space: float32 [N, *S, C] -> [N, C]; row-major sums from 0, divided by the count."""
    space = x.shape[1:-1]
    return avg_pool(x, space, space, ((0, 0),) * len(space), threads=threads).reshape(x.shape[0], x.shape[-1])
