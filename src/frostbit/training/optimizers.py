"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

import torch
from torch import nn

from frostbit.training.recipe import OptimizerConfig, ScheduleConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the torch optimizer that a recipe names."""
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum or 0.0,
            nesterov=bool(config.nesterov),
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, betas=config.betas or (0.9, 0.999), weight_decay=config.weight_decay)


def lr_factor(config: ScheduleConfig, lr: float, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate at a step as a multiple of the recipe's.

    A linear warm-up from 0 multiplies the first ``warmup_epochs``; the curve spans the rest.

    Args:
        config: the schedule.
        lr: the recipe's learning rate, against which ``final_lr`` is held.
        step: optimizer steps taken so far.
        steps_per_epoch: optimizer steps in one epoch.
        total_steps: optimizer steps in the run.

    Returns:
        A factor >= 0.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "constant":
        return 1.0
    if config.name == "step":
        passed = bisect_right(config.milestones or [], step / steps_per_epoch)
        return float((1.0 if config.gamma is None else config.gamma) ** passed)
    share = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    height = (1 + math.cos(math.pi * share)) / 2 if config.name == "cosine" else 1 - share
    final = (config.final_lr or 0.0) / lr
    return final + (1 - final) * height
