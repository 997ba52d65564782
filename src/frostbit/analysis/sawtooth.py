"""The saw-tooth: how far training accuracy drops when a unit begins to freeze."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Window = Sequence[Any]  # unit name, first step, step after the last


def sawtooth_amplitude(steps: Sequence[Row], windows: Sequence[Window]) -> float | None:
    """Return the median drop of training accuracy in the first tenth of a window, in points.

    The drop is the accuracy recorded last before the window opens minus the lowest one recorded in the
    window's first tenth (its first record if the tenth holds none).

    Args:
        steps: rows with ``step`` and ``train_acc``.
        windows: ``(unit, first step, step after the last)``.

    Returns:
        The median, ``None`` if no window has records on both sides of its border: one that spans the whole run has not.
    """
    drops = [drop for drop in window_drops(steps, windows) if drop is not None]
    return statistics.median(drops) if drops else None


def window_drops(steps: Sequence[Row], windows: Sequence[Window]) -> list[float | None]:
    """Return each window's drop as `sawtooth_amplitude` defines it, ``None`` without records on both sides."""
    drops: list[float | None] = []
    for _, start, stop in windows:
        before = [row["train_acc"] for row in steps if row["step"] <= start]
        inside = [row for row in steps if start < row["step"] <= stop]
        if not before or not inside:
            drops.append(None)
            continue
        early = [row["train_acc"] for row in inside if row["step"] <= start + (stop - start) / 10]
        drops.append(before[-1] - min(early or [inside[0]["train_acc"]]))
    return drops
