"""What a run's records say, ready to be drawn: saw-tooth, figures of units over time, accuracy by depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frostbit.analysis.sawtooth import Row, Window, window_drops
from frostbit.errors import UsageError

#: figure of a unit → (title, whether its colours are logarithmic)
MAPS: dict[str, tuple[str, bool]] = {
    "gradient": ("Gradient norm that reaches each unit", True),
    "flips": ("Share of weights flipped since the record before", True),
    "frozen": ("Share of frozen entries", False),
    "dead": ("Share of dead input channels", False),
    "saturated": ("Share of saturated latents, |w| ≥ 1", False),
    "positive": ("Share of weights of sign +1", False),
}
MOST_COLUMNS = 600
"""Columns of a heat map; more records than that are averaged into cells."""
DECADES = 8.0
"""Powers of ten that logarithmic colours tell apart."""


@dataclass(frozen=True)
class Inside:
    """One run.

    Args:
        name: how it is called in legends.
        steps: rows of ``metrics_steps.csv``.
        windows: ``(unit, first step, step after the last)``.
        curve: rows of ``metrics.csv``.
        record: columns of `frostbit.analysis.Recorder`, empty without one.
    """

    name: str
    steps: Sequence[Row]
    windows: Sequence[Window] = ()
    curve: Sequence[Row] = ()
    record: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def units(self) -> list[str]:
        """Names of the recorded units in order of depth."""
        return list(dict.fromkeys(self.record.get("unit", ())))


@dataclass(frozen=True)
class Grid:
    """A figure of all units over time.

    Args:
        edges: steps between which each column lies, one more than columns.
        values: ``[units][columns]``; NaN where there is no figure.
    """

    edges: list[float]
    values: list[list[float]]


def read_record(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a ``units.parquet``; none if it is absent."""
    if not path.exists():
        return {}
    from pyarrow import ArrowException, parquet

    try:
        columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    except (ArrowException, OSError):
        raise UsageError(f"{str(path)!r} is damaged: it is no parquet file of a recorder") from None
    return columns


def grid(run: Inside, figure: str, most: int = MOST_COLUMNS) -> Grid:
    """Return one figure of a run's units over time; a column ends at its last record's step.

    Args:
        run: with a record.
        figure: a column of it.
        most: columns at most; a cell is the mean of the records that fall into it, NaN left out.

    Returns:
        The grid, its rows in order of depth.
    """
    count = len(run.units)
    steps = list(run.record["step"][::count])
    per_cell = max(1, math.ceil(len(steps) / most))
    starts = range(0, len(steps), per_cell)
    edges = [0.0, *(float(steps[min(start + per_cell, len(steps)) - 1]) for start in starts)]
    values = []
    for depth in range(count):
        series = run.record[figure][depth::count]
        values.append([_mean(series[start : start + per_cell]) for start in starts])
    return Grid(edges, values)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def log_range(grids: Sequence[Grid]) -> tuple[float, float] | None:
    """Return the whole powers of ten that enclose all values above 0, ``None`` if there are none.

    At most `DECADES` of them, the largest: a gradient on its way to nothing would take all colours from the rest.
    """
    found = [value for each in grids for row in each.values for value in row if 0 < value < math.inf]
    if not found:
        return None
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    return float(max(low, high - DECADES)), float(max(high, low + 1))


@dataclass(frozen=True)
class Depth:
    """What happened in the window of one unit.

    Args:
        depth: of the unit, from 0.
        unit: its name.
        end: train accuracy at the last record of the window, in percent.
        drop: of train accuracy at the window's start, see `frostbit.analysis.sawtooth.sawtooth_amplitude`.
    """

    depth: int
    unit: str
    end: float | None
    drop: float | None


def by_depth(run: Inside) -> list[Depth]:
    """Return train accuracy at the end of each unit's window, and the drop at its start, in order of depth."""
    found = []
    drops = window_drops(run.steps, run.windows)
    for depth, ((unit, start, stop), drop) in enumerate(zip(run.windows, drops, strict=True)):
        inside = [row["train_acc"] for row in run.steps if start < row["step"] <= stop]
        found.append(Depth(depth, unit, inside[-1] if inside else None, drop))
    return found


def short(name: str, most: int = 26) -> str:
    """Return a unit's name for an axis, its beginning cut off where it is too long."""
    return name if len(name) <= most else "…" + name[1 - most :]
