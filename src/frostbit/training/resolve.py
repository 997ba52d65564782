"""From what a user wrote, in several layers, to one complete and checked :class:`Recipe`.

Settings are handled as flat ``{"train.epochs": 20}``; a layer wins over those before it. The layers are the
defaults, the method's preset, the recipe file, the arm, and the command line.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from frostbit.errors import UsageError
from frostbit.registry import check_choice, nearest
from frostbit.training.methods import METHODS
from frostbit.training.optimizers import OPTIMIZER_FIELDS, settle_optimizer
from frostbit.training.recipe import Recipe

Flat = dict[str, Any]
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


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the recipe: its type, default and one line of help."""

    kind: Any
    default: Any
    help: str


def _dataclass_of(hint: Any) -> type | None:
    for option in (hint, *get_args(hint)):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def _walk(cls: type, prefix: str = "") -> tuple[dict[str, Setting], dict[str, bool]]:
    settings: dict[str, Setting] = {}
    sections: dict[str, bool] = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for f in dataclasses.fields(cls):
        name = prefix + f.name
        hint, text = get_args(hints[f.name])
        inner = _dataclass_of(hint)
        if inner is not None:
            sections[name] = type(None) in get_args(hint)
            below, deeper = _walk(inner, name + ".")
            settings.update(below)
            sections.update(deeper)
        else:
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            settings[name] = Setting(hint, default, text)
    return settings, sections


SETTINGS, SECTIONS = _walk(Recipe)
"""Every leaf of a recipe by its dotted name; every section and whether it may be null."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a recipe file.

    Args:
        path: a YAML file holding one mapping.

    Returns:
        What it says, unchecked.

    Raises:
        UsageError: no such file, not YAML, or no mapping.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"cannot read the recipe {str(path)!r}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"{str(path)!r} is not valid YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{str(path)!r} must hold a mapping of settings, found {type(data).__name__}")
    return data


def flatten(nested: Mapping[str, Any], where: str = "recipe") -> Flat:
    """Turn nested or dotted settings into flat ones, refusing names that do not exist.

    Args:
        nested: e.g. ``{"train": {"epochs": 3}, "model.width": 8}``.
        where: what holds them, for messages.

    Returns:
        ``{"train.epochs": 3, "model.width": 8}``; a section set to null stays as ``{"progression": None}``.

    Raises:
        UsageError: an unknown name (with the nearest valid one), or a section that is no mapping.
    """
    flat: Flat = {}

    def visit(mapping: Mapping[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if name in SETTINGS:
                flat[name] = value
            elif name not in SECTIONS:
                raise UsageError(f"{where} has no setting {name!r}: {nearest_setting(name)}")
            elif isinstance(value, Mapping):
                visit(value, name + ".")
            elif value is None and SECTIONS[name]:
                flat[name] = None
            else:
                raise UsageError(f"{where}: {name} must be a group of settings, found {value!r}")

    visit(nested, "")
    return flat


def nearest_setting(name: str) -> str:
    """Return the tail of a message for a wrong setting: the nearest right one, or those of its section."""
    section, _, last = name.rpartition(".")
    names = [*SETTINGS, *SECTIONS]
    namesakes = [n for n in names if n.rpartition(".")[2] == last]
    if namesakes:
        return f"did you mean {namesakes[0]!r}?"
    siblings = {n.rpartition(".")[2]: n for n in names if n.rpartition(".")[0] == section}
    close = difflib.get_close_matches(last, siblings, n=1)
    if close:
        return f"did you mean {siblings[close[0]]!r}?"
    tail = nearest(name, [n for n in names if not name.startswith(n + ".")])
    return tail if tail.startswith("did") or not siblings else f"known: {', '.join(sorted(siblings))}"


def overlay(*layers: Flat) -> Flat:
    """Merge flat settings; later layers win, and a section set to null forgets what was said inside it."""
    merged: Flat = {}
    for layer in layers:
        for name, value in layer.items():
            if name in SECTIONS:
                merged = {k: v for k, v in merged.items() if not k.startswith(name + ".")}
            elif any(merged.get(s, 0) is None and name.startswith(s + ".") for s in SECTIONS):
                merged.pop(name.split(".")[0])
            merged[name] = value
    return merged


def read_recipe_file(path: str | Path) -> Flat:
    """Read a recipe and what it is based on.

    Args:
        path: a YAML file. Its ``base``, a path beside it, names a recipe whose settings hold where the file is silent;
            settings of a scale are merged scale by scale.

    Returns:
        Flat settings.

    Raises:
        UsageError: as `read_yaml` and `flatten`; or a recipe that is its own base.
    """
    layers: list[Flat] = []
    files: list[Path] = []
    following: Path | None = Path(path)
    while following is not None:
        if following.resolve() in files:
            raise UsageError(f"recipe {str(path)!r} is based on itself, through {str(following)!r}")
        files.append(following.resolve())
        data = read_yaml(following)
        base = data.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise UsageError(f"{str(following)!r}: base must be the path of a recipe beside it, found {base!r}")
        layers.insert(0, flatten(data, str(following)))
        following = following.parent / base if base else None
    scales: dict[str, Flat] = {}
    for layer in layers:
        for scale, settings in (layer.get("scales") or {}).items():
            scales[scale] = overlay(scales.get(scale, {}), flatten(settings or {}, f"scale {scale!r}"))
    return overlay(*layers, {"scales": scales} if scales else {})


def at_scale(stated: Flat, scale: str | None) -> Flat:
    """Bring a recipe to one of its smaller scales.

    Args:
        stated: flat settings of the recipe file, which describes the full scale.
        scale: ``None`` or ``"full"`` for the recipe as it is, else one of its ``scales``. Their settings win over the
            recipe's, those of their ``arms`` over the arm's; the name gets the scale as its ending.

    Raises:
        UsageError: no such scale, or settings for an arm that the recipe does not have.
    """
    if scale is None or scale == "full":
        return stated
    scales, arms = stated.get("scales") or {}, stated.get("arms") or {}
    if scale not in scales:
        raise UsageError(f"the recipe has no scale {scale!r}: {nearest(scale, ['full', *scales])}")
    smaller = flatten(scales[scale] or {}, f"scale {scale!r}")
    changes = smaller.pop("arms", None) or {}
    for arm in changes:
        if arm not in arms:
            raise UsageError(f"scale {scale!r} changes an arm that the recipe lacks, {arm!r}: {nearest(arm, arms)}")
    both = {
        arm: overlay(*(flatten(settings.get(arm) or {}, f"arm {arm!r}") for settings in (arms, changes)))
        for arm in arms
    }
    return overlay(stated, smaller, {"arms": both, "scale": scale, "name": f"{stated.get('name', 'run')}-{scale}"})


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
    preset.update({f"optimizer.{key}": value for key, value in (METHODS[method].get("optimizer") or {}).items()})
    complete = overlay({n: s.default for n, s in SETTINGS.items()}, dict.fromkeys(_ABSENT), preset, stated)
    recipe = _build(Recipe, _typed(complete), "")
    assert isinstance(recipe, Recipe)
    _settle(recipe)
    return recipe


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Find the settings in which resolved configurations differ.

    Args:
        configs: ``{arm: nested configuration}`` as from :func:`to_dict`.

    Returns:
        ``{setting: {arm: value}}``, only settings with more than one value. Where only some arms have a
        section, its own row says ``False`` or ``True``, and its settings are compared among those arms.
    """
    flats = {arm: flatten({k: v for k, v in c.items() if k in _TOP}) for arm, c in configs.items()}
    table: dict[str, dict[str, Any]] = {}
    for section in (name for name, may_be_null in SECTIONS.items() if may_be_null):
        has = {arm: section not in flat for arm, flat in flats.items()}
        if len(set(has.values())) > 1:
            table[section] = has
    for name in SETTINGS:
        values = {arm: flat[name] for arm, flat in flats.items() if name in flat}
        if len({repr(value) for value in values.values()}) > 1:
            table[name] = values
    return table


# what may change between two parts of one run
_RUNTIME = {"train.threads", "train.checkpoint_every", "data.path", "data.workers"}
# what the data set fills in
_FILLED = {"model.num_classes", "model.input_size"}


def changed(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the settings, old and new, that make ``new`` another run than ``old``; none for the same run."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    return {
        name: (before.get(name), after.get(name))
        for name in [*before, *(set(after) - set(before))]
        if before.get(name) != after.get(name)
        and name not in _RUNTIME
        and not (name in _FILLED and after.get(name) is None)
    }


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain nested data, without its arms, scales and seeds, as results store it."""
    data = dataclasses.asdict(recipe)
    del data["arms"], data["scales"], data["seeds"]
    # plain data has no tuples, and what is read back from a file must compare equal
    for section, field in (("optimizer", "betas"), ("progression", "soft_hardness"), ("progression", "ste_strength")):
        if data[section] and data[section][field] is not None:
            data[section][field] = list(data[section][field])
    return data


_TOP = {f.name for f in dataclasses.fields(Recipe)}


@functools.cache
def _parser(name: str) -> Any:
    """Return a parser of one setting's values; making one costs as much as a hundred uses."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=SETTINGS[name].kind)
    return parser


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
            typed[name] = _parser(name).parse_object({"value": value}, defaults=False)["value"]
        except (ArgumentError, TypeError, ValueError):
            raise UsageError(f"{name} must be {describe(SETTINGS[name].kind)}, found {value!r}") from None
    return typed


def _build(cls: type, flat: Flat, prefix: str) -> object:
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        name = prefix + f.name
        inner = _dataclass_of(hints[f.name])
        if inner is None:
            values[f.name] = flat[name] if name in flat else copy.deepcopy(SETTINGS[name].default)
        elif name in flat:
            values[f.name] = None
        else:
            values[f.name] = _build(inner, flat, name + ".")
    return cls(**values)


def describe(kind: Any) -> str:
    """Say a type hint in words, for messages."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
    if kind in words:
        return words[kind]
    origin, args = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in args)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is list:
        return f"a list, each {describe(args[0])}"
    if origin is tuple:
        return f"{len(args)} numbers"
    return "a mapping"


def _choice(what: str, name: str, known: Iterable[str]) -> str:
    try:
        return check_choice(what, name, known)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _settle(recipe: Recipe) -> None:
    _choice("optimizer", recipe.optimizer.name, OPTIMIZER_FIELDS)
    _choice("learning-rate schedule", recipe.schedule.name, SCHEDULE_FIELDS)
    _clear_others(recipe.optimizer, recipe.optimizer.name, settle_optimizer(recipe.optimizer))
    _clear_others(recipe.schedule, recipe.schedule.name, SCHEDULE_FIELDS)
    if recipe.progression is not None:
        kind = recipe.progression.kind
        _clear_others(recipe.progression, kind, PROGRESSION_FIELDS)
        recipe.progression.order = recipe.progression.order or {"stompp": "forward", "anneal": "global"}[kind]
        if recipe.progression.shape == "sum_lr":
            recipe.progression.start = recipe.progression.end = None
    if recipe.schedule.name == "step" and not recipe.schedule.milestones:
        raise UsageError("schedule.milestones must list the epochs of a step schedule, found none")
    _choice("train.strategy", recipe.train.strategy, ("auto", "ddp"))
    _choice("train.accelerator", recipe.train.accelerator, ("auto", "cpu", "gpu", "cuda", "mps"))
    if recipe.progression is not None and recipe.binarize is None:
        raise UsageError("a progression needs binarize.weight or binarize.input: a float network cannot freeze")
    if recipe.distill is not None and not recipe.distill.teacher:
        raise UsageError("distill.teacher must name a float run or checkpoint, found none")
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


def _clear_others(part: object, chosen: str, table: Mapping[str, Iterable[str]]) -> None:
    """Set the fields that belong to other choices than this one to ``None``."""
    for other in {field for fields in table.values() for field in fields} - set(table[chosen]):
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
    ("optimizer.weight_decay", 0, False),
    ("optimizer.weight_decay_end", 0, False),
    ("distill.temperature", 0, True),
    ("schedule.warmup_epochs", 0, False),
    ("data.size", 1, False),
    ("data.length", 1, False),
    ("data.limit_train", 1, False),
    ("data.limit_test", 1, False),
    ("data.augment.crop_pad", 0, False),
    ("data.workers", 0, False),
)
