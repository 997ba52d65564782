"""Figures of runs: curves of several arms, the saw-tooth, frozen shares."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from frostbit.analysis.sawtooth import Row, Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by all common kinds of colour vision, strongest first
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#444444")
DASHES = ("-", "--", ":")
_GREY = "#8a96a3"


def curves(runs: Mapping[str, Sequence[Sequence[Row]]]) -> Figure:
    """Draw accuracy over epochs: mean over seeds as a line, lowest to highest as a band.

    Runs that were evaluated once are dots side by side, lowest to highest a bar.

    Args:
        runs: ``{arm: [curve of each seed]}``, curves as in ``result.json``.

    Returns:
        A figure with test accuracy (hardened) beside training accuracy.
    """
    figure = blank(9.0, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    once = all(len(curve) == 1 for seeds in runs.values() for curve in seeds)
    for axes, key, title in zip(
        panels, ("acc_hardened", "train_acc"), ("test accuracy, hardened", "train accuracy"), strict=True
    ):
        for number, (arm, seeds) in enumerate(runs.items()):
            epochs, mean, low, high = _over_seeds(seeds, key)
            color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
            if once:
                axes.plot([number], mean, "o", color=color, label=arm)
                axes.vlines([number], low, high, color=color, linewidth=1.8)
                continue
            axes.plot(epochs, mean, dash, color=color, label=arm, linewidth=1.8)
            if len(seeds) > 1:
                axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
        tidy(axes, title, "last epoch" if once else "epoch", "%" if axes is panels[0] else "")
        if once:
            axes.set_xticks([])
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def sawtooth(steps: Sequence[Row], windows: Sequence[Window]) -> Figure:
    """Draw training loss, training accuracy and the frozen share of each unit over steps.

    Args:
        steps: rows of ``metrics_steps.csv``.
        windows: ``(unit, first step, step after the last)``; their borders are marked.

    Returns:
        A figure of three panels, two for a run without units.
    """
    units = [key for key in (steps[0] if steps else {}) if key not in ("step", "loss", "train_acc") and "/" not in key]
    figure = blank(9.0, 6.6 if units else 4.4)
    panels = figure.subplots(3 if units else 2, 1, sharex=True)
    at = [row["step"] for row in steps]
    for axes, key, title in zip(panels, ("loss", "train_acc"), ("train loss", "train accuracy %"), strict=False):
        axes.plot(at, [row[key] for row in steps], color=COLORS[0], linewidth=1.1)
        tidy(axes, title, "", "")
    if units:
        for number, unit in enumerate(units):
            # early units dark, late ones light: the order is what matters here, not the single unit
            shade = number / max(1, len(units) - 1)
            axes = panels[2]
            axes.plot(at, [100 * row[unit] for row in steps], color=_blend(shade), linewidth=1.3)
        ends = f"{units[0]} (dark) … {units[-1]} (light)" if len(units) > 1 else units[0]
        tidy(panels[2], f"frozen share %, {ends}", "", "")
    for axes in panels:
        for window in windows:
            axes.axvline(window[1], color=_GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)
    panels[-1].set_xlabel("optimizer step (dashed: a window begins)" if windows else "optimizer step")
    return figure


def flips(steps: Sequence[Row]) -> Figure | None:
    """Draw what a flip rule did: flips and undecided weights of each layer, and the rule's memory, over steps.

    Args:
        steps: rows of ``metrics_steps.csv`` with columns ``flips/LAYER``, ``undecided/LAYER``, ``memory/gamma``.

    Returns:
        A figure of two panels, three for a rule with a γ; ``None`` for a run without flips.
    """
    layers = flip_layers(steps)
    if not layers:
        return None
    has_memory = "memory/gamma" in steps[0]
    figure = blank(9.0, 6.6 if has_memory else 4.6)
    panels = figure.subplots(3 if has_memory else 2, 1, sharex=True)
    at = [row["step"] for row in steps]
    ends = f", {layers[0]} (dark) … {layers[-1]} (light)" if len(layers) > 1 else ""
    for axes, column, title in (
        (panels[0], "flips", f"share of weights that flip in a step{ends}"),
        (panels[1], "undecided", "undecided: share of weights that would stay whichever sign they had"),
    ):
        for number, layer in enumerate(layers):
            values = [row[f"{column}/{layer}"] for row in steps]
            axes.plot(at, values, color=_blend(number / max(1, len(layers) - 1)), linewidth=1.2)
        tidy(axes, title, "", "")
    if any(row[f"flips/{layer}"] > 0 for row in steps for layer in layers):
        panels[0].set_yscale("log", nonpositive="mask")
    if has_memory:
        panels[2].plot(at, [row["memory/gamma"] for row in steps], color=COLORS[0], label="memory 1/γ")
        panels[2].plot(at, at, "--", color=_GREY, label="steps taken")
        panels[2].set_yscale("log")
        tidy(panels[2], "steps that the average of gradients remembers", "", "")
        panels[2].legend(frameon=False, fontsize=9)
    panels[-1].set_xlabel("optimizer step")
    return figure


def flip_layers(steps: Sequence[Row]) -> list[str]:
    """Return the layers whose flips the rows of ``metrics_steps.csv`` hold, in their order."""
    return [key.partition("/")[2] for key in (steps[0] if steps else {}) if key.startswith("flips/")]


def to_png(figure: Figure, *, dpi: int = 130) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """Return a figure as SVG, its text as text; the same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "frostbit", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def tidy(axes: Axes, title: str, x: str, y: str) -> None:
    """Give axes their title and labels, and the look that all figures share."""
    axes.set_title(title, loc="left", fontsize=10.5)
    axes.set_xlabel(x, fontsize=9.5)
    axes.set_ylabel(y, fontsize=9.5)
    axes.tick_params(labelsize=9, color=_GREY)
    axes.grid(axis="y", color="#e3e8ee", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)


def _over_seeds(seeds: Sequence[Sequence[Row]], key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    by_epoch: dict[float, list[float]] = {}
    for curve in seeds:
        for row in curve:
            if row.get(key) is not None and not math.isnan(row[key]):
                by_epoch.setdefault(row["epoch"], []).append(row[key])
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    return epochs, [statistics.fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def _blend(share: float) -> tuple[float, float, float]:
    dark, light = (0.0, 0.18, 0.36), (0.55, 0.80, 0.93)
    red, green, blue = (a + share * (b - a) for a, b in zip(dark, light, strict=True))
    return red, green, blue
