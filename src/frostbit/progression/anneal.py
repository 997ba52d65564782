"""Annealing: quantizers grow harder along the same clock and orders as StoMPP."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostbit.errors import UsageError
from frostbit.progression.base import Progression
from frostbit.progression.windows import Order
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

    The usual path of BNN++ is the default with ``tail=0.15``. Its gradient at 0 grows with the hardness; the
    quantizer's ``unit_slope=True`` takes that out.

    Args:
        model: a converted model with quantizers that have a hardness (``bnn++``, ``prox_linear``, your own).
        total_steps: optimizer steps of the run.
        quantity: what is annealed; ``"hardness"``.
        start: hardness before and at the beginning of a window, positive; 5 if left out.
        end: hardness at the window's end; 500 if left out.
        shape: ``"geometric"``, ``"linear"`` or ``"sigmoid"`` interpolation; or ``"sum_lr"``, which has no start and
            end: the forward of step t has hardness ``1 + Σ_{τ<t} η_τ``, the sum of the learning rates of the unit's
            weights over the steps of its window (ProxConnect++'s μ, arXiv 2402.17710). It needs `attach`.
        order: see `Progression`; ``"global"`` by default.
        steps_per_unit: see `Progression`.
        pace: see `Progression`.
        tail: see `Progression`.
        seed: see `Progression`.

    Raises:
        UsageError: no quantizer of the model has a hardness, or ``start`` or ``end`` with ``"sum_lr"``.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        quantity: str = "hardness",
        start: float | None = None,
        end: float | None = None,
        shape: str = "geometric",
        order: Order = "global",
        steps_per_unit: Sequence[int] | None = None,
        pace: str = "equal",
        tail: float = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model, total_steps, order=order, steps_per_unit=steps_per_unit, pace=pace, tail=tail, seed=seed
        )
        check_choice("quantity", quantity, ["hardness"])
        self.shape = check_choice("shape", shape, [*SHAPES, "sum_lr"])
        if shape == "sum_lr" and (start, end) != (None, None):
            raise UsageError(f"shape='sum_lr' starts at 1 and has no end, found start={start} and end={end}")
        self.start, self.end = 5.0 if start is None else start, 500.0 if end is None else end
        if not all(isinstance(end, (int, float)) and 0 < end < math.inf for end in (self.start, self.end)):
            raise UsageError(f"start and end must be positive numbers, found {self.start!r} and {self.end!r}")
        self.start, self.end = float(self.start), float(self.end)
        #: for each unit, the learning rates of its window's steps so far, summed
        self._sums = [0.0] * len(self.units)
        self._rates: list[float] | None = None
        self._driven: list[list[Quantizer]] = [
            [quantizer for quantizer in unit.quantizers() if quantizer.hardness is not None] for unit in self.units
        ]
        if not any(self._driven):
            raise UsageError("nothing to anneal: no quantizer of the model has a hardness")
        self._apply_all()

    def _apply(self, index: int, progress: float) -> None:
        over = self.steps_taken >= self.windows[index].stop
        summed = self.shape == "sum_lr"
        hardness = 1 + self._sums[index] if summed else SHAPES[self.shape](self.start, self.end, progress)
        for quantizer in self._driven[index]:
            assert quantizer.hardness is not None
            quantizer.hardness.fill_(hardness)
            quantizer.finished = over

    def _on_step(self, optimizer: Optimizer, *arguments: Any) -> None:
        if self.shape == "sum_lr":
            rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
            first = next(iter(rates.values()))  # for a unit none of whose weights is in this optimizer
            latents = [[id(latent) for _, latent, _ in unit.weight_quantizers()] for unit in self.units]
            self._rates = [next((rates[i] for i in ids if i in rates), first) for ids in latents]
        super()._on_step(optimizer, *arguments)

    def _advance(self) -> None:
        if self.shape == "sum_lr":
            if self._rates is None:
                raise RuntimeError("shape='sum_lr' sums learning rates: attach the progression to the optimizer")
            for index, window in enumerate(self.windows):
                if window.start <= self.steps_taken < window.stop:
                    self._sums[index] += self._rates[index]
            self._rates = None
        super()._advance()

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"shape": self.shape, "start": self.start, "end": self.end}

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and, for ``"sum_lr"``, the sums."""
        return super().state_dict() | {"sums": [*self._sums]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was saved; see `Progression.load_state_dict`."""
        super().load_state_dict(state)
        self._sums = [*state["sums"]]
        self._apply_all()
