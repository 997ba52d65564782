"""Norms: of the batch as the affine map that it is, of layers and groups as they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frostbit.deploy.aten.moving import reshape
from frostbit.deploy.lower import Lowering, UnsupportedError, handles
from frostbit.deploy.values import Value

aten = torch.ops.aten


@handles(aten.batch_norm.default)
def batch_norm(
    low: Lowering,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    """An affine map with torch's own scale, and a shift that is rounded once."""
    if training:
        raise UnsupportedError("it has no running statistics (track_running_stats=True gives it some)")
    if not all(bool(t.isfinite().all()) for t in (mean, var, weight, bias) if t is not None):
        raise UnsupportedError("its parameters or running statistics are not finite")
    scale = 1 / torch.sqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean.double() * scale.double()
    shift = shift if bias is None else shift + bias

    def exact(v: Tensor) -> Tensor:
        return F.batch_norm(v, mean, var, weight, bias, False, 0.0, eps)

    return low.affine(x, 1, scale, shift, exact)


@handles(aten._native_batch_norm_legit_no_training.default)
def batch_norm_without_training(low: Lowering, x: Any, *args: Any) -> list[Any]:
    """The same as functional graphs write it."""
    weight, bias, mean, var, momentum, eps = args
    return [batch_norm(low, x, weight, bias, mean, var, False, momentum, eps), None, None]


@handles(aten.layer_norm.default)
def layer_norm(
    low: Lowering, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    """Over the last dimensions."""
    value, attrs = low.value(x), {"axes": len(shape), "eps": eps}
    return low.emit("layer_norm", [value], attrs, {"weight": weight, "bias": bias}, shape=value.shape)


@handles(aten.native_layer_norm.default)
def native_layer_norm(low: Lowering, x: Any, *args: Any) -> list[Any]:
    """The same as functional graphs write it."""
    return [layer_norm(low, x, *args), None, None]


@handles(aten.group_norm.default)
def group_norm(
    low: Lowering, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    """A layer norm over rows, one for each group, then an affine map."""
    value = low.value(x)
    if not all(isinstance(size, int) for size in value.shape[1:]):
        raise UnsupportedError("its input has open sizes")
    features = math.prod(value.shape[1:]) // groups
    rows = reshape(low, value, (value.shape[0], groups, features))
    y = reshape(low, layer_norm(low, rows, [features], None, None, eps), value.shape)
    return y if weight is None and bias is None else low.affine(y, 1, weight, bias)
