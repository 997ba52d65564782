"""Pooling."""

from __future__ import annotations

from typing import Any

import torch

from frostbit.deploy.lower import Lowering, UnsupportedError, handles, numbers
from frostbit.deploy.values import Value

aten = torch.ops.aten


def _geometry(low: Lowering, x: Any, kernel: Any, stride: Any, padding: Any) -> tuple[Value, dict[str, Any]]:
    value = low.value(x)
    dims = value.rank - 2
    sizes = numbers(kernel, dims)
    if dims < 1 or len(sizes) != dims:
        raise UnsupportedError(f"its input has {value.rank} dimensions, expected a batch")
    strides = numbers(stride, dims) if stride else sizes
    return value, {"kernel": sizes, "stride": strides, "padding": numbers(padding, dims)}


@handles(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def max_pool(
    low: Lowering, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Value:
    """The largest entry of each window."""
    value, attrs = _geometry(low, x, kernel, stride, padding)
    attrs |= {"dilation": numbers(dilation, value.rank - 2), "ceil_mode": ceil_mode}
    return low.emit("max_pool", [value], attrs)


@handles(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def avg_pool(
    low: Lowering,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Value:
    """The mean of each window."""
    if divisor is not None:
        raise UnsupportedError("divisor_override has no counterpart")
    value, attrs = _geometry(low, x, kernel, stride, padding)
    return low.emit("avg_pool", [value], attrs | {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad})


@handles(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def adaptive_avg_pool(low: Lowering, x: Any, wanted: Any) -> Value:
    """The mean of everything, or windows where the sizes are multiples."""
    value = low.value(x)
    if all(size == 1 for size in numbers(wanted, value.rank - 2)):
        return low.emit("mean", [value], {"axes": list(range(2, value.rank)), "keepdims": True})
    return avg_pool(low, value, _windows(value, wanted))


@handles(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptive_max_pool(low: Lowering, x: Any, wanted: Any) -> list[Any]:
    """The largest entries of windows where the sizes are multiples."""
    value = low.value(x)
    windows = _windows(value, wanted)
    sizes: dict[str, Any] = {"kernel": windows, "stride": windows, "padding": [0] * len(windows)}
    attrs = {**sizes, "dilation": [1] * len(windows), "ceil_mode": False}
    return [low.emit("max_pool", [value], attrs, shape=low.sizes(low.node.meta["val"][0])), None]


def _windows(value: Value, wanted: Any) -> list[int]:
    sizes, results = value.shape[2:], numbers(wanted, value.rank - 2)
    if not all(isinstance(n, int) and n % size == 0 for n, size in zip(sizes, results, strict=True)):
        raise UnsupportedError(f"sizes {list(sizes)} are no multiples of {results}")
    return [n // size for n, size in zip(sizes, results, strict=True)]
