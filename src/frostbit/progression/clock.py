"""The clock: counts the optimizer steps that were really taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from frostbit.errors import UsageError
from frostbit.signals import took_step


class Clock(ABC):
    """What moves with an optimizer's steps: `attach` it to the optimizer, or call `step` after each one.

    It depends on nothing else (epochs, batch size, workers).
    """

    #: what it is called in messages
    noun: ClassVar[str] = "clock"
    #: the model it acts on
    model: nn.Module

    def __init__(self) -> None:
        self.steps_taken = 0
        self._handle: RemovableHandle | None = None

    @abstractmethod
    def _advance(self) -> None:
        """Count one step and prepare the next forward."""

    def step(self) -> None:
        """Advance the clock by one optimizer step and prepare the next forward.

        Raises:
            RuntimeError: it is attached to an optimizer, which already does this.
        """
        if self._handle is not None:
            raise RuntimeError(f"this {self.noun} is attached to an optimizer, which steps it: do not call step() too")
        self._advance()

    def attach(self, optimizer: Optimizer) -> Self:
        """Let the optimizer's steps drive the clock; a step that AMP skips does not count.

        Args:
            optimizer: any torch optimizer; of a wrapper such as accelerate's or Lightning's, the one inside is taken.

        Returns:
            The object itself.

        Raises:
            RuntimeError: it is attached already.
            UsageError: the optimizer trains another model.
        """
        if self._handle is not None:
            raise RuntimeError(f"this {self.noun} is attached to an optimizer already: detach() it first")
        optimizer = getattr(optimizer, "optimizer", optimizer)
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        own = [id(parameter) for parameter in self.model.parameters()]
        if own and trained.isdisjoint(own):
            raise UsageError(
                f"this {self.noun} acts on a model of which the optimizer trains no parameter: "
                "was either made for a copy of it?"
            )
        self._handle = optimizer.register_step_post_hook(self._on_step)
        return self

    def detach(self) -> None:
        """Undo `attach`."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @property
    def attached(self) -> bool:
        """Whether an optimizer's steps drive it."""
        return self._handle is not None

    def _on_step(self, optimizer: Optimizer, *_: Any) -> None:
        if took_step(optimizer):
            self._advance()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the optimizer's hook behind: a copy drives nothing until it is attached."""
        return {**self.__dict__, "_handle": None}
