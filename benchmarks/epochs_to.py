"""Epochs until test accuracy first reaches given levels: `python benchmarks/epochs_to.py results/NAME 25 30 35`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from frostbit.analysis.tables import Spread, markdown


def first_epoch(result: dict, level: float) -> int | None:
    """Return the epoch at whose end a run's hardened test accuracy is first ``level`` percent or more."""
    return next((row["epoch"] for row in result["curve"] if row["acc_hardened"] >= level), None)


def rows(results: Sequence[dict], levels: Sequence[float]) -> list[tuple[str, ...]]:
    """Return a row for each arm: mean ± sd over the seeds that reach a level, and how many do if not all."""
    table = []
    for arm in dict.fromkeys(result["arm"] for result in results):
        runs = [result for result in results if result["arm"] == arm]
        cells = []
        for level in levels:
            reached = [epoch for run in runs if (epoch := first_epoch(run, level)) is not None]
            part = "" if len(reached) == len(runs) else f" ({len(reached)} of {len(runs)})"
            cells.append(f"{Spread.of(reached)}{part}" if reached else "never")
        table.append((arm, *cells))
    return table


if __name__ == "__main__":
    folder, *levels = sys.argv[1:]
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*-seed*.json"))]
    print(markdown(("arm", *(f"{level} %" for level in levels)), rows(found, [float(level) for level in levels])))
