"""From results to the rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; ``sd`` is ``None`` for a single seed."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.sd is None else f"{self.mean:.1f} ± {self.sd:.1f}"


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds; accuracies in percent, last epoch.

    Args:
        arm: its name.
        recalibrated: test accuracy, hardened, batch-norm statistics recalibrated.
        raw: test accuracy, hardened, statistics as trained.
        validation: the same on the samples that ``data.val_fraction`` splits off; ``None`` if a run has none.
        train: training accuracy over the last evaluated stretch.
        seconds: mean seconds of a run.
        core_seconds: mean processor seconds of a run; ``None`` if a result is older than this figure.
        seeds: number of runs.
    """

    arm: str
    recalibrated: Spread
    raw: Spread
    validation: Spread | None
    train: Spread
    seconds: float
    core_seconds: float | None
    seeds: int


def summarize(results: Sequence[Result]) -> list[ArmSummary]:
    """Group results by arm, in order of first appearance."""
    arms = list(dict.fromkeys(str(result["arm"]) for result in results))
    return [_summary(arm, [result for result in results if result["arm"] == arm]) for arm in arms]


def _summary(arm: str, runs: Sequence[Result]) -> ArmSummary:
    figures = [run["final"] for run in runs]
    return ArmSummary(
        arm,
        Spread.of([final["recalibrated"] for final in figures]),
        Spread.of([final["raw"] for final in figures]),
        Spread.of([final["val"] for final in figures]) if all("val" in final for final in figures) else None,
        Spread.of([final["train"] for final in figures]),
        statistics.fmean(run["seconds"] for run in runs),
        statistics.fmean(run["seconds_cpu"] for run in runs) if all("seconds_cpu" in run for run in runs) else None,
        len(runs),
    )


def arm_table(summaries: Sequence[ArmSummary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the headings, of them first ``arm``, and the rows; a figure that no arm has gets no column."""
    columns: dict[str, list[object]] = {
        "hardened, recalibrated %": [summary.recalibrated for summary in summaries],
        "hardened, raw %": [summary.raw for summary in summaries],
        "validation %": [summary.validation for summary in summaries],
        "train %": [summary.train for summary in summaries],
        "seconds": [round(summary.seconds) for summary in summaries],
        "core seconds": [summary.core_seconds and round(summary.core_seconds) for summary in summaries],
        "seeds": [summary.seeds for summary in summaries],
    }
    shown = {heading: column for heading, column in columns.items() if any(cell is not None for cell in column)}
    rows = zip([summary.arm for summary in summaries], *shown.values(), strict=True)
    return ("arm", *shown), [tuple("-" if cell is None else str(cell) for cell in row) for row in rows]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def differences_by_value(differences: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return ``(setting, value, arms)`` rows: for each setting that differs, which arms have which value."""
    rows = []
    for setting, by_arm in differences.items():
        groups: dict[str, list[str]] = {}
        for arm, value in by_arm.items():
            groups.setdefault(_plain(value), []).append(arm)
        rows += [
            (setting if number == 0 else "", value, ", ".join(arms))
            for number, (value, arms) in enumerate(groups.items())
        ]
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
