"""Where and when: units in order, each with a window of optimizer steps, and one clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.signals import took_step
from frostbit.units import Unit, units

Order = str | Sequence[int] | Sequence[str]
_ORDERS = ("forward", "reverse", "global")


@dataclass(frozen=True)
class Window:
    """The steps ``start ≤ t < stop`` in which one unit is in transition."""

    unit: str
    start: int
    stop: int

    def progress(self, step: int) -> float:
        """Return the share of the window done by the forward of ``step``, in [0, 1].

        The forward of the window's local step j is at ``(j + 1) / T``, so its last forward is at 1.
        """
        return min(max((step - self.start + 1) / (self.stop - self.start), 0.0), 1.0)


class Progression(ABC):
    """Brings the units of a model from soft to hard, one after another.

    The clock counts optimizer steps that were really taken: `attach` it to the optimizer, or call `step` after each
    one. It depends on nothing else (epochs, batch size, workers) and lives in `state_dict`.

    Args:
        model: a converted model; its units are those of `frostbit.units`.
        total_steps: optimizer steps of the whole run.
        order: ``"forward"`` (input to output), ``"reverse"``, ``"global"`` (all units share one window), or a
            permutation of unit indices or names.
        steps_per_unit: lengths of the windows in the order of freezing; ``None`` splits the steps equally.
        tail: steps at the end with everything hard: a number of steps, or a share of ``total_steps`` below 1.
        seed: seed of all random draws.

    Raises:
        UsageError: an order that is no permutation, or windows that do not fit into ``total_steps``.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        order: Order = "forward",
        steps_per_unit: Sequence[int] | None = None,
        tail: float = 0,
        seed: int = 0,
    ) -> None:
        given: object = total_steps
        if not isinstance(given, Integral) or total_steps < 1:
            raise UsageError(f"total_steps must be a whole number of at least 1, found {given!r}")
        total_steps = int(total_steps)  # one of numpy's would go into the state
        self.model = model
        self.units: list[Unit] = units(model)
        self.total_steps = total_steps
        self.seed = seed
        self.steps_taken = 0
        self._handle: RemovableHandle | None = None
        tail_steps = round(tail * total_steps) if 0 < tail < 1 else int(tail)
        if not 0 <= tail_steps < total_steps:
            raise UsageError(f"tail must leave steps to freeze in, found {tail} of {total_steps} steps")
        #: one window for each unit, in the order of the units
        self.windows = self._windows(order, steps_per_unit, total_steps - tail_steps)

    def _windows(self, order: Order, lengths: Sequence[int] | None, steps: int) -> list[Window]:
        names = [unit.name for unit in self.units]
        count = len(names)
        if order == "global":
            if lengths is not None:
                raise UsageError("order='global' has one window: steps_per_unit does not apply")
            return [Window(name, 0, steps) for name in names]
        sequence = _permutation(order, names)
        if lengths is None:
            if steps < count:
                raise UsageError(f"{steps} steps are too few for {count} units, which need at least one step each")
            ends = [round((i + 1) * steps / count) for i in range(count)]
        else:
            if len(lengths) != count or min(lengths) < 1 or sum(lengths) > steps:
                raise UsageError(
                    f"steps_per_unit must hold {count} positive numbers of sum at most {steps}, "
                    f"found {len(lengths)} of sum {sum(lengths)}"
                )
            ends = [sum(lengths[: i + 1]) for i in range(count)]
        windows = [Window("", 0, 0)] * count
        for position, index in enumerate(sequence):
            windows[index] = Window(names[index], ends[position - 1] if position else 0, ends[position])
        return windows

    @abstractmethod
    def _apply(self, index: int, progress: float) -> None:
        """Bring unit ``index`` to ``progress`` in [0, 1] for the forward of the present step."""

    def _apply_all(self) -> None:
        for index, window in enumerate(self.windows):
            self._apply(index, window.progress(self.steps_taken))

    @property
    def done(self) -> bool:
        """Whether every window lies behind: everything is hard, and nothing changes any more."""
        return all(self.steps_taken >= window.stop for window in self.windows)

    def step(self) -> None:
        """Advance the clock by one optimizer step and prepare the next forward.

        Raises:
            RuntimeError: the progression is attached to an optimizer, which already does this.
        """
        if self._handle is not None:
            raise RuntimeError("this progression is attached to an optimizer, which steps it: do not call step() too")
        self._advance()

    def _advance(self) -> None:
        before = self.steps_taken
        self.steps_taken += 1
        for index, window in enumerate(self.windows):
            if window.start <= self.steps_taken and before < window.stop:  # in transition, or just through
                self._apply(index, window.progress(self.steps_taken))

    def attach(self, optimizer: Optimizer) -> Self:
        """Let the optimizer's steps drive the clock; a step that AMP skips does not count.

        Args:
            optimizer: any torch optimizer.

        Returns:
            The progression itself.

        Raises:
            RuntimeError: it is attached already.
        """
        if self._handle is not None:
            raise RuntimeError("this progression is attached to an optimizer already: detach() it first")
        self._handle = optimizer.register_step_post_hook(self._on_step)
        return self

    def detach(self) -> None:
        """Undo `attach`."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _on_step(self, optimizer: Optimizer, *_: Any) -> None:
        if took_step(optimizer):
            self._advance()

    def _identity(self) -> dict[str, Any]:
        """Return what must agree between a saved and a loading progression."""
        return {
            "kind": type(self).__name__,
            "total_steps": self.total_steps,
            "seed": self.seed,
            "windows": [(w.unit, w.start, w.stop) for w in self.windows],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and what a resumed run needs to continue bit for bit."""
        return {"identity": self._identity(), "steps_taken": self.steps_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was saved.

        Raises:
            UsageError: ``state`` belongs to another progression; the message names the first difference.
        """
        mine = self._identity()
        for key, value in state["identity"].items():
            if mine.get(key) != value:
                raise UsageError(f"this progression has {key}={mine.get(key)!r}, the saved one {value!r}")
        self.steps_taken = state["steps_taken"]
        self._apply_all()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the optimizer's hook behind: a copy drives nothing until it is attached."""
        return {**self.__dict__, "_handle": None}


def _permutation(order: Order, names: list[str]) -> list[int]:
    count = len(names)
    if isinstance(order, str):
        if order not in _ORDERS:
            raise UsageError(f"unknown order {order!r}: {nearest(order, _ORDERS)} (or a permutation of the units)")
        return list(range(count)) if order == "forward" else list(range(count - 1, -1, -1))
    indices = []
    for item in order:
        if isinstance(item, str) and item not in names:
            raise UsageError(f"order names no unit {item!r}: {nearest(item, names)}")
        indices.append(names.index(item) if isinstance(item, str) else item)
    if not all(isinstance(index, int) for index in indices) or sorted(indices) != list(range(count)):
        raise UsageError(f"order must name each of the {count} units once, found {list(order)}")
    return indices
