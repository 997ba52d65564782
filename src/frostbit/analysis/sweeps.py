"""The figure of a sweep: how accuracy went from trial to trial, and what it is over each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frostbit.analysis.figures import COLORS, blank, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """One trial.

    Args:
        number: of the trial.
        settings: what it ran with.
        accuracy: on validation samples in percent; the last known one of a pruned trial.
        complete: whether it ran to its end.
    """

    number: int
    settings: Mapping[str, Any]
    accuracy: float
    complete: bool


def sweep_figure(points: Sequence[Point], logarithmic: Mapping[str, bool]) -> Figure:
    """Draw validation accuracy over trials, and over each setting that was varied.

    Args:
        points: trials with an accuracy; pruned ones are drawn as crosses.
        logarithmic: ``{setting: whether its axis is}``, one panel each.

    Returns:
        A figure; values that are no numbers are put side by side by name.
    """
    columns = min(3, 1 + len(logarithmic))
    rows = -(-(1 + len(logarithmic)) // columns)
    figure = blank(3.6 * columns, 3.0 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    _scatter(panels[0], [p.number for p in points], points)
    best, so_far = float("-inf"), []
    for point in points:
        best = max(best, point.accuracy if point.complete else best)
        so_far.append(best if best > float("-inf") else float("nan"))
    panels[0].step([p.number for p in points], so_far, where="post", color=COLORS[1], linewidth=1.4, label="best")
    panels[0].legend(frameon=False, fontsize=9, loc="lower right")
    tidy(panels[0], "validation accuracy %", "trial", "")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    for axes, (name, log) in zip(panels[1:], logarithmic.items(), strict=False):
        values = [p.settings.get(name) for p in points]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            _scatter(axes, values, points)
            axes.set_xscale("log" if log else "linear")
        else:
            words = ["null" if value is None else str(value) for value in values]
            names = sorted(set(words))
            _scatter(axes, [names.index(word) for word in words], points)
            axes.set_xticks(range(len(names)), names)
            axes.margins(x=0.25)
        tidy(axes, name, "", "")
    for axes in panels[1 + len(logarithmic) :]:
        axes.set_visible(False)
    return figure


def _scatter(axes: Axes, x: Sequence[Any], points: Sequence[Point]) -> None:
    for complete, marker in ((True, "o"), (False, "x")):
        chosen = [(at, p.accuracy) for at, p in zip(x, points, strict=True) if p.complete == complete]
        if chosen:
            at, accuracy = zip(*chosen, strict=True)
            axes.scatter(at, accuracy, s=26, marker=marker, color=COLORS[0 if complete else 7], alpha=0.8)
