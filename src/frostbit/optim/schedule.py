"""Schedules of any hyper-parameter, in the manner of torch's learning-rate schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from frostbit.optim.checks import nearest

#: value of a hyper-parameter by the number of steps taken
Curve = Callable[[int], float]


def linear(start: float, end: float, steps: int) -> Curve:
    """Return ``start + (end − start)·t/steps``, then ``end``.

    Args:
        start: value at the first step.
        end: value after ``steps`` steps and later.
        steps: at least 1.
    """
    return partial(_linear, start, end, _at_least_one(steps))


def exponential(start: float, end: float, steps: int) -> Curve:
    """Return ``start·(end/start)^(t/steps)``, then ``end``; both positive. Arguments as in `linear`."""
    if not (start > 0 and end > 0):
        raise ValueError(f"an exponential schedule needs positive ends, found {start} and {end}")
    return partial(_exponential, start, end, _at_least_one(steps))


def cosine(start: float, end: float, steps: int) -> Curve:
    """Return ``end + (start − end)·(1 + cos(πt/steps))/2``, then ``end``. Arguments as in `linear`."""
    return partial(_cosine, start, end, _at_least_one(steps))


def staircase(start: float, factor: float, every: int) -> Curve:
    """Return ``start·factor^⌊t/every⌋``.

    Args:
        start: value of the first stair.
        factor: what each stair multiplies it by.
        every: steps on a stair, at least 1.
    """
    return partial(_staircase, start, factor, _at_least_one(every))


def _at_least_one(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a schedule needs at least one step, found {steps}")
    return steps


def _linear(start: float, end: float, steps: int, t: int) -> float:
    return end if t >= steps else start + (end - start) * t / steps


def _exponential(start: float, end: float, steps: int, t: int) -> float:
    return end if t >= steps else start * float((end / start) ** (t / steps))


def _cosine(start: float, end: float, steps: int, t: int) -> float:
    return end if t >= steps else end + (start - end) * (1 + math.cos(math.pi * t / steps)) / 2


def _staircase(start: float, factor: float, every: int, t: int) -> float:
    return start * float(factor ** (t // every))


class HyperSchedule(LRScheduler):
    """Moves hyper-parameters in ``param_groups`` along curves; learning rates are left to torch's own schedulers.

    ::

        HyperSchedule(optimizer, gamma=linear(1e-2, 1e-5, steps), threshold=exponential(1e-5, 1e-8, steps))

    Call ``step()`` after each ``optimizer.step()``, beside any other scheduler.

    Args:
        optimizer: a flip optimizer, a `CaseOptimizer`, or any other.
        **curves: hyper-parameter → `linear`, `exponential`, `cosine`, `staircase`, or any function from the number
            of steps taken to a value. It is set in every group that has the hyper-parameter.

    Raises:
        ValueError: no group has that hyper-parameter, or something is no curve. Whether a value is one that the rule
            can have is seen where it is used, at the flip optimizer's next step.
    """

    def __init__(self, optimizer: Optimizer, **curves: Curve) -> None:
        known = sorted({name for group in optimizer.param_groups for name in group} - {"params", "param_names"})
        for name, curve in curves.items():
            if name not in known:
                raise ValueError(f"no parameter group has a hyper-parameter {name!r}: {nearest(name, known)}")
            if not callable(curve):
                raise ValueError(f"{name} needs a curve such as linear(start, end, steps), found {curve!r}")
        self.curves = curves
        super().__init__(optimizer)  # sets the values of step 0

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates as they are."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Advance by one step, or go to step ``epoch``, and set the values there."""
        super().step(epoch)
        self._set()

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            for name, curve in self.curves.items():
                if name in group:
                    group[name] = curve(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken; curves are code and are not saved."""
        return {name: value for name, value in super().state_dict().items() if name != "curves"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the step where ``state_dict`` was saved, with the curves' values there."""
        super().load_state_dict(state_dict)
        self._set()
