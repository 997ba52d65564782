"""The flip rules by name, and what their tests share."""

from collections.abc import Callable

import torch
from torch import nn

from frostbit.optim import CEMA, SGDAT, Bop, Bop2ndOrder, FlipOptimizer

RULES: dict[str, Callable[..., FlipOptimizer]] = {"bop": Bop, "bop2ndorder": Bop2ndOrder, "cema": CEMA, "sgdat": SGDAT}


def signs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter((torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(dtype))


def take(optimizer: FlipOptimizer, parameter: nn.Parameter, *gradients: list[float]) -> list[list[float]]:
    """Step once for each gradient and return the weights after each."""
    seen = []
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)
        optimizer.step()
        seen.append(parameter.tolist())
    return seen
