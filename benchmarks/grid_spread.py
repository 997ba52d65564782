"""How far apart a grid of hyper-parameters lies, rule by rule: `python benchmarks/grid_spread.py [results folder]`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from frostbit.analysis.tables import markdown

GRID = Path(__file__).resolve().parent.parent / "results" / "bop2ndorder-grid-cpu"
RULES = {"bop": "Bop", "bop2": "Bop2ndOrder"}
HEADINGS = ("rule", "settings", "lowest", "quartile", "median", "quartile", "highest", "standard deviation")


def rows(folder: Path) -> list[tuple[str, ...]]:
    """Return a row for each rule: accuracies of its settings, the mean over seeds each, in percent."""
    found: dict[str, dict[str, list[float]]] = {rule: {} for rule in RULES}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        arms = found[result["arm"].partition("-")[0]]
        arms.setdefault(result["arm"], []).append(result["final"]["recalibrated"])
    table = []
    for rule, arms in found.items():
        values = sorted(statistics.fmean(seeds) for seeds in arms.values())
        if len(values) > 1:
            figures = (values[0], *statistics.quantiles(values, method="inclusive"), values[-1])
            spread = (*figures, statistics.stdev(values))
            table.append((RULES[rule], str(len(values)), *(f"{value:.1f}" for value in spread)))
    return table


if __name__ == "__main__":
    print(markdown(HEADINGS, rows(Path(sys.argv[1]) if len(sys.argv) > 1 else GRID)))
