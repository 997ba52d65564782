"""Muon: steps on latent kernels that move all of a kernel's directions alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostbit.optim.base import NOT_NEGATIVE, Range, restore_moments

#: of the odd polynomial ``ax + bx³ + cx⁵`` that draws singular values towards 1, steep at 0
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return about ``UVᵀ`` for a matrix ``UΣVᵀ``: its singular values drawn to between 0.7 and 1.2.

    A polynomial of ``X = G / ‖G‖_F`` is iterated, ``X ← aX + b(XXᵀ)X + c(XXᵀ)²X``, which takes matrix products alone.
    Singular values that are small beside the largest stay smaller: the first of 5 iterations lifts them 3.4-fold.

    Args:
        matrix: ``[m, n]``, floating.
        iterations: how often.

    Returns:
        ``[m, n]``; zeros for zeros.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024).
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    least = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax().clamp_min(least)  # squares of a vanishing gradient would underflow
    x = x / x.norm().clamp_min(least)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


class Muon(Optimizer):
    """Nesterov momentum, orthogonalized kernel by kernel, for latent weights: ``W ← W − η √max(m, n) · UVᵀ``.

    A kernel is the matrix ``[m, n]`` of its outputs and all the rest, ``UΣVᵀ`` that of ``(1 − β)G + βM`` with
    ``M ← βM + (1 − β)G``. Of a latent weight only the sign counts, and momentum of binary networks is dominated by few
    directions; here rare ones move signs as well. The factor makes η the root mean square of a step's entries, so
    that kernels of all shapes cross zero at one pace and η compares with Adam's.

    torch's own Muon takes matrices alone; this one takes the kernels of convolutions, in any memory format. It is made
    for binary weights: the rest of a network goes to another optimizer, with `CaseOptimizer`::

        CaseOptimizer(model, {"binary": (Muon, dict(lr=0.02))}, default=(torch.optim.Adam, dict(lr=0.03)))

    Args:
        params: latent kernels of two or more dimensions, the first of them the outputs.
        lr: η ≥ 0.
        momentum: β in [0, 1).

    Raises:
        ValueError: a parameter that is no kernel, or a hyper-parameter outside its range.

    Source: Jordan et al., Muon (2024); the factor: Liu et al., Muon is Scalable for LLM Training (arXiv 2502.16982),
        there with 0.2 in front.
    """

    #: {hyper-parameter: (range in words, test)}
    ranges: ClassVar[dict[str, Range]] = {"lr": NOT_NEGATIVE, "momentum": ("in [0, 1)", lambda x: 0 <= x < 1)}

    def __init__(self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch, after a look at its kernels and hyper-parameters."""
        group = self.defaults | param_group
        if group.get("weight_decay"):
            raise ValueError("Muon leaves the size of latent weights to latent_clip, found weight_decay")
        for name, (words, fits) in self.ranges.items():
            if not fits(group[name]):
                raise ValueError(f"Muon needs {name} to be {words}, found {group[name]!r}")
        super().add_param_group(param_group)  # which lists the parameters
        flat = next((p for p in self.param_groups[-1]["params"] if p.dim() < 2), None)
        if flat is not None:
            self.param_groups.pop()
            raise ValueError(
                f"Muon moves kernels of two or more dimensions, found a parameter of shape {tuple(flat.shape)}: "
                "give it to another optimizer, with CaseOptimizer"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step over all kernels that have a gradient; see `torch.optim.Optimizer.step`.

        A gradient of nothing but zeros counts as none, as it comes from a frozen unit where gradients are not set to
        ``None``: no momentum would die out otherwise, because every step has the same size.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta = group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None or not parameter.grad.any():
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter, dtype=torch.float32)
                momentum = state["momentum_buffer"]
                gradient = parameter.grad.float()
                momentum.lerp_(gradient, 1 - beta)
                matrix = gradient.lerp(momentum, beta).flatten(1)
                move = orthogonalized(matrix).reshape(parameter.shape)
                parameter.add_(move, alpha=-group["lr"] * max(matrix.shape) ** 0.5)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit where ``state_dict`` was saved."""
        super().load_state_dict(state_dict)
        restore_moments(self, state_dict, ("momentum_buffer",))
