"""The interactive page: the figures of `frostbit.analysis.heatmaps` in plotly, its script inside the page once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from frostbit.analysis.figures import COLORS
from frostbit.analysis.heatmaps import OUTLINE, ZERO
from frostbit.analysis.inside import MAPS, Grid, Inside, by_depth, grid, log_range, short
from frostbit.analysis.page import Section, page, table, text
from frostbit.analysis.sawtooth import sawtooth_amplitude

Plot = dict[str, Any]

_ROW, _AROUND, _LEAST = 17, 105, 130  # pixels of a unit's row in a heat map, of its margins, and of its least height
_AXIS = {"gridcolor": "#e3e8ee", "zeroline": False, "automargin": True, "tickfont": {"size": 11}}


def inspect_page(runs: Sequence[Inside]) -> str:
    """Return the page of one or several runs, laid over each other.

    Args:
        runs: at least one, with rows in ``steps``.

    Returns:
        HTML that needs no network: some 5 MB of it are plotly's script.
    """
    from plotly.offline import get_plotlyjs

    sections = [Section("Saw-tooth", text(_SAWTOOTH) + _html(sawtooth(runs)) + _amplitudes(runs))]
    recorded = [run for run in runs if run.units]
    for figure, words in (("gradient", _GRADIENT), ("flips", _FLIPS)):
        if recorded:
            ends = log_range([grid(run, figure) for run in recorded])
            body = "".join(_titled(run, runs, heat_maps(run, (figure,), ends)) for run in recorded)
            sections.append(Section(MAPS[figure][0], text(words) + body))
    if any(run.windows for run in runs):
        sections.append(Section("Accuracy by depth", text(_DEPTH) + _html(depths(runs))))
    if any("distance" in row for run in runs for row in run.curve):
        sections.append(Section("Distance to the binary network", text(_DISTANCE) + _html(distances(runs))))
    others = tuple(name for name, (_, logarithmic) in MAPS.items() if not logarithmic)
    if recorded:
        body = "".join(_titled(run, runs, heat_maps(run, others, None)) for run in recorded)
        sections.append(Section("Other figures of the units", text(_OTHERS) + body))
    lead = ", ".join(run.name for run in runs)
    return page("Inside the runs" if len(runs) > 1 else "Inside the run", lead, sections, script=get_plotlyjs())


_SAWTOOTH = (
    "Training as the optimizer saw it, and below it the windows in which units freeze. Drag to zoom, double-click to "
    "go back, click a name to hide a run."
)
_GRADIENT = (
    "Norm of the loss gradient at the outputs of the unit's layers, on a logarithmic scale. Grey: nothing arrives, "
    "because something downstream blocks or the unit itself has left the backward pass. White: not recorded. "
    "Outlined: the unit's window."
)
_FLIPS = "Share of the unit's binary weights whose sign differs from that at the record before. Grey: none."
_DEPTH = (
    "Train accuracy at the last record of each unit's window, and the drop in the window's first tenth, over the "
    "unit's depth."
)
_DISTANCE = (
    "Relative distance between the logits of the network as it is and with every unit binary, on the first test batch, "
    "at each evaluation."
)
_OTHERS = "Choose a figure. Outlined: the unit's window."


def sawtooth(runs: Sequence[Inside]) -> Plot:
    """Return train accuracy and loss of all runs over steps, and their windows."""
    strips = [run for run in runs if run.windows]
    below = 26 + 24 * len(strips) if strips else 0
    height = 470 + below
    share = below / height
    middle = share + (1 - share) * 0.42
    traces: list[Plot] = []
    for number, run in enumerate(runs):
        at = [row["step"] for row in run.steps]
        line = {"color": COLORS[number % len(COLORS)], "width": 1.5}
        for axis, key, words in (("y", "train_acc", "accuracy %"), ("y2", "loss", "loss")):
            values = [_number(row[key]) for row in run.steps]
            traces.append(
                {"type": "scatter", "mode": "lines", "x": at, "y": values, "yaxis": axis, "line": line}
                | {"name": run.name, "legendgroup": run.name, "showlegend": key == "train_acc" and len(runs) > 1}
                | {"hovertemplate": f"step %{{x}}<br>train {words} %{{y:.4g}}"}
            )
    last = max(run.steps[-1]["step"] for run in runs)
    layout = _layout(height) | {
        "xaxis": _AXIS | {"title": {"text": "optimizer step"}, "range": [0, last], "anchor": "y3" if strips else "y2"},
        "yaxis": _AXIS | {"domain": [middle + 0.03, 1], "title": {"text": "train accuracy %"}},
        "yaxis2": _AXIS | {"domain": [share + (0.04 if strips else 0), middle - 0.03], "title": {"text": "train loss"}},
    }
    if strips:
        for row, run in enumerate(strips):
            traces.append(_strip(run, row, COLORS[list(runs).index(run) % len(COLORS)], len(runs) == 1))
        ticks = {"tickvals": list(range(len(strips))), "ticktext": [escape(short(run.name, 18)) for run in strips]}
        if len(runs) == 1:
            ticks["ticktext"] = ["windows"]
        layout["yaxis3"] = (
            _AXIS | ticks | {"domain": [0, share], "range": [len(strips) - 0.5, -0.5], "fixedrange": True}
        )
        layout["uniformtext"] = {"mode": "hide", "minsize": 10}
    if len(runs) == 1:
        line = {"color": "#8a96a3", "width": 1, "dash": "dot"}
        borders = sorted({window[1] for window in runs[0].windows})
        layout["shapes"] = [
            {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": share, "y1": 1, "line": line, "layer": "below"}
            for x in borders
        ]
    return {"data": traces, "layout": layout}


def _strip(run: Inside, row: int, color: str, named: bool) -> Plot:
    """Return a row of bars, one for each span of steps in which units are in transition."""
    spans: dict[tuple[int, int], list[str]] = {}
    for unit, start, stop in sorted(run.windows, key=lambda window: window[1]):
        spans.setdefault((start, stop), []).append(unit)
    names = [units[0] if len(units) == 1 else f"all {len(units)} units" for units in spans.values()]
    return {
        "type": "bar", "orientation": "h", "yaxis": "y3", "showlegend": False, "width": 0.76,
        "y": [row] * len(spans), "base": [start for start, _ in spans], "x": [stop - start for start, stop in spans],
        "marker": {"color": color, "opacity": [(0.75, 0.4)[turn % 2] for turn in range(len(spans))]},
        "text": [escape(name) for name in names] if named else None, "textposition": "inside", "textangle": 0,
        "insidetextanchor": "middle", "insidetextfont": {"color": "#1d2733"}, "constraintext": "inside",
        "customdata": [[escape(name), start, stop] for name, (start, stop) in zip(names, spans, strict=True)],
        "hovertemplate": "%{customdata[0]}: steps %{customdata[1]} to %{customdata[2]}<extra></extra>",
    }  # fmt: skip


def heat_maps(run: Inside, figures: Sequence[str], ends: tuple[float, float] | None) -> Plot:
    """Return a heat map of a run's units over time; with several figures, a menu to choose from.

    Args:
        run: with a record.
        figures: keys of `MAPS`.
        ends: powers of ten at the ends of a logarithmic scale; ``None`` for 0 to 1.
    """
    traces: list[Plot] = []
    for number, figure in enumerate(figures):
        for trace in _cells(run, grid(run, figure), MAPS[figure][1], ends):
            traces.append(trace | {"visible": number == 0})
    count = len(run.units)
    depth = {unit: index for index, unit in enumerate(run.units)}
    layout = _layout(_AROUND + max(_ROW * count, _LEAST) + (40 if len(figures) > 1 else 0)) | {
        "xaxis": _AXIS | {"title": {"text": "optimizer step"}, "showgrid": False},
        "yaxis": _AXIS
        | {
            "type": "category",
            "tickvals": run.units,
            "ticktext": [escape(short(unit)) for unit in run.units],
            "showgrid": False,
        }
        | {"range": [count - 0.5, -0.5]},
        "shapes": [
            {"type": "rect", "x0": start, "x1": stop, "y0": depth[unit] - 0.5, "y1": depth[unit] + 0.5}
            | {"line": {"color": OUTLINE, "width": 1.5}}
            for unit, start, stop in run.windows
            if unit in depth
        ],
    }
    if len(figures) > 1:
        buttons = [
            {"label": MAPS[figure][0], "method": "restyle"}
            | {"args": [{"visible": [index // 2 == number for index in range(len(traces))]}]}
            for number, figure in enumerate(figures)
        ]
        place = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 6}, "showactive": True}
        layout["updatemenus"] = [place | {"buttons": buttons}]
        layout["margin"] = layout["margin"] | {"t": 50}
    return {"data": traces, "layout": layout}


def _cells(run: Inside, each: Grid, logarithmic: bool, ends: tuple[float, float] | None) -> list[Plot]:
    """Return two traces: the cells in colour, and those that are exactly 0 (on a linear scale 0 has its colour)."""
    shown = [[_shade(value, logarithmic) for value in row] for row in each.values]
    zeros = [[0 if value == 0 and logarithmic else None for value in row] for row in each.values]
    place = {"x": each.edges, "y": run.units}
    value = "10^%{z:.2f}" if logarithmic else "%{z:.3f}"
    low, high = ends or (0.0, 1.0)
    bar: Plot = {"thickness": 12, "len": 1, "outlinewidth": 0, "tickfont": {"size": 11}}
    if logarithmic:
        step = math.ceil((high - low) / 8)
        powers = list(range(int(low), int(high) + 1, step))
        bar |= {"tickvals": powers, "ticktext": [f"10<sup>{power}</sup>" for power in powers]}
    scale = {"colorscale": "Viridis", "zmin": low, "zmax": high, "colorbar": bar}
    grey = {"colorscale": [[0, ZERO], [1, ZERO]], "showscale": False}
    cells = {"type": "heatmap", "z": shown, "hovertemplate": f"%{{y}}<br>until step %{{x}}: {value}<extra></extra>"}
    nothing = {"type": "heatmap", "z": zeros, "hovertemplate": "%{y}<br>until step %{x}: 0<extra></extra>"}
    return [cells | place | scale, nothing | place | grey | {"hoverongaps": False}]


def depths(runs: Sequence[Inside]) -> Plot:
    """Return train accuracy at the end of each unit's window, and the drop at its start, over depth."""
    traces: list[Plot] = []
    for number, run in enumerate(runs):
        found = by_depth(run)
        color = COLORS[number % len(COLORS)]
        for axis, key in (("y", "end"), ("y2", "drop")):
            points = [(each.depth, getattr(each, key), escape(each.unit)) for each in found]
            points = [point for point in points if point[1] is not None]
            traces.append(
                {"type": "scatter", "mode": "lines+markers", "yaxis": axis, "line": {"color": color, "width": 1.5}}
                | {"x": [point[0] for point in points], "y": [round(point[1], 2) for point in points]}
                | {"text": [point[2] for point in points], "hovertemplate": "%{text}: %{y:.2f}"}
                | {"name": run.name, "legendgroup": run.name, "showlegend": key == "end" and len(runs) > 1}
            )
    whole = {"tick0": 0, "dtick": max(1, max(len(run.windows) for run in runs) // 12)}
    layout = _layout(470) | {
        "xaxis": _AXIS | whole | {"title": {"text": "depth of the unit, from 0 at the input"}, "anchor": "y2"},
        "yaxis": _AXIS | {"domain": [0.56, 1], "title": {"text": "accuracy %"}},
        "yaxis2": _AXIS | {"domain": [0, 0.44], "title": {"text": "drop, points"}},
    }
    return {"data": traces, "layout": layout}


def distances(runs: Sequence[Inside]) -> Plot:
    """Return the distance to the binary network at each evaluation."""
    traces: list[Plot] = []
    for number, run in enumerate(runs):
        rows = [row for row in run.curve if "distance" in row]
        traces.append(
            {"type": "scatter", "mode": "lines+markers", "name": run.name, "showlegend": len(runs) > 1}
            | {"x": [row["step"] for row in rows], "y": [_number(row["distance"]) for row in rows]}
            | {"line": {"color": COLORS[number % len(COLORS)], "width": 1.5}, "hovertemplate": "step %{x}: %{y:.3g}"}
        )
    axes = {"xaxis": _AXIS | {"title": {"text": "optimizer step"}}, "yaxis": _AXIS | {"title": {"text": "distance"}}}
    return {"data": traces, "layout": _layout(300) | axes}


def _layout(height: int) -> Plot:
    legend = {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"}
    font = {"family": "system-ui, sans-serif", "size": 12, "color": "#1d2733"}
    return {
        "height": height, "margin": {"l": 60, "r": 20, "t": 20, "b": 50}, "legend": legend, "font": font,
        "plot_bgcolor": "white", "paper_bgcolor": "white", "hovermode": "closest", "barmode": "overlay",
    }  # fmt: skip


def _html(plot: Plot) -> str:
    from plotly.graph_objects import Figure

    config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    html: str = Figure(plot).to_html(full_html=False, include_plotlyjs=False, config=config)
    return html


def _titled(run: Inside, runs: Sequence[Inside], plot: Plot) -> str:
    return (f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "") + _html(plot)


def _amplitudes(runs: Sequence[Inside]) -> str:
    rows = [(run.name, sawtooth_amplitude(run.steps, run.windows)) for run in runs]
    cells = [(name, f"{drop:.1f}") for name, drop in rows if drop is not None]
    heads = ("run", "median drop of train accuracy in the first tenth of a window, points")
    return table(heads, cells, figures=True) if cells else ""


def _shade(value: float, logarithmic: bool) -> float | None:
    if not logarithmic:
        return _number(value)
    return round(math.log10(value), 3) if 0 < value < math.inf else None


def _number(value: float) -> float | None:
    """Return a number for JSON, which knows neither NaN nor infinity."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
