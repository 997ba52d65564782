"""When weights flip, by quarters of a run: `python benchmarks/flips.py runs/NAME [results/NAME/flips.md]`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from frostbit.analysis.inside import read_record
from frostbit.analysis.tables import Spread, markdown
from frostbit.errors import UsageError
from frostbit.training.files import write_atomically
from frostbit.training.run import read_config

QUARTERS = 4


def by_quarter(record: pd.DataFrame) -> list[float]:
    """Return how often a weight is seen to flip in each quarter of a run's record, in percent, units alike."""
    quarter = np.minimum(QUARTERS * (record["step"] - 1) // record["step"].max(), QUARTERS - 1)
    seen = record["flips"].groupby([quarter, record["unit"]]).sum(min_count=1).groupby(level=0).mean()
    return [100 * float(seen[index]) for index in range(QUARTERS)]


def rows(records: Mapping[str, Sequence[pd.DataFrame]]) -> list[tuple[str, ...]]:
    """Return a row for each arm, mean ± sd over its records: the quarters, then the whole run."""
    table = []
    for arm, runs in records.items():
        quarters = [by_quarter(run) for run in runs]
        columns = [*zip(*quarters, strict=True), [sum(run) for run in quarters]]
        table.append((arm, *(str(Spread.of(column)) for column in columns)))
    return table


def main() -> None:
    """Read the records of a folder of runs, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of a comparison")
    parser.add_argument("table", type=Path, nargs="?", help="Markdown file to write")
    options = parser.parse_args()
    records: dict[str, list[pd.DataFrame]] = {}
    try:
        for path in sorted(options.runs.glob("*/units.parquet")):
            records.setdefault(read_config(path.parent)[1], []).append(pd.DataFrame(read_record(path)))
    except UsageError as error:
        parser.error(str(error))
    if not records:
        parser.error(f"expected a folder of runs with records (units.parquet), found none in {str(options.runs)!r}")
    text = markdown(("arm", *(f"quarter {n}, %" for n in range(1, QUARTERS + 1)), "whole run, %"), rows(records))
    print(text)
    if options.table:
        write_atomically(options.table, text)


if __name__ == "__main__":
    main()
