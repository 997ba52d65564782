"""Arms that span a grid: ``{axis}`` in an arm's name stands for every point of that axis.

::

    grid:
      order: {progression.order: [forward, global]}        # lists of values: a point is named after its first one
      net: {bnn: {method: stompp}, bwn: {method: stompp-bwn}}          # or points by name, each a few settings
    arms:
      "{net}-{order}": {}                                  # bnn-forward, bnn-global, bwn-forward, bwn-global
    scales:
      cpu: {grid: {order: {progression.tail: [0, 0.2]}}}   # an arm keeps its name, its points get other settings
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.training.settings import Flat, flatten, overlay

Settings = dict[str, Any]
Axes = dict[str, dict[str, Settings]]
"""{axis: {point: its settings}}."""

_PLACE = re.compile(r"\{(\w+)\}")


def read_axes(grid: Any, where: str, full: Axes | None = None) -> Axes:
    """Read a ``grid`` section.

    Args:
        grid: as written.
        where: what holds it, for messages.
        full: the recipe's own axes, if this is the grid of a smaller scale: lists name its points by position.

    Returns:
        The axes.

    Raises:
        UsageError: what is no axis, or points that the recipe's own axis does not have.
    """
    if not isinstance(grid, Mapping):
        raise UsageError(f"{where}: grid must hold axes, found {grid!r}")
    axes = {}
    for name, axis in grid.items():
        if full is not None and name not in full:
            raise UsageError(f"{where} changes an axis that the recipe lacks, {name!r}: {nearest(str(name), full)}")
        axes[str(name)] = _points(axis, f"{where}: axis {name!r}", None if full is None else list(full[name]))
    return axes


def _points(axis: Any, where: str, names: list[str] | None) -> dict[str, Settings]:
    if isinstance(axis, Mapping) and axis and all(isinstance(value, list) for value in axis.values()):
        columns = list(axis.values())
        if len({len(column) for column in columns}) > 1 or not columns[0]:
            raise UsageError(f"{where} must list as many values for each setting, at least one")
        labels = [_label(value) for value in columns[0]] if names is None else names
        if len(labels) != len(columns[0]) or len(set(labels)) < len(labels):
            raise UsageError(f"{where} must list {len(set(labels))} values, one a point, found {len(columns[0])}")
        rows = zip(*columns, strict=True)
        return {label: dict(zip(axis, row, strict=True)) for label, row in zip(labels, rows, strict=True)}
    if isinstance(axis, Mapping) and axis and all(isinstance(value, Mapping) for value in axis.values()):
        points = {_label(label): dict(settings) for label, settings in axis.items()}
        for label in points:
            if names is not None and label not in names:
                raise UsageError(f"{where} has no point {label!r} in the recipe: {nearest(label, names)}")
        return points
    raise UsageError(f"{where} must be {{setting: [values]}} or {{point: {{settings}}}}, found {axis!r}")


def _label(value: Any) -> str:
    """Return a value as it stands in a name: as written, or shortest."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def expand(arms: Mapping[str, Any], axes: Axes, where: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Name the arms that a recipe's ``arms`` stand for.

    Args:
        arms: by name, with or without ``{axis}`` in it.
        axes: of the recipe.
        where: the recipe, for messages.

    Returns:
        ``{arm: (its name as written, {axis: point})}``; points of the last axis in a name change fastest.

    Raises:
        UsageError: an axis that does not exist or that no arm uses, or two arms of one name.
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    used: set[str] = set()
    for written in arms:
        names = list(dict.fromkeys(_PLACE.findall(str(written))))
        used.update(names)
        for name in names:
            if name not in axes:
                raise UsageError(f"{where}: grid has no axis {name!r}, as in arm {written!r}: {nearest(name, axes)}")
        for labels in itertools.product(*(axes[name] for name in names)):
            point = dict(zip(names, labels, strict=True))
            arm = str(written)
            for name, label in point.items():
                arm = arm.replace(f"{{{name}}}", label)
            if arm in found:
                raise UsageError(f"{where} has two arms named {arm!r}")
            found[arm] = (str(written), point)
    for name in axes:
        if name not in used:
            raise UsageError(f"{where}: no arm's name holds {{{name}}}, so the axis spans nothing")
    return found


def span(stated: Flat, axes: Axes, scale_axes: Mapping[str, Axes], where: str) -> Flat:
    """Write out the arms that a recipe's grid spans.

    Args:
        stated: the recipe, with ``{axis}`` in names of arms, at its smaller scales too.
        axes: of the recipe.
        scale_axes: ``{scale: axes}``, what points are there.
        where: the recipe, for messages.

    Returns:
        The recipe with every arm under its own name; an arm wins over the points it lies at.
    """
    arms = stated.get("arms") or {}
    spanned = expand(arms, axes, where)

    def settings(name: str, arms: Mapping[str, Any], axes: Axes) -> Flat:
        written, point = spanned[name]
        parts = [axes.get(axis, {}).get(label, {}) for axis, label in point.items()]
        parts += [arms.get(key) or {} for key in dict.fromkeys((written, name))]
        return overlay(*(flatten(part, f"arm {name!r}") for part in parts))

    scales = {}
    for scale, smaller in (stated.get("scales") or {}).items():
        changes = smaller.get("arms") or {}
        own = {name: settings(name, changes, scale_axes.get(scale, {})) for name in spanned}
        others = {name: change for name, change in changes.items() if name not in {**arms, **own}}
        scales[scale] = smaller | {"arms": others | {name: change for name, change in own.items() if change}}
    return stated | {"arms": {name: settings(name, arms, axes) for name in spanned}, "scales": scales}
