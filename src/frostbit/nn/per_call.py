"""A module that is called several times in a forward pass, where each call needs a module of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frostbit.errors import UsageError


class PerCall(nn.Module):
    """One module that was called several times in a forward pass, as one module for each call in turn."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.calls = nn.ModuleList(modules)
        self.next, self.inside = 0, False

    def follow(self, model: nn.Module, places: Sequence[str]) -> list[Callable[[], None]]:
        """Watch the passes of a model, and of the part that holds all the places of the module it stands for.

        Args:
            model: the model.
            places: names of the module in it.

        Returns:
            What undoes this.
        """
        owners = zip(*(place.split(".")[:-1] for place in places), strict=False)
        common = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, owners)]
        holder = model.get_submodule(".".join(common))
        hooks = [model.register_forward_pre_hook(self.restart), holder.register_forward_pre_hook(self.enter)]
        return [hook.remove for hook in (*hooks, holder.register_forward_hook(self.leave))]

    def restart(self, *_: Any) -> None:
        """Begin with the first again; a pre-hook of the whole model, in case a pass was cut short."""
        self.next = 0

    def enter(self, *_: Any) -> None:
        """Take note that the part of the model that holds it runs; recomputed or run by itself, it begins anew."""
        self.inside = True
        if _in_backward() or self.next == len(self.calls):
            self.next = 0

    def leave(self, *_: Any) -> None:
        """Take note that this part is through."""
        self.inside = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the result of the module whose turn it is.

        Raises:
            UsageError: it is called more often than in the pass that was traced, or recomputed in pieces.
        """
        if self.inside and self.next == len(self.calls):
            raise self._refusal("one more comes, from a training-only branch say")
        if not self.inside and _in_backward():
            raise self._refusal("activation checkpointing repeats some of them")
        module = self.calls[self.next % len(self.calls)]  # a part of the model may be called by itself
        self.next = self.next % len(self.calls) + 1
        y: Tensor = module(x)
        return y

    def _refusal(self, why: str) -> UsageError:
        return UsageError(
            f"one activation module stands for {len(self.calls)} calls, told apart by their order, and {why}: "
            "give each call a module of its own"
        )


def _in_backward() -> bool:
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
