"""Sums, products and means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from frostbit.deploy.lower import Lowering, UnsupportedError, constant, handles
from frostbit.deploy.values import Kind, Partial, Value

aten = torch.ops.aten


@handles(aten.add.Tensor, aten.add.Scalar)
def add(low: Lowering, x: Any, y: Any, alpha: float = 1) -> Value:
    """``x + alpha · y``."""
    y = _times(low, y, alpha)
    if isinstance(x, Value) and isinstance(y, Value):
        return low.emit("add", [x, y], kind=_kind_of(x, y))
    return _with_constant(low, "add", *_value_first(x, y), torch.add)


def _kind_of(x: Value, y: Value) -> Kind:
    return "index" if x.kind == y.kind == "index" else "real"


@handles(aten.sub.Tensor, aten.sub.Scalar)
def sub(low: Lowering, x: Any, y: Any, alpha: float = 1) -> Value:
    """``x − alpha · y``."""
    if isinstance(x, Value) and isinstance(y, Value) and alpha == 1:
        return low.emit("sub", [x, y])
    return add(low, x, y, -alpha)


@handles(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(low: Lowering, x: Any, y: Any, alpha: float = 1) -> Value:
    """``y − alpha · x``."""
    return sub(low, y, x, alpha)


@handles(aten.neg.default)
def neg(low: Lowering, x: Any) -> Value:
    """``−x``."""
    return mul(low, x, -1)


@handles(aten.mul.Tensor, aten.mul.Scalar)
def mul(low: Lowering, x: Any, y: Any) -> Value:
    """``x · y``."""
    if isinstance(x, Value) and isinstance(y, Value):
        return low.emit("mul", [x, y], kind=_kind_of(x, y))
    return _with_constant(low, "mul", *_value_first(x, y), torch.mul)


@handles(aten.div.Tensor, aten.div.Scalar)
def div(low: Lowering, x: Any, y: Any) -> Value:
    """``x / y`` for a constant ``y``: a product with its reciprocal."""
    if isinstance(y, (Value, Partial)):
        raise UnsupportedError("it divides by something computed at run time")
    c = torch.as_tensor(y, dtype=torch.float64)
    # c.reciprocal() twice is c again but for the last bit of a float64
    return _with_constant(low, "mul", x, c.reciprocal(), lambda v, r: v / r.double().reciprocal().float())


@handles(aten.pow.Tensor_Scalar)
def power(low: Lowering, x: Any, exponent: float) -> Value:
    """``x²``."""
    if exponent != 2:
        raise UnsupportedError(f"its exponent is {exponent}, expected 2")
    return low.emit("mul", [x, x])


def _times(low: Lowering, y: Any, alpha: float) -> Any:
    if alpha == 1:
        return y
    if isinstance(y, Partial):
        return Partial(y.full * alpha, y.shape)
    return mul(low, y, alpha) if isinstance(y, Value) else y * alpha


def _value_first(x: Any, y: Any) -> tuple[Any, Any]:
    return (x, y) if isinstance(x, Value) else (y, x)


def _with_constant(
    low: Lowering, operation: str, x: Value, c: Any, torchs: Callable[[Tensor, Tensor], Tensor]
) -> Value:
    """Return ``x`` plus or times a constant: an affine map for one number, or for one number per channel."""
    if x.kind == "index":
        one = constant(c, "number") if isinstance(c, Partial) else torch.as_tensor(c)
        if one.numel() != 1 or one.is_floating_point():
            raise UnsupportedError("indices can be combined with whole numbers and other indices alone")
        repeated = Partial(one.reshape([1] * x.rank), (x.shape[0], *[1] * (x.rank - 1)))
        return low.emit(operation, [x, repeated], kind="index")
    if isinstance(c, Partial):
        # what is only repeated broadcasts by itself
        shape = tuple(1 if n == 1 else size for n, size in zip(c.full.shape, c.shape, strict=True))
        if shape != tuple(c.full.shape):
            return low.emit(operation, [x, Partial(c.full, shape)])
        c = c.full
    wide = torch.as_tensor(c, dtype=torch.float64)
    axis = _channel_axis(x, wide)
    if axis is None and wide.numel() != 1:
        return low.emit(operation, [x], {}, {"other": wide})
    plain = wide.float().reshape(-1, 1) if axis is not None else wide.float().reshape(())
    scale, shift = (wide, None) if operation == "mul" else (None, wide)
    return low.affine(x, axis, scale, shift, lambda v: torchs(v, plain))


def _channel_axis(x: Value, c: Tensor) -> int | None:
    """Return the one axis of ``x``, not the batch, along which ``c`` has entries."""
    axes = [axis - c.dim() + x.rank for axis, size in enumerate(c.shape) if size != 1]
    fits = c.dim() <= x.rank and len(axes) == 1 and axes[0] > 0 and x.shape[axes[0]] == c.numel()
    return axes[0] if fits else None


@handles(aten.cumsum.default)
def cumsum(low: Lowering, x: Any, axis: int, **_: Any) -> Value:
    """Running sums of indices, as RoBERTa counts its positions."""
    value = low.value(x)
    if value.kind != "index":
        raise UnsupportedError("it adds up real numbers one by one")
    return low.emit("cumsum", [value], {"axis": axis % value.rank}, kind="index")


@handles(aten.mean.dim)
def mean(low: Lowering, x: Any, axes: Any, keepdim: bool = False, dtype: Any = None) -> Value:
    """Mean over some axes."""
    value = low.value(x)
    chosen = sorted(axis % value.rank for axis in (axes or range(value.rank)))
    if 0 in chosen:
        raise UnsupportedError("it averages over the batch")
    return low.emit("mean", [value], {"axes": chosen, "keepdims": keepdim})


@handles(aten.sum.dim_IntList)
def sum_(low: Lowering, x: Any, axes: Any, keepdim: bool = False, dtype: Any = None) -> Value:
    """Sum over some axes: their mean times the number of entries."""
    sizes = [low.value(x).shape[axis] for axis in axes or ()]
    if not all(isinstance(size, int) for size in sizes):
        raise UnsupportedError("it adds up a dimension of open size")
    return low.affine(mean(low, x, axes, keepdim), None, torch.tensor(float(math.prod(sizes))), None)
