"""What may move which weight: direct weights and flip optimizers need each other.

Nothing of the library's layers is imported here. A layer with binary weights is known by its method ``latents()``,
which yields (name, parameter, quantizer), and a direct weight by its quantizer's attribute ``direct``.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer

from frostbit.optim.base import FlipOptimizer


def binary_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yield (name, parameter, whether it is direct) of each binary weight, as often as layers share it."""
    for path, module in model.named_modules():
        latents = getattr(module, "latents", None)
        if callable(latents):
            for name, parameter, quantizer in latents():
                yield f"{path}.{name}" if path else name, parameter, bool(getattr(quantizer, "direct", False))


def check_pairing(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise if an optimizer holds a binary weight of the model that it cannot move.

    Args:
        model: the model; a float one passes.
        optimizer: any torch optimizer.

    Raises:
        ValueError: a flip optimizer holds a latent weight, or another optimizer a direct one; the message names both.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    rule = type(optimizer).__name__
    for name, parameter, direct in binary_weights(model):
        if id(parameter) not in held or isinstance(optimizer, FlipOptimizer) == direct:
            continue
        if direct:
            raise ValueError(
                f"{rule} cannot move {name!r}: it is a direct weight, always -1 or +1, which only flip optimizers "
                "move (Bop, Bop2ndOrder, CEMA, SGDAT)"
            )
        raise ValueError(
            f'{rule} cannot move {name!r}: it is a latent weight; binarize with weight="direct" for flip optimizers'
        )
