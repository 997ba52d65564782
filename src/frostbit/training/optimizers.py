"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from frostbit import optim
from frostbit.errors import UsageError
from frostbit.optim.rules import BIAS_CORRECTIONS
from frostbit.progression import ACTIONS, MOMENTS_AT
from frostbit.registry import check_choice
from frostbit.training.recipe import OptimizerConfig, ScheduleConfig
from frostbit.units import binary_parameters

#: the rules that move the binary weights beside an optimizer of the real parameters: Muon latent ones, the others flip
BINARY_RULES: dict[str, type[optim.FlipOptimizer] | type[optim.Muon]] = {
    "muon": optim.Muon,
    "bop": optim.Bop,
    "bop2ndorder": optim.Bop2ndOrder,
    "cema": optim.CEMA,
    "sgdat": optim.SGDAT,
}
#: a field of the recipe → the rule's argument
_ARGUMENTS = {name: name for name in ("threshold", "gamma", "sigma", "bias_correction")} | {
    "flip_lr": "lr",
    "latent_lr": "lr",
}
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {"weight_decay": ("at least 0", lambda value: value >= 0)}
HYPER_SHAPES = ("linear", "exponential", "cosine", "staircase")
#: of optimizers that move latent weights
_LATENT_FIELDS = ("grad_at", "step_from", "moments", "moments_at", "weight_decay_end")
_PLAIN_FIELDS = (*_LATENT_FIELDS, "hyper_shape", "stairs")  # the last two for the way to weight_decay_end
_FLIP_FIELDS = ("rest", "hyper_shape", "stairs")
PLAIN_OPTIMIZERS = ("sgd", "adam", "adamw")
#: what a recipe says about each optimizer
OPTIMIZER_FIELDS: dict[str, tuple[str, ...]] = {
    "sgd": (*_PLAIN_FIELDS, "momentum", "nesterov"),
    "adam": (*_PLAIN_FIELDS, "betas"),
    "adamw": (*_PLAIN_FIELDS, "betas"),
    "muon": ("rest", "latent_lr"),
    "bop": (*_FLIP_FIELDS, "threshold", "gamma", "threshold_end", "gamma_end"),
    "bop2ndorder": (
        *(*_FLIP_FIELDS, "threshold", "gamma", "sigma", "bias_correction"),
        *("threshold_end", "gamma_end", "sigma_end"),
    ),
    "cema": (*_FLIP_FIELDS, "gamma", "flip_lr", "gamma_end"),
    "sgdat": (*_FLIP_FIELDS, "threshold", "flip_lr", "threshold_end"),
}


def rule_defaults(name: str) -> dict[str, Any]:
    """Return {field of the recipe: default} of the rule ``name``."""
    own = inspect.signature(BINARY_RULES[name]).parameters
    return {field: own[_ARGUMENTS[field]].default for field in OPTIMIZER_FIELDS[name] if field in _ARGUMENTS}


def settle_optimizer(config: OptimizerConfig) -> dict[str, tuple[str, ...]]:
    """Fill in the defaults of a rule, and return which fields belong to which optimizer.

    Args:
        config: of the recipe, with a valid name; changed in place.

    Returns:
        `OPTIMIZER_FIELDS`, with the fields of ``config.rest`` added to those of a rule.

    Raises:
        UsageError: an unknown name in one of the rule's fields.
    """
    fields = dict(OPTIMIZER_FIELDS)
    check_choice("optimizer.hyper_shape", config.hyper_shape or "linear", HYPER_SHAPES)
    check_choice("optimizer.moments", config.moments or "keep", ACTIONS)
    check_choice("optimizer.moments_at", config.moments_at or "start", MOMENTS_AT)
    if config.name in BINARY_RULES:
        config.rest = check_choice("optimizer.rest", config.rest or "adam", PLAIN_OPTIMIZERS)
        fields[config.name] += tuple(name for name in fields[config.rest] if name not in _LATENT_FIELDS)
        for name, value in rule_defaults(config.name).items():
            if getattr(config, name) is None:
                setattr(config, name, value)
        if config.bias_correction is not None:
            check_choice("optimizer.bias_correction", config.bias_correction, BIAS_CORRECTIONS)
    elif config.weight_decay_end is None:
        fields[config.name] = tuple(name for name in fields[config.name] if name not in ("hyper_shape", "stairs"))
    return fields


def make_optimizer(config: OptimizerConfig, net: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
    """Return the optimizer that a recipe names, over the network's parameters.

    Args:
        config: of the recipe.
        net: the network, converted already.
        fused: let Adam move a parameter in one pass over its memory, 5 times as fast on a CPU. Not for mixed
            precision, where Lightning does not clip gradients for a fused optimizer.

    Returns:
        A torch optimizer; for a rule one that moves all other parameters with ``config.rest``, where weight
        decay acts on kernels and not on norms and biases.

    Raises:
        UsageError: a hyper-parameter outside its range, or an optimizer that cannot move such weights.
    """
    rule = BINARY_RULES.get(config.name)
    try:
        if rule is None:
            kind, arguments = _plain(config.name, config, fused)
            if config.grad_at == "latent" or config.step_from == "quantized":  # otherwise the steps are the plain ones
                switches: dict[str, Any] = {"grad_at": config.grad_at, "step_from": config.step_from}
                optimizer: torch.optim.Optimizer = optim.ProxConnect(net, kind, **switches, **arguments)
            else:
                optimizer = kind(net.parameters(), **arguments)
            optim.check_pairing(net, optimizer)
            return optimizer
        own = {_ARGUMENTS[field]: getattr(config, field) for field in rule_defaults(config.name)}
        kind, arguments = _plain(config.rest or "adam", config, fused)
        cases: dict[str | optim.case.Predicate, optim.case.Rule] = {"binary": (rule, own)}
        is_real_kernel = partial(_is_kernel, frozenset(id(p) for _, p in binary_parameters(net)))
        if config.weight_decay and any(is_real_kernel(net, name, p) for name, p in net.named_parameters()):
            cases[is_real_kernel] = (kind, arguments)
        return optim.CaseOptimizer(net, cases, default=(kind, arguments | {"weight_decay": 0.0}))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _is_kernel(besides: frozenset[int], _: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and id(parameter) not in besides


def _plain(name: str, config: OptimizerConfig, fused: bool) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if name == "sgd":
        return torch.optim.SGD, common | {"momentum": config.momentum or 0.0, "nesterov": bool(config.nesterov)}
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind, common | {"betas": config.betas or (0.9, 0.999), "fused": fused}


def make_hyper_schedule(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> optim.HyperSchedule | None:
    """Return the schedule of weight decay or of a flip rule's hyper-parameters, ``None`` if they are constant.

    Args:
        config: of the recipe.
        optimizer: from `make_optimizer`.
        total_steps: optimizer steps in the run.

    Raises:
        UsageError: ends that such a curve cannot join.
    """
    ends = {name: getattr(config, f"{name}_end") for name in ("weight_decay", "threshold", "gamma", "sigma")}
    shape = check_choice("optimizer.hyper_shape", config.hyper_shape or "linear", HYPER_SHAPES)
    curves: dict[str, optim.Curve] = {}
    try:
        for name, end in ends.items():
            start = getattr(config, name)
            if end is None or start is None:
                continue
            words, fits = _RANGES[name] if name in _RANGES else BINARY_RULES[config.name].ranges[name]
            if not fits(end) and (end != 0 or shape == "staircase"):  # a 0 is reached behind the last step otherwise
                raise ValueError(f"it must be {words}")
            if shape == "staircase":
                stairs = max(2, config.stairs or 2)
                factor = (end / start) ** (1 / (stairs - 1))
                curves[name] = optim.staircase(start, factor, math.ceil(total_steps / stairs))
            else:
                curves[name] = getattr(optim, shape)(start, end, total_steps)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"optimizer.{name} cannot go from {start} to {end} as {shape}: {error}") from error
    return optim.HyperSchedule(optimizer, **curves) if curves else None


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
        passed = bisect_right(sorted(config.milestones or []), step / steps_per_epoch)
        return float((1.0 if config.gamma is None else config.gamma) ** passed)
    share = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    height = (1 + math.cos(math.pi * share)) / 2 if config.name == "cosine" else 1 - share
    final = (config.final_lr or 0.0) / lr
    return final + (1 - final) * height
