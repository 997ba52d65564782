"""Constants of a size known at run time, tables to look things up in, and operators that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frostbit.deploy.lower import POINTWISE, Lowering, UnsupportedError, constant, handles
from frostbit.deploy.values import Partial, Size, Value

aten = torch.ops.aten

#: more positions than any table has
_LONGEST = 65_536

POINTWISE |= {
    aten._to_copy.default,
    aten.add.Tensor,
    aten.bitwise_and.Tensor,
    aten.clone.default,
    aten.gather.default,
    aten.ge.Scalar,
    aten.logical_and.default,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.unsqueeze.default,
}


@handles(aten.expand.default)
def expand(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    """Repeat a constant to a size known at run time."""
    if isinstance(x, Value):
        if x.shape != low.shape and x.kind != "index":  # a mask broadcasts where it is added
            raise UnsupportedError(f"it repeats {list(x.shape)} to {list(low.shape)}")
        return x
    full = x if isinstance(x, Tensor) else x.full
    return Partial(full.reshape([1] * (len(low.shape) - full.dim()) + list(full.shape)), low.shape)


@handles(aten.full.default)
def full(low: Lowering, sizes: Sequence[Size], number: float, **_: Any) -> Partial:
    """One number, repeated."""
    return Partial(torch.full([1] * len(sizes), number, dtype=low.node.meta["val"].dtype), low.shape)


@handles(aten.full_like.default)
def full_like(low: Lowering, x: Any, number: float, **_: Any) -> Partial:
    """One number, repeated."""
    return full(low, x.shape, number)


@handles(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(low: Lowering, *args: Any, **_: Any) -> Partial:
    """Positions from 0."""
    if len(args) > 1 and (args[0] != 0 or args[2:] not in ((), (1,))):
        raise UnsupportedError("positions must count from 0 in steps of 1")
    return Partial(torch.arange(_LONGEST), low.shape)


@handles(aten.gather.default)
def gather(low: Lowering, table: Any, *_: Any, **__: Any) -> Partial:
    """Entries of a constant that are all the same, wherever they are picked from."""
    full = table.full if isinstance(table, Partial) else constant(table, "table")
    if bool((full != full.flatten()[0]).any()):
        raise UnsupportedError("it picks entries one by one")
    return Partial(full.flatten()[:1].reshape([1] * len(low.shape)), low.shape)


@handles(aten.embedding.default)
def embedding(low: Lowering, weight: Any, index: Any, *_: Any) -> Any:
    """Rows of a table."""
    table = constant(weight, "weight")
    if isinstance(index, Partial):
        rows = index.full[..., : len(table)] if index.full.shape[-1] == _LONGEST else index.full
        return Partial(F.embedding(rows, table), low.shape)
    return low.emit("embedding", [index], {}, {"weight": table})


def look_up(low: Lowering, mask: Value, no: float, yes: float) -> Value:
    """Return ``yes`` where a mask of zeros and ones is 1, else ``no``; the runtime refuses any other number."""
    table = torch.tensor([[no], [yes]])
    column = low.emit("embedding", [mask], {}, {"weight": table}, shape=(*mask.shape, 1))
    return low.emit("squeeze", [column], {"axis": mask.rank}, shape=mask.shape)


@handles(aten.ne.Scalar)
def differs(low: Lowering, x: Any, number: float) -> Value:
    """A mask: where an index is not that of the padding."""
    value = low.value(x)
    if value.kind != "index":
        raise UnsupportedError("it compares real numbers for equality")
    return low.emit("differs", [value], {"value": int(number)}, kind="index")


@handles(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)
def to(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    """Another dtype: real numbers stay real, masks may become real."""
    real = low.node.meta["val"].dtype.is_floating_point
    if isinstance(x, Value) and x.kind == "index" and real:
        return look_up(low, x, 0.0, 1.0)
    if isinstance(x, Value) and x.kind != "index" and not real:
        raise UnsupportedError("it makes integers of real numbers")
    return x


@handles(aten.clone.default, aten.detach.default, aten.alias.default, aten.contiguous.default)
@handles(aten.lift_fresh_copy.default)
def same(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    """What changes nothing."""
    return x


@handles(aten.dropout.default, aten.feature_dropout.default)
def dropout(low: Lowering, x: Any, share: float, train: bool) -> Any:
    """Nothing, in evaluation."""
    if train and share:
        raise UnsupportedError("it drops entries in evaluation too")
    return x
