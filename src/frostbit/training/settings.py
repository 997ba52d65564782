"""The settings of a recipe as flat ``{"train.epochs": 20}``: their names, how layers of them merge and differ."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.training.recipe import Recipe

Flat = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the recipe: its type, default and one line of help."""

    kind: Any
    default: Any
    help: str


def dataclass_of(hint: Any) -> type | None:
    """Return the dataclass in a type hint, ``None`` for a leaf."""
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
        inner = dataclass_of(hint)
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
_RUNTIME = {"imports", "train.threads", "train.checkpoint_every", "data.path", "data.workers"}
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
        and not name.startswith("paper")  # says nothing of the run
        and not (name in _FILLED and after.get(name) is None)
    }


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain nested data, without its arms, scales and seeds, as results store it."""
    data = dataclasses.asdict(recipe)
    del data["arms"], data["scales"], data["seeds"]
    if data["paper"]:
        del data["paper"]["verdict"]  # comes after the results
    # plain data has no tuples, and what is read back from a file must compare equal
    for section, field in (("optimizer", "betas"), ("progression", "soft_hardness"), ("progression", "ste_strength")):
        if data[section] and data[section][field] is not None:
            data[section][field] = list(data[section][field])
    return data


_TOP = {f.name for f in dataclasses.fields(Recipe)}
