"""Pace: how long the next window is, decided from what was measured in the one that ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostbit.errors import UsageError
from frostbit.progression.windows import Window, equal_lengths, lay_out
from frostbit.registry import check_choice
from frostbit.signals import SignFlips
from frostbit.units import Unit, units

#: a window is at most so many times as long, or as short, as an equal share of the steps that are left
BOUND = 2.0


class Pace(ABC):
    """Gives the next unit its share of the steps that are left, ``w₀ / Σw`` over the units that are left.

    The weight w of a unit is 1 on average and lies in [1/2, 2]. What is measured is averaged over all processes, so
    that they decide alike; the last unit takes what remains, so the steps add up exactly.

    Args:
        model: the converted model.
        sequence: indices of its units in the order of freezing.
    """

    def __init__(self, model: nn.Module, sequence: Sequence[int]) -> None:
        self.model = model
        self.units = units(model)
        self.sequence = list(sequence)

    def step(self, windows: list[Window], step: int) -> list[Window]:
        """Measure after the optimizer's step number ``step``, and plan anew if a window ends with it.

        Args:
            windows: of all units, as planned so far.
            step: the step just taken, from 0.

        Returns:
            The windows. Those of the units that are left follow each other from ``step + 1`` on: the next one with the
            length that the measurement gives it, the others in equal shares until their turn comes.
        """
        place = next((k for k, i in enumerate(self.sequence) if windows[i].start <= step < windows[i].stop), None)
        left = [] if place is None else self.sequence[place + 1 :]
        if place is None or len(left) < 2:  # nothing is left to decide
            return windows
        window = windows[self.sequence[place]]
        self.measure(left, (step - window.start) / (window.stop - window.start))
        if step + 1 < window.stop:
            return windows
        weights = self.weights(left)
        self.restart()
        steps = windows[left[-1]].stop - window.stop
        # never so long that another unit would be left without a step
        length = min(max(1, round(steps * weights[0] / sum(weights))), steps - len(left) + 1)
        lengths = [length, *equal_lengths(steps - length, len(left) - 1)]
        planned = lay_out([unit.name for unit in self.units], left, lengths, window.stop)
        return [planned.get(index, old) for index, old in enumerate(windows)]

    def over_ranks(self, values: Tensor) -> Tensor:
        """Return the mean of a measurement over all processes: each has losses, and may have shards, of its own."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return values
        mean = values.to(_device(self.units), torch.float64, copy=True)
        torch.distributed.all_reduce(mean)
        return mean / torch.distributed.get_world_size()

    def observe(self, loss: Tensor) -> None:
        """Take note of a training loss; see `Progression.observe`."""
        return

    @abstractmethod
    def measure(self, left: Sequence[int], done: float) -> None:
        """Measure after one optimizer step.

        Args:
            left: units whose windows are yet to come.
            done: share of the present window before that step, in [0, 1).
        """

    @abstractmethod
    def weights(self, left: Sequence[int]) -> list[float]:
        """Return the weight w of each unit that is left, the same on all processes."""

    def restart(self) -> None:
        """Begin the measurement of the next window."""
        return

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


class GradientPace(Pace):
    """``w ∝`` the norm of the gradient of a unit's latent weights, the root of its mean square over the window.

    Where the gradient is large the weights are still on their way, and get more time before they are committed. The
    gradients must still be there when the clock advances: in a loop of one's own, `step` before ``zero_grad``.
    """

    def __init__(self, model: nn.Module, sequence: Sequence[int]) -> None:
        super().__init__(model, sequence)
        self._squares = torch.zeros(len(self.units), device=_device(self.units))

    def measure(self, left: Sequence[int], done: float) -> None:
        """Add the squared norms of the gradients that the optimizer has just used."""
        for index in left:
            gradients = [_local(p.grad) for _, p, _ in self.units[index].weight_quantizers() if p.grad is not None]
            for norm in torch._foreach_norm(gradients) if gradients else ():
                self._squares[index] += norm.float().square()

    def weights(self, left: Sequence[int]) -> list[float]:
        """Return the norms relative to their mean."""
        norms = self.over_ranks(self._squares).sqrt().tolist()
        return relative([norms[i] if any(True for _ in self.units[i].weight_quantizers()) else None for i in left])

    def restart(self) -> None:
        """Forget the sums."""
        self._squares.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {"squares": self._squares.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the sums."""
        self._squares.copy_(state["squares"])


class FlipPace(Pace):
    """``w ∝`` the share of a unit's latent weights whose sign at the window's end is not that at its start.

    Signs that still change would be committed too early.
    """

    _flips: SignFlips | None = None

    def measure(self, left: Sequence[int], done: float) -> None:
        """Keep the signs after the run's first step."""
        if self._flips is None:
            self._flips = SignFlips(self.model)

    def weights(self, left: Sequence[int]) -> list[float]:
        """Return the shares of changed signs relative to their mean; the present signs are the next ones to compare."""
        assert self._flips is not None
        shares = self.over_ranks(self._flips.take()).tolist()
        return relative([None if math.isnan(shares[index]) else shares[index] for index in left])

    def state_dict(self) -> dict[str, Any]:
        """Return the signs at the window's start."""
        return {"flips": None if self._flips is None else self._flips.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the signs."""
        self._flips = None if state["flips"] is None else SignFlips(self.model)
        if self._flips is not None:
            self._flips.load_state_dict(state["flips"])


class RecoveryPace(Pace):
    """``w = 2^(2d − 1)``, where d is the share of the window in which the loss lay above its level before the window.

    A unit whose freezing lifts the training loss for the whole window (d = 1) says that the pace is too fast; one whose
    dip is over at once (d = 0) that it could be faster. The level is the mean loss over the last tenth of the window
    before; the window itself is looked at in ten parts. After the first window w is 1.
    """

    PARTS = 10

    def __init__(self, model: nn.Module, sequence: Sequence[int]) -> None:
        super().__init__(model, sequence)
        device = _device(self.units)
        self._sums = torch.zeros(self.PARTS, device=device)
        self._counts = [0] * self.PARTS
        self._pending, self._observed = torch.zeros((), device=device), 0
        self._level: float | None = None

    def observe(self, loss: Tensor) -> None:
        """Add a loss; several before one optimizer step (gradient accumulation) count together."""
        self._pending = self._pending + loss.detach().to(self._pending)
        self._observed += 1

    def measure(self, left: Sequence[int], done: float) -> None:
        """Put the losses of the step into the part of the window that it belongs to."""
        if not self._observed:
            raise RuntimeError(
                "pace='recovery' measures the training loss: call progression.observe(loss) at each step"
            )
        part = int(done * self.PARTS)
        self._sums[part] += self._pending
        self._counts[part] += self._observed
        self._pending, self._observed = torch.zeros_like(self._pending), 0

    def weights(self, left: Sequence[int]) -> list[float]:
        """Return ``2^(2d − 1)`` for the next unit and 1 for those behind it."""
        sums = self.over_ranks(self._sums).tolist()
        means = [total / count for total, count in zip(sums, self._counts, strict=True) if count]
        before, self._level = self._level, means[-1]
        if before is None:
            return [1.0] * len(left)
        above = sum(mean > before for mean in means) / len(means)
        return [BOUND ** (2 * above - 1), *[1.0] * (len(left) - 1)]

    def restart(self) -> None:
        """Empty the parts; the level stays."""
        self._sums.zero_()
        self._counts = [0] * self.PARTS

    def state_dict(self) -> dict[str, Any]:
        """Return the parts, the level and what was observed since the last step."""
        return {
            "sums": self._sums.cpu().clone(),
            "counts": [*self._counts],
            "pending": (self._pending.cpu().clone(), self._observed),
            "level": self._level,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._sums.copy_(state["sums"])
        self._counts = [*state["counts"]]
        pending, self._observed = state["pending"]
        self._pending = pending.to(self._pending)
        self._level = state["level"]


PACES: dict[str, type[Pace] | None] = {
    "equal": None,
    "gradient": GradientPace,
    "flips": FlipPace,
    "recovery": RecoveryPace,
}


def make_pace(name: str, model: nn.Module, sequence: Sequence[int]) -> Pace | None:
    """Return the pace ``name``, ``None`` for ``"equal"``.

    Raises:
        UsageError: an unknown name, or all units in one window.
    """
    kind = PACES[check_choice("pace", name, PACES)]
    if kind is not None and not sequence:
        raise UsageError(f"order='global' has one window: pace={name!r} has nothing to decide")
    return None if kind is None else kind(model, sequence)


def relative(values: Sequence[float | None]) -> list[float]:
    """Return values over their mean, held in [1/2, 2]; 1 where there is no value, only zeros, or an infinite one."""
    known = [value for value in values if value is not None]
    mean = sum(known) / max(1, len(known))
    if not 0 < mean < math.inf:
        return [1.0] * len(values)
    return [1.0 if value is None else min(max(value / mean, 1 / BOUND), BOUND) for value in values]


def _device(units: Sequence[Unit]) -> torch.device:
    parameters = (parameter for unit in units for _, parameter, _ in unit.weight_quantizers())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, and any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part
