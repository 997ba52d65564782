"""Activation functions."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from frostbit.deploy.lower import Lowering, UnsupportedError, constant, handles
from frostbit.deploy.values import Value

aten = torch.ops.aten

_SAME_NAME: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
}


@handles(*_SAME_NAME)
def same_name(low: Lowering, x: Any) -> Value:
    """Functions without arguments that a program has under the same name."""
    return low.elementwise(_SAME_NAME[low.node.target], x)


@handles(aten.gelu.default)
def gelu(low: Lowering, x: Any, approximate: str = "none") -> Value:
    """``x · Φ(x)``."""
    return low.elementwise("gelu", x, approximate=approximate)


@handles(aten.hardtanh.default)
def hardtanh(low: Lowering, x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Value:
    """``x`` held between two numbers."""
    return clamp(low, x, min_val, max_val)


@handles(aten.relu6.default)
def relu6(low: Lowering, x: Any) -> Value:
    """``x`` held between 0 and 6."""
    return clamp(low, x, 0, 6)


@handles(aten.clamp.default)
def clamp(low: Lowering, x: Any, min: Any = None, max: Any = None) -> Value:
    """``x`` held between two numbers, either of which may be missing."""
    ends = {"min": min, "max": max}
    found = {name: None if e is None or abs(e) == float("inf") else float(e) for name, e in ends.items()}
    return low.elementwise("clip", x, **found)


@handles(aten.floor.default)
def floor(low: Lowering, x: Any) -> Value:
    """The next integer below: no program has it, but before a sign it can become part of a comparison."""
    return low.elementwise("floor", x)


@handles(aten.leaky_relu.default)
def leaky_relu(low: Lowering, x: Any, slope: float = 0.01) -> Value:
    """A PReLU with one fixed slope."""
    return prelu(low, x, torch.tensor([slope]))


@handles(aten.prelu.default)
def prelu(low: Lowering, x: Any, slope: Any) -> Value:
    """A slope per channel, or one for all, below 0."""
    value, slopes = low.value(x), constant(slope, "slope").flatten()
    if value.rank < 2 or not isinstance(value.shape[1], int):
        raise UnsupportedError("its channels are not known before it runs")
    slopes = slopes.expand(value.shape[1])
    return low.emit(
        "prelu", [value], {"axis": 1}, {"slope": slopes}, shape=value.shape, exact=lambda v: F.prelu(v, slopes)
    )


@handles(aten.softmax.int, aten._softmax.default)
def softmax(low: Lowering, x: Any, axis: int, *_: Any, **__: Any) -> Value:
    """``exp(x) / Σ exp(x)``."""
    value = low.value(x)
    return low.emit("softmax", [value], {"axis": axis % value.rank}, shape=value.shape)
