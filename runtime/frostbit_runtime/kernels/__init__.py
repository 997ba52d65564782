"""Kernels on signs in words and on float32, channels last: numpy in, numpy out."""

from __future__ import annotations

from typing import Any

import numpy as np
from frostbit_runtime.kernels import plain
from frostbit_runtime.kernels.plain import Array, max_pool, pack, pack_bool, unpack

__all__ = [
    "BinaryConv",
    "BinaryDense",
    "RealConv",
    "RealDense",
    "avg_pool",
    "global_mean",
    "max_pool",
    "pack",
    "pack_bool",
    "unpack",
]


class BinaryConv:
    """A convolution of signs with signs: int32 sums, or what is fused behind them."""

    def __init__(
        self,
        weight: Array,
        stride: Any = (1, 1),
        padding: Any = ((0, 0), (0, 0)),
        dilation: Any = (1, 1),
        groups: int = 1,
        pad_value: int = 0,
    ) -> None:
        self.weight, self.stride, self.padding, self.dilation = weight, stride, padding, dilation
        self.groups, self.pad_value = groups, pad_value

    def run(self, x: Array, out: Array | None = None, *, pool: Any = None, threads: int = 1, **options: Any) -> Array:
        """Return the sums of x (words or float32, NHWC), finished as ``options`` say."""
        channels = self.weight.shape[1] * self.groups
        x = plain.unpack(plain.pack(x) if x.dtype == np.float32 else x, channels)
        sums = plain.binary_conv(x, self.weight, self.stride, self.padding, self.dilation, self.groups, self.pad_value)
        if pool is not None:
            sums = max_pool(sums, *pool)
        return _into(out, plain.finish(sums, **options))


class BinaryDense:
    """Signs [M, I] times signs [O, I]."""

    def __init__(self, weight: Array) -> None:
        self.conv = BinaryConv(weight[:, :, None, None])

    def run(self, x: Array, out: Array | None = None, **options: Any) -> Array:
        """As `BinaryConv.run`, x [M, words] or float32 [M, I]."""
        if options.get("residual") is not None:
            options["residual"] = options["residual"][:, None, None]
        y = self.conv.run(x[:, None, None], **options)
        return _into(out, y[:, 0, 0])


class RealConv:
    """A float32 convolution in the defined order of accumulation."""

    def __init__(
        self,
        weight: Array,
        stride: Any = (1, 1),
        padding: Any = ((0, 0), (0, 0)),
        dilation: Any = (1, 1),
        groups: int = 1,
    ) -> None:
        self.weight, self.stride, self.padding, self.dilation, self.groups = weight, stride, padding, dilation, groups

    def run(self, x: Array, out: Array | None = None, *, threads: int = 1, **options: Any) -> Array:
        """Return the convolution of x, finished as ``options`` say (bias, scale, shift, residual, relu)."""
        sums = plain.real_conv(x, self.weight, self.stride, self.padding, self.dilation, self.groups)
        return _into(out, plain.finish(sums, **options))


class RealDense:
    """float32 x [M, I] times weight [O, I], k ascending."""

    def __init__(self, weight: Array) -> None:
        self.conv = RealConv(weight[:, :, None, None])

    def run(self, x: Array, out: Array | None = None, **options: Any) -> Array:
        """As `RealConv.run`."""
        if options.get("residual") is not None:
            options["residual"] = options["residual"][:, None, None]
        return _into(out, self.conv.run(x[:, None, None], **options)[:, 0, 0])


def avg_pool(
    x: Array, kernel: Any, stride: Any, padding: Any = ((0, 0), (0, 0)), count_include_pad: bool = True
) -> Array:
    """Return window sums (row-major, float32, zeros outside) divided by the window's count."""
    ones = (1,) * len(kernel)
    sums = plain.window_sum(plain.windows(x, kernel, stride, padding, ones, 0))
    inside = np.ones((1, *x.shape[1:-1], 1), np.float32)
    counts = plain.windows(inside, kernel, stride, padding, ones, float(count_include_pad)).sum(-2)
    result: Array = (sums / counts).astype(np.float32)
    return result


def global_mean(x: Array) -> Array:
    """Return the mean over all positions [N, C]: float32 sum in row-major order, divided by the count."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    result: Array = plain.window_sum(flat) / np.float32(flat.shape[1])
    return result


def _into(out: Array | None, y: Array) -> Array:
    if out is None:
        return np.ascontiguousarray(y)
    out[...] = y
    return out
