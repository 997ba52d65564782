"""From layers of settings to one complete and checked :class:`Recipe`.

A layer wins over those before it. The layers are the defaults, the method's preset, the recipe file, the arm, and the
command line.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from frostbit.errors import UsageError
from frostbit.progression import ORDERINGS, ORDERS
from frostbit.registry import check_choice
from frostbit.training.methods import METHODS
from frostbit.training.optimizers import OPTIMIZER_FIELDS, settle_optimizer
from frostbit.training.own_code import import_files
from frostbit.training.recipe import Recipe
from frostbit.training.settings import SETTINGS, Flat, dataclass_of, describe, flatten, overlay

SCHEDULE_FIELDS = {
    "constant": (),
    "cosine": ("final_lr",),
    "linear": ("final_lr",),
    "step": ("milestones", "gamma"),
}
COMMON_FIELDS = ("order", "steps_per_unit", "pace", "tail", "seed")
PROGRESSION_FIELDS = {
    "stompp": (
        *("schedule", "refresh", "refresh_rule", "soft", "soft_hardness"),
        *("ste", "ste_strength", "ste_span", "targets", "mask", "drop_frozen"),
    ),
    "anneal": ("quantity", "start", "end", "shape"),
}
METHOD_SECTIONS = ("binarize", "progression")


#: sections that are not there unless something is said in them
_ABSENT = ("paper", "distill", "blockade")


def resolve(*layers: Flat, strict: Flat | None = None) -> Recipe:
    """Apply the method's preset below what was stated, check everything and return the complete recipe.

    Args:
        *layers: flat settings as from :func:`flatten`, weakest first.
        strict: the strongest layer; unlike the others, it may not speak about a section that the method lacks
            (a recipe's shared ``progression.refresh`` means nothing to its STE arm, but a typed ``--refresh``
            is a mistake there).

    Returns:
        The recipe, with fields that mean nothing for the chosen optimizer or schedule set to ``None``.

    Raises:
        UsageError: a wrong type, name or range.
    """
    stated = overlay(*layers, strict or {})
    method = stated.get("method", SETTINGS["method"].default)
    _choice("method", str(method), METHODS)
    preset: Flat = {}
    for section in METHOD_SECTIONS:
        answers = METHODS[method][section]
        if answers is not None:
            preset.update({f"{section}.{key}": value for key, value in answers.items()})
            continue
        preset[section] = None
        deciding = {"binarize": ("weight", "input"), "progression": ("kind",)}[section]
        if any(stated.get(f"{section}.{key}") is not None for key in deciding):
            continue
        for name in [n for n in stated if n.startswith(section + ".")]:
            if strict and name in strict:
                raise UsageError(f"{name} means nothing here: method {method!r} has no {section}")
            del stated[name]
    for section, answers in METHODS[method].items():
        if section not in METHOD_SECTIONS:
            preset.update({f"{section}.{key}": value for key, value in (answers or {}).items()})
    complete = overlay({n: s.default for n, s in SETTINGS.items()}, dict.fromkeys(_ABSENT), preset, stated)
    recipe = _build(Recipe, _typed(complete), "")
    assert isinstance(recipe, Recipe)
    recipe.imports = import_files(recipe.imports)
    _settle(recipe, strict or {})
    return recipe


@functools.cache
def _parser(name: str) -> Any:
    """Return a parser of one setting's values; making one costs as much as a hundred uses."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=SETTINGS[name].kind)
    return parser


#: by name and value as written: most are defaults that every arm of a recipe repeats
_parsed_before: dict[tuple[str, str], Any] = {}


def _parsed(name: str, value: Any) -> Any:
    key = name, repr(value)
    if key not in _parsed_before:
        _parsed_before[key] = _parser(name).parse_object({"value": value}, defaults=False)["value"]
    return copy.deepcopy(_parsed_before[key])


def _typed(flat: Flat) -> Flat:
    from jsonargparse import ArgumentError

    typed: Flat = {}
    for name, value in flat.items():
        if name not in SETTINGS:
            typed[name] = value
            continue
        choices = get_args(SETTINGS[name].kind) if get_origin(SETTINGS[name].kind) is Literal else ()
        if choices:
            typed[name] = _choice(name, str(value), choices)  # YAML reads `precision: 32` as a number
            continue
        try:
            typed[name] = _parsed(name, value)
        except (ArgumentError, TypeError, ValueError):
            raise UsageError(f"{name} must be {describe(SETTINGS[name].kind)}, found {value!r}") from None
    return typed


#: evaluating annotations costs as much as everything else about a recipe
_type_hints = functools.cache(typing.get_type_hints)


def _build(cls: type, flat: Flat, prefix: str) -> object:
    values: dict[str, Any] = {}
    hints = _type_hints(cls)
    for f in dataclasses.fields(cls):
        name = prefix + f.name
        inner = dataclass_of(hints[f.name])
        if inner is None:
            values[f.name] = flat[name] if name in flat else copy.deepcopy(SETTINGS[name].default)
        elif name in flat:
            values[f.name] = None
        else:
            values[f.name] = _build(inner, flat, name + ".")
    return cls(**values)


def _choice(what: str, name: str, known: Iterable[str]) -> str:
    try:
        return check_choice(what, name, known)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _settle(recipe: Recipe, strict: Flat) -> None:
    _choice("optimizer", recipe.optimizer.name, OPTIMIZER_FIELDS)
    _choice("learning-rate schedule", recipe.schedule.name, SCHEDULE_FIELDS)
    _clear_others("optimizer", recipe.optimizer, recipe.optimizer.name, settle_optimizer(recipe.optimizer), strict)
    _clear_others("schedule", recipe.schedule, recipe.schedule.name, SCHEDULE_FIELDS, strict)
    if recipe.progression is not None:
        kind = recipe.progression.kind
        _clear_others("progression", recipe.progression, kind, PROGRESSION_FIELDS, strict)
        recipe.progression.order = recipe.progression.order or {"stompp": "forward", "anneal": "global"}[kind]
        if isinstance(recipe.progression.order, str):
            _choice("order", recipe.progression.order, (*ORDERS, *ORDERINGS))
        if recipe.progression.shape == "sum_lr":
            recipe.progression.start = recipe.progression.end = None
    if recipe.schedule.name == "step" and not recipe.schedule.milestones:
        raise UsageError("schedule.milestones must list the epochs of a step schedule, found none")
    _choice("train.strategy", recipe.train.strategy, ("auto", "ddp", "fsdp"))
    _choice("train.accelerator", recipe.train.accelerator, ("auto", "cpu", "gpu", "cuda", "mps"))
    if recipe.progression is not None and recipe.binarize is None:
        raise UsageError("a progression needs binarize.weight or binarize.input: a float network cannot freeze")
    if recipe.distill is not None and not recipe.distill.teacher:
        raise UsageError(
            "distill.teacher must name a float run or checkpoint, found none: train one with --method float, "
            "then give --distill.teacher RUN"
        )
    if recipe.blockade is not None and recipe.binarize is None:
        raise UsageError("a blockade needs binarize.input: a float network has no unit to block")
    flat = flatten(dataclasses.asdict(recipe))
    for name, low, strictly in _BOUNDS:
        value = flat.get(name)
        if value is not None and not (value > low if strictly else value >= low):
            raise UsageError(f"{name} must be {'above' if strictly else 'at least'} {low}, found {value}")
    for name in ("distill.weight", "blockade.start", "blockade.stop"):
        if not 0 <= flat.get(name, 0) <= 1:
            raise UsageError(f"{name} must lie in [0, 1], found {flat[name]}")
    if not 0 <= recipe.data.val_fraction < 1:
        raise UsageError(f"data.val_fraction must lie in [0, 1), found {recipe.data.val_fraction}")
    if not recipe.seeds:
        raise UsageError("seeds must hold at least one number, found an empty list")
    if not re.fullmatch(r"[\w.+-]+", recipe.name):
        raise UsageError(f"name becomes a folder: use letters, digits and . _ + -, found {recipe.name!r}")


def _clear_others(section: str, part: object, chosen: str, table: Mapping[str, Iterable[str]], strict: Flat) -> None:
    """Set the fields that belong to other choices than this one to ``None``; refuse those that were typed."""
    for other in {field for fields in table.values() for field in fields} - set(table[chosen]):
        if strict.get(f"{section}.{other}") is not None:
            raise UsageError(f"{section}.{other} means nothing here: {chosen!r} has no such setting")
        setattr(part, other, None)


_BOUNDS = (
    ("train.epochs", 1, False),
    ("train.batch", 1, False),
    ("train.eval_every", 1, False),
    ("train.record_every", 1, False),
    ("train.checkpoint_every", 1, False),
    ("train.accumulate", 1, False),
    ("train.devices", 1, False),
    ("train.threads", 0, False),
    ("train.recalibrate_batches", 0, False),
    ("train.grad_clip", 0, True),
    ("optimizer.lr", 0, True),
    ("optimizer.latent_lr", 0, True),
    ("optimizer.weight_decay", 0, False),
    ("optimizer.weight_decay_end", 0, False),
    ("distill.temperature", 0, True),
    ("distill.feature_weight", 0, False),
    ("schedule.warmup_epochs", 0, False),
    ("schedule.final_lr", 0, False),
    ("schedule.gamma", 0, False),
    ("data.size", 1, False),
    ("data.length", 1, False),
    ("data.limit_train", 1, False),
    ("data.limit_test", 1, False),
    ("data.augment.crop_pad", 0, False),
    ("data.workers", 0, False),
)
