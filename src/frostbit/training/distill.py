"""Distillation: what the float network answers, and what it attends to on the way, as further targets."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostbit.errors import UsageError
from frostbit.registry import check_choice, nearest


def attention(x: Tensor) -> Tensor:
    """Return where a feature is large, ``Σ_c x_c²``, flat and of length 1: ``[N, C, H, W] → [N, H·W]``."""
    if x.dim() != 4:
        raise UsageError(f"compare='attention' needs features [N, C, H, W], found {list(x.shape)}: use 'direction'")
    return F.normalize(x.square().sum(1).flatten(1), dim=1)


def direction(x: Tensor) -> Tensor:
    """Return a feature, flat and of length 1: ``[N, …] → [N, D]``."""
    return F.normalize(x.flatten(1), dim=1)


COMPARED = {"attention": attention, "direction": direction}


class Distill:
    """Mixes a teacher's answers, and its features if asked for, into the loss.

    ``(1 − a)·L + a·T²·KL(softmax(t/T) ‖ softmax(s/T)) + b·Σ_j ‖q(s_j) − q(t_j)‖₂``, means over a batch. The features
    s_j and t_j are what the modules j of both networks receive; their sum reaches a binary network's early layers
    without passing the later ones' surrogates.

    The teacher sees the same augmented inputs, in evaluation mode. It is no module of the run: no checkpoint holds it.

    Args:
        teacher: a float network with the same classes.
        temperature: T, positive; higher ones show more of what the teacher says of wrong classes.
        weight: a, in [0, 1].
        student: the network that learns; its modules of the features' names are watched.
        features: globs of names of modules, in both networks, whose inputs are compared.
        feature_weight: b, at least 0.
        compare: q: ``"attention"``, where a feature is large (the same height and width), or ``"direction"``, the
            feature itself (the same shape).

    Raises:
        UsageError: a glob finds no module that both networks have, or an unknown ``compare``; when called, features
            that cannot be compared.

    Source: Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network (arXiv 1503.02531); attention:
        Zagoruyko & Komodakis (arXiv 1612.03928), for binary networks Martinez et al., Training Binary Neural Networks
        with Real-to-Binary Convolutions (arXiv 2003.11535).
    """

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float,
        weight: float,
        *,
        student: nn.Module | None = None,
        features: Sequence[str] = (),
        feature_weight: float = 1.0,
        compare: str = "attention",
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.weight, self.feature_weight = temperature, weight, feature_weight
        self.compare = COMPARED[check_choice("compare", compare, COMPARED)]
        self.names = [] if student is None else shared_modules(student, teacher, features)
        self._seen: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        for name in self.names:
            assert student is not None
            for side, net in (("student", student), ("teacher", teacher)):
                net.get_submodule(name).register_forward_pre_hook(self._keep(side, name))

    def _keep(self, side: str, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if side == "teacher" or module.training:
                self._seen[side][name] = inputs[0]

        return hook

    def __call__(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """Return the mixed loss.

        Args:
            loss: of the labels.
            logits: of the student, ``[N, classes]``.
            inputs: what it saw.
        """
        if next(self.teacher.parameters()).device != inputs.device:
            self.teacher.to(inputs.device)
        with torch.no_grad():
            target = F.log_softmax(self.teacher(inputs) / self.temperature, 1)
        answer = F.log_softmax(logits / self.temperature, 1)
        divergence = F.kl_div(answer, target, reduction="batchmean", log_target=True)
        mixed = (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
        for name in self.names:
            for side, seen in self._seen.items():
                if name not in seen:
                    raise UsageError(f"distill.features: the {side}'s {name!r} is not called in a forward pass")
            ours, theirs = (self.compare(self._seen[side].pop(name)) for side in ("student", "teacher"))
            if ours.shape != theirs.shape:
                sizes = f"{ours.shape[1]} values of the student's with {theirs.shape[1]} of the teacher's"
                raise UsageError(f"features of {name!r} cannot be compared: {sizes}")
            mixed = mixed + self.feature_weight * (ours - theirs).norm(dim=1).mean()
        return mixed


def shared_modules(student: nn.Module, teacher: nn.Module, globs: Sequence[str]) -> list[str]:
    """Return the names, in the student's order, of the modules in both networks that a glob matches.

    Raises:
        UsageError: a glob matches none.
    """
    theirs = {name for name, _ in teacher.named_modules()}
    names = [name for name, _ in student.named_modules() if name in theirs and name]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UsageError(f"no module of both networks is called {glob!r}: {nearest(glob, names)}")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]
