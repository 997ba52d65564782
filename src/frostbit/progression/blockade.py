"""A blockade: for some steps no gradient passes a chosen unit's input."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from frostbit.errors import UsageError
from frostbit.progression.clock import Clock
from frostbit.registry import nearest
from frostbit.units import units


class Blockade(Clock):
    """Detaches what passes one unit's input in the steps ``start ≤ t < stop``, and changes no value.

    That is what a committed binary activation does to STE-free training, here without the commitment: an experiment
    that separates the two. What a real shortcut carries around the unit still passes.

    Args:
        model: a converted model; make its progression first, if there is one.
        unit: name of a unit that has an input quantizer, see `frostbit.units`.
        start: the first blocked step.
        stop: the step behind the last blocked one.

    Raises:
        UsageError: no such unit, one without an input quantizer, or no step in between.
    """

    noun: ClassVar[str] = "blockade"

    def __init__(self, model: nn.Module, unit: str, start: int, stop: int) -> None:
        super().__init__()
        names = [found.name for found in units(model) if found.input_quantizer is not None]
        if unit not in names:
            raise UsageError(f"a blockade needs a unit with an input quantizer, found {unit!r}: {nearest(unit, names)}")
        if not 0 <= start < stop:
            raise UsageError(f"a blockade needs steps 0 <= start < stop, found start={start} and stop={stop}")
        self.model, self.unit, self.start, self.stop = model, unit, start, stop
        self._apply()

    @property
    def active(self) -> bool:
        """Whether the present step is blocked."""
        return self.start <= self.steps_taken < self.stop

    def _apply(self) -> None:
        self._set(self.active)

    def _set(self, shut: bool) -> None:
        # asked for anew each time: a progression may have put another quantizer there
        quantizer = next(unit.input_quantizer for unit in units(self.model) if unit.name == self.unit)
        assert quantizer is not None
        quantizer.shut = shut

    def _advance(self) -> None:
        self.steps_taken += 1
        self._apply()

    def detach(self) -> None:
        """Undo `attach`, and let gradients pass again."""
        super().detach()
        self._set(False)

    def state_dict(self) -> dict[str, Any]:
        """Return the clock, and where and when the blockade is."""
        return {
            "steps_taken": self.steps_taken,
            "identity": {"unit": self.unit, "start": self.start, "stop": self.stop},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was saved.

        Raises:
            UsageError: ``state`` belongs to another blockade.
        """
        mine = self.state_dict()["identity"]
        if state["identity"] != mine:
            raise UsageError(f"this blockade is {mine}, the saved one {state['identity']}")
        self.steps_taken = state["steps_taken"]
        self._apply()
