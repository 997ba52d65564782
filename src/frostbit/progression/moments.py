"""The optimizer's memory of a unit when it freezes: kept, reset or rescaled, and what its steps then look like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from frostbit.errors import UsageError
from frostbit.progression.base import Progression
from frostbit.quantizers import Masked
from frostbit.registry import check_choice
from frostbit.signals import took_step

ACTIONS = ("keep", "reset", "rescale")
MOMENTS_AT = ("start", "end", "both")


class Moments:
    """Acts on the moments of a unit's latent weights when its window starts or ends, behind the optimizer's step.

    Freezing changes a weight's gradient at once (to 0, or to a surrogate's), and the moments follow at their own time
    constants: 1/(1 − μ) steps for momentum, 1/(1 − β₂) for Adam's second moment. ``"reset"`` forgets them, as before
    the first step: momentum starts at the next gradient g, Adam's bias correction begins anew, so that its next step is
    ``lr · sign(g)``. ``"rescale"`` (Adam, AdamW) brings a tensor's second moment v to the size of the gradient that the
    last step used and keeps the direction and size of the steps: ``v ← c·v``, ``m ← √c·m`` with
    ``c = mean(g²) / mean(v̂)``; without a gradient nothing happens.

    Args:
        progression: attached to ``optimizer`` already.
        optimizer: torch's SGD, Adam or AdamW, or a `frostbit.optim.ProxConnect` over one.
        action: ``"reset"``, ``"rescale"``, or ``"keep"``, which does nothing.
        at: ``"start"`` of the windows, their ``"end"``, or ``"both"``.

    Raises:
        UsageError: another optimizer, ``"rescale"`` with SGD, or a progression that is not attached yet.
    """

    def __init__(
        self, progression: Progression, optimizer: Optimizer, action: str = "reset", at: str = "start"
    ) -> None:
        self.progression = progression
        self.optimizer = checked(optimizer)
        self.action = check_choice("action", action, ACTIONS)
        self.at = check_choice("at", at, MOMENTS_AT)
        if action == "rescale" and isinstance(self.optimizer, SGD):
            raise UsageError("SGD has no second moment to rescale: expected action='reset' or 'keep', found 'rescale'")
        if not progression.attached:  # hooks run in the order in which they came, and the clock must be first
            raise UsageError("attach the progression to the optimizer before its moments are followed")
        self._seen = progression.steps_taken
        self._handle = optimizer.register_step_post_hook(self._on_step)

    def detach(self) -> None:
        """Leave the optimizer alone from here on."""
        self._handle.remove()

    def _on_step(self, optimizer: Optimizer, *_: Any) -> None:
        now = self.progression.steps_taken
        if self.action == "keep" or now == self._seen or not took_step(optimizer):
            return
        self._seen = now
        for unit, window in zip(self.progression.units, self.progression.windows, strict=True):
            starts = now == window.start and self.at != "end"
            ends = now == window.stop and self.at != "start"
            if starts or ends:
                for weight in unit.weight_quantizers():
                    self._act(weight[1])

    @torch.no_grad()
    def _act(self, parameter: nn.Parameter) -> None:
        state = self.optimizer.state.get(parameter)
        if not state:
            return
        if self.action == "reset":
            del self.optimizer.state[parameter]  # made anew by the next step
        elif parameter.grad is not None:
            group = _group_of(self.optimizer, parameter)
            size = parameter.grad.square().mean() * (1 - group["betas"][1] ** state["step"])
            factor = size / state["exp_avg_sq"].mean()
            factor = torch.where(factor.isfinite() & (factor > 0), factor, 1.0)
            state["exp_avg"].mul_(factor.sqrt())
            for name in ("exp_avg_sq", "max_exp_avg_sq"):
                if name in state:
                    state[name].mul_(factor)


def step_sizes(progression: Progression, optimizer: Optimizer) -> dict[str, float]:
    """Return how far the optimizer moves frozen and unfrozen latent weights of the units in transition.

    Args:
        progression: a `StoMPP`.
        optimizer: torch's SGD, Adam or AdamW, or a `frostbit.optim.ProxConnect` over one.

    Returns:
        Means over entries: ``rate/open`` and ``rate/frozen``, the effective rate ``lr / (√v̂ + ε)`` on an entry's
        first moment (``lr`` for SGD), where stale second moments show; ``update/open`` and ``update/frozen``, the
        magnitude of the last step without weight decay. Empty between windows and before the first step.
    """
    optimizer = checked(optimizer)
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with torch.no_grad():
        for parameter, mask in _in_transition(progression):
            state = optimizer.state.get(parameter)
            if parameter.grad is None or state is None:
                continue
            rate, update = _last_step(_group_of(optimizer, parameter), state, parameter.grad)
            for side, chosen in (("open", ~mask), ("frozen", mask)):
                if chosen.any():
                    for name, values in (("rate", rate), ("update", update.abs())):
                        key = f"{name}/{side}"
                        totals[key] = totals.get(key, torch.zeros(())) + values[chosen].sum().cpu()
                        counts[key] = counts.get(key, 0) + int(chosen.sum())
    return {key: totals[key].item() / counts[key] for key in sorted(totals)}


def checked(optimizer: Optimizer) -> Optimizer:
    """Return the torch optimizer whose moments are known here, inside a ProxConnect too.

    Raises:
        UsageError: it is another one.
    """
    inner = getattr(optimizer, "inner", optimizer)
    if not isinstance(inner, (SGD, Adam, AdamW)):
        raise UsageError(f"moments of SGD, Adam or AdamW can be followed, found {type(optimizer).__name__}")
    return inner


def _in_transition(progression: Progression) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for unit in progression.units:
        for _, parameter, quantizer in unit.weight_quantizers():
            if isinstance(quantizer, Masked) and quantizer.stage == "mixed" and quantizer.mask is not None:
                yield parameter, quantizer.mask


def _group_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    groups: Iterable[dict[str, Any]] = optimizer.param_groups
    return next(group for group in groups if any(p is parameter for p in group["params"]))


def _last_step(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return (effective rate, step) for each entry, from the state as the step left it."""
    lr = group["lr"]
    if "betas" not in group:
        buffer = state.get("momentum_buffer")
        direction = gradient if buffer is None else buffer
        if buffer is not None and group["nesterov"]:
            direction = gradient + group["momentum"] * buffer
        return torch.full_like(direction, float(lr)), direction * lr
    beta1, beta2 = group["betas"]
    second = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
    rate = lr / (second.sqrt() + group["eps"])
    return rate, rate * state["exp_avg"] / (1 - beta1 ** state["step"])
