"""Attention and its masks: constant ones, and padding masks that are an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frostbit.deploy.aten.activations import softmax
from frostbit.deploy.aten.constants import look_up
from frostbit.deploy.aten.layers import matmul
from frostbit.deploy.aten.moving import permute, unsqueeze
from frostbit.deploy.lower import Lowering, UnsupportedError, handles
from frostbit.deploy.values import Partial, Value

aten = torch.ops.aten


@handles(aten.scaled_dot_product_attention.default)
def attention(
    low: Lowering,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """``softmax(q · scale kᵀ + mask) v``."""
    if dropout or enable_gqa:
        raise UnsupportedError("dropout and grouped queries have no counterpart")
    q, k = low.value(query), low.value(key)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q = low.affine(q, None, torch.tensor(factor, dtype=torch.float64), None)  # fewer entries than the scores have
    scores = matmul(low, q, permute(low, k, [*range(k.rank - 2), k.rank - 1, k.rank - 2]))
    if is_causal:
        if not all(isinstance(size, int) for size in scores.shape[-2:]):
            raise UnsupportedError("a causal mask needs a fixed sequence length")
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = _masked(low, scores, mask)
    return matmul(low, softmax(low, scores, -1), value)


def _masked(low: Lowering, scores: Value, mask: Any) -> Value:
    """Return the scores with −inf added where a boolean mask is false, or with an additive mask added."""
    if isinstance(mask, Value) and mask.kind == "index":
        mask = look_up(low, mask, float("-inf"), 0.0)
    full = mask.full if isinstance(mask, Partial) else mask
    if isinstance(full, Tensor) and full.dtype == torch.bool:
        if bool(full.all()):
            return scores
        full = torch.zeros(full.shape).masked_fill(~full, float("-inf"))
        mask = Partial(full, mask.shape) if isinstance(mask, Partial) else full
    inputs, roles = ([scores], {"other": mask}) if isinstance(mask, Tensor) else ([scores, mask], {})
    return low.emit("add", inputs, {}, roles, shape=scores.shape)


@handles(aten.masked_fill.Scalar)
def masked_fill(low: Lowering, x: Any, mask: Any, number: float) -> Value:
    """A constant mask that fills with a very low number, before a softmax: that number added."""
    if number > -1e4 or not isinstance(mask, Tensor):
        raise UnsupportedError("only a constant mask that fills with a very low number can be added instead")
    return low.emit("add", [x], {}, {"other": torch.zeros(mask.shape).masked_fill(mask, number)})


@handles(aten.index.Tensor)
def index(low: Lowering, x: Any, indices: Sequence[Any]) -> Value:
    """``mask[all of the batch][..., all positions]``, as transformers spread a padding mask."""
    value = low.value(x)
    whole = len(indices) == value.rank == 2
    for axis, places in enumerate(indices):
        whole = whole and isinstance(places, Partial) and [n for n in places.shape if n != 1] == [value.shape[axis]]
        whole = whole and torch.equal(places.full.flatten(), torch.arange(places.full.numel()))
    if not whole:
        raise UnsupportedError("entries are picked one by one")
    for axis in range(1, len(low.shape) - 1):
        value = unsqueeze(low, value, axis)
    return value


@handles(aten.bitwise_and.Tensor, aten.logical_and.default)
def both(low: Lowering, x: Any, y: Any) -> Any:
    """A mask, and one that is true everywhere."""
    mask, other = (x, y) if isinstance(x, Value) else (y, x)
    full = other.full if isinstance(other, Partial) else other
    if not isinstance(full, Tensor) or not bool(full.all()):
        raise UnsupportedError("two masks are combined at run time")
    return mask
