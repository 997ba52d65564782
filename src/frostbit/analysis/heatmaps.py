"""Figures for print: saw-tooth of several runs, units over time as heat maps, accuracy by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from frostbit.analysis.figures import COLORS, blank, tidy
from frostbit.analysis.inside import MAPS, Inside, by_depth, grid, log_range, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ZERO = "#d5dae1"
"""Colour of a figure that is exactly 0."""
OUTLINE = "#D55E00"
"""Colour of the outline of a unit's window."""


def overlay(runs: Sequence[Inside]) -> Figure:
    """Draw train accuracy and loss of several runs over steps, and the windows of their units below.

    Args:
        runs: at least one; those without windows have an empty row.

    Returns:
        A figure of three panels, two if no run has windows.
    """
    strips = [run for run in runs if run.windows]
    heights = [3.0, 2.2, *([0.35 + 0.28 * len(strips)] if strips else [])]
    figure = blank(9.0, sum(heights) + 0.6)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for axes, key, title in zip(panels, ("train_acc", "loss"), ("train accuracy %", "train loss"), strict=False):
        for number, run in enumerate(runs):
            at = [row["step"] for row in run.steps]
            color = COLORS[number % len(COLORS)]
            axes.plot(at, [row[key] for row in run.steps], color=color, linewidth=1.1, label=run.name)
        if len(runs) == 1:
            for window in runs[0].windows:
                axes.axvline(window[1], color="#8a96a3", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
        tidy(axes, title, "", "")
    if len(runs) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    if strips:
        for row, run in enumerate(strips):
            color = COLORS[list(runs).index(run) % len(COLORS)]
            ordered = sorted({(start, stop) for _, start, stop in run.windows})
            for turn, (start, stop) in enumerate(ordered):
                panels[2].broken_barh(
                    [(start, stop - start)], (row - 0.38, 0.76), color=color, alpha=(0.75, 0.4)[turn % 2]
                )
        panels[2].set_yticks(range(len(strips)), [short(run.name) for run in strips])
        panels[2].set_ylim(len(strips) - 0.5, -0.5)
        tidy(panels[2], "windows, in the order of freezing", "", "")
    panels[-1].set_xlabel("optimizer step")
    return figure


def heat_map(runs: Sequence[Inside], figure: str) -> Figure:
    """Draw one recorded figure of the units over time, a panel for each run, with the units' windows outlined.

    Args:
        runs: with records; all panels share their colours.
        figure: a key of `MAPS`.

    Returns:
        The figure; grey cells are exactly 0, white ones have no figure.
    """
    from matplotlib.colors import LogNorm, Normalize

    title, logarithmic = MAPS[figure]
    grids = [grid(run, figure) for run in runs]
    ends = log_range(grids) if logarithmic else (0.0, 1.0)
    heights = [0.75 + 0.16 * max(len(run.units), 4) for run in runs]
    drawn = blank(9.0, sum(heights) + 0.7)
    panels = drawn.subplots(len(runs), 1, squeeze=False, height_ratios=heights)[:, 0]
    mesh = None
    for axes, run, each in zip(panels, runs, grids, strict=True):
        rows = [index - 0.5 for index in range(len(run.units) + 1)]
        if ends is not None:
            norm = LogNorm(10 ** ends[0], 10 ** ends[1]) if logarithmic else Normalize(*ends)
            mesh = axes.pcolormesh(each.edges, rows, each.values, norm=norm, cmap="viridis", rasterized=True)
        _mark_zeros(axes, each.edges, rows, each.values)
        _outline(axes, run)
        axes.set_yticks(range(len(run.units)), [short(unit) for unit in run.units])
        axes.set_ylim(len(run.units) - 0.5, -0.5)
        tidy(axes, run.name, "", "")
        axes.grid(False)
        axes.tick_params(axis="y", labelsize=8 if len(run.units) < 30 else 7)
    panels[-1].set_xlabel("optimizer step")
    if mesh is not None:
        drawn.colorbar(mesh, ax=list(panels), aspect=40, pad=0.01)
    drawn.suptitle(f"{title}\n(outlined: the unit's window; grey: exactly 0)", x=0.01, ha="left", fontsize=10.5)
    return drawn


def _mark_zeros(axes: Axes, edges: list[float], rows: list[float], values: list[list[float]]) -> None:
    from matplotlib.colors import ListedColormap

    marks = [[1.0 if value == 0 else float("nan") for value in row] for row in values]
    axes.pcolormesh(edges, rows, marks, cmap=ListedColormap([ZERO]), rasterized=True)


def _outline(axes: Axes, run: Inside) -> None:
    from matplotlib.patches import Rectangle

    depth = {unit: index for index, unit in enumerate(run.units)}
    for unit, start, stop in run.windows:
        if unit in depth:
            corner = (start, depth[unit] - 0.5)
            axes.add_patch(Rectangle(corner, stop - start, 1, fill=False, edgecolor=OUTLINE, linewidth=1.1))


def depths(runs: Sequence[Inside]) -> Figure | None:
    """Draw train accuracy at the end of each unit's window, and the drop at its start, over the unit's depth.

    Args:
        runs: those with windows are drawn.

    Returns:
        A figure of two panels, ``None`` if no run has windows.
    """
    shown = [(number, run, by_depth(run)) for number, run in enumerate(runs) if run.windows]
    if not shown:
        return None
    figure = blank(9.0, 5.6)
    panels = figure.subplots(2, 1, sharex=True)
    titles = ("train accuracy % at the end of the unit's window", "drop of train accuracy at its start, points")
    for axes, key, title in zip(panels, ("end", "drop"), titles, strict=True):
        for number, run, found in shown:
            points = [(each.depth, getattr(each, key)) for each in found if getattr(each, key) is not None]
            color = COLORS[number % len(COLORS)]
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()), "o-", color=color, markersize=4, label=run.name
            )
        tidy(axes, title, "", "")
    panels[1].xaxis.get_major_locator().set_params(integer=True)
    panels[1].set_xlabel("depth of the unit, from 0 at the input", fontsize=9.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure
