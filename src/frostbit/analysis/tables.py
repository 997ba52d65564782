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
        train: training accuracy over the last evaluated stretch.
        seconds: mean seconds of a run.
        core_seconds: mean processor seconds of a run; ``None`` if a result is older than this figure.
        seeds: number of runs.
    """

    arm: str
    recalibrated: Spread
    raw: Spread
    train: Spread
    seconds: float
    core_seconds: float | None
    seeds: int


def summarize(results: Sequence[Result]) -> list[ArmSummary]:
    """Group results by arm, in order of first appearance."""
    arms = list(dict.fromkeys(str(result["arm"]) for result in results))
    return [_summary(arm, [result for result in results if result["arm"] == arm]) for arm in arms]


def _summary(arm: str, runs: Sequence[Result]) -> ArmSummary:
    return ArmSummary(
        arm,
        Spread.of([run["final"]["recalibrated"] for run in runs]),
        Spread.of([run["final"]["raw"] for run in runs]),
        Spread.of([run["final"]["train"] for run in runs]),
        statistics.fmean(run["seconds"] for run in runs),
        statistics.fmean(run["seconds_cpu"] for run in runs) if all("seconds_cpu" in run for run in runs) else None,
        len(runs),
    )


HEADINGS = ("arm", "hardened, recalibrated %", "hardened, raw %", "train %", "seconds", "core seconds", "seeds")


def cells(summary: ArmSummary) -> tuple[str, ...]:
    """Return one row of the table as text, in the order of ``HEADINGS``."""
    return (
        summary.arm,
        str(summary.recalibrated),
        str(summary.raw),
        str(summary.train),
        f"{summary.seconds:.0f}",
        "-" if summary.core_seconds is None else f"{summary.core_seconds:.0f}",
        str(summary.seeds),
    )


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
