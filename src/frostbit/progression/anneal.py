"""Annealing: quantizers grow harder along the same clock and orders as StoMPP."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from frostbit.errors import UsageError
from frostbit.progression.base import Order, Progression
from frostbit.quantizers import Quantizer
from frostbit.registry import check_choice

def geometric(start: float, end: float, x: float) -> float:
    """Return ``start · (end / start)^x``."""
    return start * float((end / start) ** x)


def linear(start: float, end: float, x: float) -> float:
    """Return ``start + (end − start) · x``."""
    return start + (end - start) * x


def sigmoid(start: float, end: float, x: float) -> float:
    """Return an S-curve from start to end: the logistic function on ±6, with its ends moved to 0 and 1."""
    low, high = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))
    return linear(start, end, (1 / (1 + math.exp(6 - 12 * x)) - low) / (high - low))


SHAPES: dict[str, Callable[[float, float, float], float]] = {
    shape.__name__: shape for shape in (geometric, linear, sigmoid)
}


class Anneal(Progression):
    """Raises the hardness of quantizers from ``start`` to ``end`` inside each unit's window, then makes F hard.

    Args:
        model: a converted model with quantizers that have a hardness (``swish_sign``, ``ede``, your own).
        total_steps: optimizer steps of the run.
        quantity: what is annealed; ``"hardness"``.
        start: hardness before and at the beginning of a window, positive.
        end: hardness at the window's end.
        shape: ``"geometric"``, ``"linear"`` or ``"sigmoid"`` interpolation.
        order: see `Progression`; ``"global"`` by default.
        **options: ``steps_per_unit``, ``tail`` and ``seed`` of `Progression`.

    Raises:
        UsageError: no quantizer of the model has a hardness.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        quantity: str = "hardness",
        start: float = 5.0,
        end: float = 500.0,
        shape: str = "geometric",
        order: Order = "global",
        **options: Any,
    ) -> None:
        super().__init__(model, total_steps, order=order, **options)
        check_choice("quantity", quantity, ["hardness"])
        if not (start > 0 and end > 0):
            raise UsageError(f"start and end must be positive, found {start} and {end}")
        self.start, self.end = start, end
        self.shape = SHAPES[check_choice("shape", shape, SHAPES)]
        self._driven: list[list[Quantizer]] = [
            [quantizer for quantizer in unit.quantizers() if quantizer.hardness is not None] for unit in self.units
        ]
        if not any(self._driven):
            raise UsageError("nothing to anneal: no quantizer of the model has a hardness")
        self._apply_all()

    def _apply(self, index: int, progress: float) -> None:
        over = self.steps_taken >= self.windows[index].stop
        for quantizer in self._driven[index]:
            assert quantizer.hardness is not None
            quantizer.hardness.fill_(self.shape(self.start, self.end, progress))
            quantizer.finished = over

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"start": self.start, "end": self.end}
