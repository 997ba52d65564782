"""What repeats in each window: the drop of training accuracy, and the optimizer's steps on what is frozen."""

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
        drops.append(before[-1] - min(early) if early else None)
    return drops


def frozen_over_open(steps: Sequence[Row], windows: Sequence[Window]) -> dict[str, float]:
    """Return what `frostbit.progression.step_sizes` found on frozen entries, divided by what it found on unfrozen ones.

    Args:
        steps: rows with ``step`` and, inside windows, ``rate/frozen``, ``rate/open``, ``update/frozen`` and
            ``update/open``.
        windows: ``(unit, first step, step after the last)``.

    Returns:
        ``rate/start``, ``rate/end``, ``update/start`` and ``update/end``: medians of the ratio over all records in the
        first and in the last third of the windows. Empty without records.
    """
    ratios: dict[str, list[float]] = {}
    for _, start, stop in windows:
        for row in steps:
            share = (row["step"] - start) / (stop - start)
            if not 0 < share <= 1 or 1 / 3 < share <= 2 / 3:
                continue
            for what in ("rate", "update"):
                frozen, unfrozen = row.get(f"{what}/frozen"), row.get(f"{what}/open")
                if frozen is not None and unfrozen:
                    ratios.setdefault(f"{what}/{'start' if share < 0.5 else 'end'}", []).append(frozen / unfrozen)
    return {key: statistics.median(found) for key, found in sorted(ratios.items())}
