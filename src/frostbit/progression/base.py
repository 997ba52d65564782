"""Where and when: units in order, each with a window of optimizer steps, and one clock."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

from torch import Tensor, nn

from frostbit.errors import UsageError
from frostbit.progression.clock import Clock
from frostbit.progression.pace import make_pace
from frostbit.progression.windows import Order, Window, equal_lengths, lay_out, permutation
from frostbit.units import Unit, units


class Progression(Clock):
    """Brings the units of a model from soft to hard, one after another.

    The clock counts optimizer steps that were really taken: `attach` it to the optimizer, or call `step` after each
    one. It depends on nothing else (epochs, batch size, workers) and lives in `state_dict`.

    Args:
        model: a converted model; its units are those of `frostbit.units`.
        total_steps: optimizer steps of the whole run.
        order: ``"forward"`` (input to output), ``"reverse"``, ``"global"`` (all units share one window), or a
            permutation of unit indices or names (`order_by` computes some).
        steps_per_unit: lengths of the windows in the order of freezing; ``None`` splits the steps equally. A unit's
            equal share is the same in every order, so two orders differ in nothing else.
        pace: ``"equal"`` keeps these lengths. With ``"gradient"``, ``"flips"`` or ``"recovery"`` a window's length is
            decided when the one before ends, from what was measured in it, see `frostbit.progression.pace`; the steps
            add up to the same total.
        tail: steps at the end with everything hard: a number of steps, or a share of ``total_steps`` below 1.
        seed: seed of all random draws.

    Raises:
        UsageError: an order that is no permutation, windows that do not fit into ``total_steps``, or a pace where there
            is nothing to decide.
    """

    noun: ClassVar[str] = "progression"

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        order: Order = "forward",
        steps_per_unit: Sequence[int] | None = None,
        pace: str = "equal",
        tail: float = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not _whole(total_steps) or total_steps < 1:
            raise UsageError(f"total_steps must be a whole number of at least 1, found {total_steps!r}")
        total_steps = int(total_steps)  # one of numpy's would go into the state
        self.model = model
        self.units: list[Unit] = units(model)
        self.total_steps = total_steps
        if not _whole(seed):
            raise UsageError(f"seed must be a whole number, found {seed!r}")
        self.seed = int(seed)  # masks are drawn from how it is written, and one of numpy's is written otherwise
        tail_steps = _tail_steps(tail, total_steps)
        names = [unit.name for unit in self.units]
        sequence = [] if order == "global" else permutation(order, names)
        self._pace = make_pace(pace, model, sequence)
        if self._pace is not None and steps_per_unit is not None:
            raise UsageError(f"pace={pace!r} decides the lengths of the windows: steps_per_unit does not apply")
        self._planned = _plan(names, sequence, steps_per_unit, total_steps - tail_steps)
        #: one window for each unit, in the order of the units
        self.windows = self._planned

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

    def _advance(self) -> None:
        before = self.steps_taken
        self.steps_taken += 1
        if self._pace is not None:
            self.windows = self._pace.step(self.windows, before)
        for index, window in enumerate(self.windows):
            if window.start <= self.steps_taken and before < window.stop:  # in transition, or just through
                self._apply(index, window.progress(self.steps_taken))

    def observe(self, loss: Tensor) -> None:
        """Take note of a training loss before the optimizer's step; ``pace="recovery"`` goes by it, others ignore it.

        Args:
            loss: a scalar.
        """
        if self._pace is not None:
            self._pace.observe(loss)

    def _identity(self) -> dict[str, Any]:
        """Return what must agree between a saved and a loading progression."""
        return {
            "kind": type(self).__name__,
            "total_steps": self.total_steps,
            "seed": self.seed,
            "windows": _spans(self._planned),
            "pace": type(self._pace).__name__,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and what a resumed run needs to continue bit for bit."""
        state: dict[str, Any] = {"identity": self._identity(), "steps_taken": self.steps_taken}
        if self._pace is not None:
            state["pace"] = {"windows": _spans(self.windows), "measured": self._pace.state_dict()}
        return state

    def _check(self, state: dict[str, Any]) -> None:
        """Refuse the state of another progression."""
        if "identity" not in state:
            raise UsageError(f"a {self.noun} takes what state_dict() of one gave, found the keys {sorted(state)}")
        mine = self._identity()
        for key, value in state["identity"].items():
            if mine.get(key) != value:
                raise UsageError(f"this progression has {key}={mine.get(key)!r}, the saved one {value!r}")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was saved.

        Raises:
            UsageError: ``state`` belongs to another progression; the message names the first difference.
        """
        self._check(state)
        self.steps_taken = state["steps_taken"]
        if self._pace is not None:
            self.windows = [Window(*span) for span in state["pace"]["windows"]]
            self._pace.load_state_dict(state["pace"]["measured"])
        self._apply_all()


def _whole(number: object) -> bool:
    return isinstance(number, Integral)


def _tail_steps(tail: float, total_steps: int) -> int:
    """Return the steps of a tail that is given as such, or as a share of the run."""
    share = not _whole(tail)
    if share and not 0 <= tail < 1:
        raise UsageError(f"tail must be a whole number of steps, or a share of the run below 1, found {tail!r}")
    steps = round(tail * total_steps) if share else int(tail)
    if not 0 <= steps < total_steps:
        raise UsageError(f"tail must leave steps to freeze in, found {tail} of {total_steps} steps")
    return steps


def _spans(windows: Sequence[Window]) -> list[tuple[str, int, int]]:
    return [(window.unit, window.start, window.stop) for window in windows]


def _plan(names: list[str], sequence: list[int], lengths: Sequence[int] | None, steps: int) -> list[Window]:
    """Return one window for each unit; without a sequence all of them share one."""
    count = len(names)
    if not sequence:
        if lengths is not None:
            raise UsageError("order='global' has one window: steps_per_unit does not apply")
        return [Window(name, 0, steps) for name in names]
    if lengths is None:
        share = equal_lengths(steps, count)
        lengths = [share[index] for index in sequence]
    elif not all(map(_whole, lengths)) or len(lengths) != count or min(lengths) < 1 or sum(lengths) > steps:
        raise UsageError(
            f"steps_per_unit must hold {count} positive whole numbers of sum at most {steps}, "
            f"found {len(lengths)} of sum {sum(lengths)}"
        )
    lengths = [int(length) for length in lengths]
    windows = lay_out(names, sequence, lengths)
    return [windows[index] for index in range(count)]
