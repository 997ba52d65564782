"""Signs that say nothing: inputs of binary layers that are never negative, whatever the network sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostbit.errors import UsageError
from frostbit.graph import run_quietly
from frostbit.nn import Binarizer, BinaryLayer
from frostbit.units import Unit

#: a layer that takes the sign of more constant channels than of others mostly adds up what a bias could hold
_MOST = 0.5
#: values of a channel from which its sign is called constant: one that is negative once in a hundred is then found
_SURE = 1000
#: values of a channel below which nothing at all is said of it
_FEW = 16


def look_at_signs(model: nn.Module, batch: Any, units: Sequence[Unit]) -> dict[str, float]:
    """Return how much of what each quantizer reads is never negative, and refuse what leaves a layer nothing to do.

    A channel keeps one sign by chance where samples are few or alike, +1 as often as −1. What an activation that is
    never negative adds is +1 alone, so the share is that of the channels that are never negative less that of those
    always negative. Batch norms take the batch's statistics, as in training: at their initial ones they would hand a
    ReLU's signs on.

    Args:
        model: a converted model.
        batch: an example input.
        units: the model's, with their feature shapes.

    Returns:
        {layer or activation: share of its input's channels, from 5 % on}.

    Raises:
        UsageError: a whole input has one sign, or more than half of its channels are never negative in at least a
            thousand values each.
    """
    features = {id(unit.input_quantizer): unit.feature_shape for unit in units}
    shares: dict[str, float] = {}
    with _norms_of_the_batch(model), ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, (BinaryLayer, Binarizer)) and module.input_quantizer is not None:
                dims = len(features.get(id(module.input_quantizer)) or (1,))

                def look(
                    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name, dims: int = dims
                ) -> None:
                    for x in _read(module, args, kwargs):
                        share = _share(name, (x >= 0).movedim(x.dim() - dims, 0).flatten(1))
                        shares[name] = max(share, shares.get(name, 0.0))

                stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        run_quietly(model, batch)
    return {name: share for name, share in shares.items() if share >= 0.05}


def _read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    if not isinstance(module, nn.MultiheadAttention):
        return [next(iter((*args, *kwargs.values())))]
    operands = ("query", "key", "value")
    named = dict(zip(operands, args, strict=False)) | kwargs
    return [named[operand] for operand in operands]


def _share(name: str, positive: Tensor) -> float:
    """Return the share for one input, as booleans of shape ``[channels, values]``."""
    if positive.numel() > 1 and torch.equal(positive.any(), positive.all()):
        raise UsageError(
            f"the binarized input of {name!r} is constant on the example batch, so nothing passes it: "
            "is it the output of an activation that is never negative?"
        )
    if positive.shape[1] < _FEW:
        return 0.0
    share = (positive.all(1).float().mean() - (~positive).all(1).float().mean()).item()
    if share > _MOST and positive.shape[1] >= _SURE:
        raise UsageError(
            f"{share:.1%} of the channels that {name!r} takes the sign of are never negative on the example batch, so "
            "little passes it: do they come from activations that are never negative?"
        )
    return share


@contextmanager
def _norms_of_the_batch(model: nn.Module) -> Iterator[None]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]

    def from_batch(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        norm.training = args[0].numel() > args[0].shape[1]

    handles = [norm.register_forward_pre_hook(from_batch) for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False  # and so leaves the running ones alone
        yield
    finally:
        for norm, handle in zip(norms, handles, strict=True):
            norm.track_running_stats = True
            handle.remove()
