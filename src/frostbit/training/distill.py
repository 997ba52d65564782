"""Distillation: the float network's answers as a second target."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Distill:
    """Mixes a teacher's answers into the loss: ``(1 − a)·L + a·T²·KL(softmax(t/T) ‖ softmax(s/T))``, mean of a batch.

    The teacher sees the same augmented inputs, in evaluation mode. It is no module of the run: no checkpoint holds it.

    Args:
        teacher: a float network with the same classes.
        temperature: T, positive; higher ones show more of what the teacher says of wrong classes.
        weight: a, in [0, 1].

    Source: Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network (arXiv 1503.02531).
    """

    def __init__(self, teacher: nn.Module, temperature: float, weight: float) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.weight = temperature, weight

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
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
