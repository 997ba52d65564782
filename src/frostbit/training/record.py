"""What a run writes down while it goes: evaluations, the finer trace of the saw-tooth and the flips, warnings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostbit.training.files import write_csv

Row = dict[str, Any]


class Sums:
    """Running loss, hits and number of samples, kept on the device so that adding never waits for it."""

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        """Add a batch: its mean loss, its number of hits (of one or of several kinds), its size."""
        hits = correct.double().reshape(-1)
        new = torch.cat([loss.detach().double().reshape(1) * count, hits, hits.new_tensor([count])])
        # restored sums are on the CPU until the network has moved to its device
        self.values = new if self.values is None else self.values.to(new.device) + new

    def means(self, reduce: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
        """Return mean loss and each accuracy in percent over all ranks; ``(nan, nan)`` if nothing was added."""
        if self.values is None:
            return float("nan"), float("nan")
        loss, *correct, count = reduce(self.values).tolist()
        return round(loss / count, 6), *(round(100 * hits / count, 4) for hits in correct)


class Record:
    """The rows of ``metrics.csv`` and ``metrics_steps.csv``, and the sums of rows not finished yet.

    All of it is in the checkpoint: both files are rewritten whole from here, so a resumed run ends with the
    same files as an uninterrupted one.
    """

    def __init__(self) -> None:
        self.curve: list[Row] = []
        self.steps: list[Row] = []
        self.since_evaluation = Sums()
        self.since_row = Sums()
        #: at the last "row" and at the last "epoch"'s end: {layer: (flips, steps) of its weights so far}
        self.flip_counts: dict[str, dict[str, tuple[int, int]]] = {"row": {}, "epoch": {}}
        #: what the run was warned of: {"about": kind, "layers": names, "text": sentence}
        self.warnings: list[Row] = []

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        """Add a training batch; see :meth:`Sums.add`."""
        self.since_evaluation.add(loss, correct, count)
        self.since_row.add(loss, correct, count)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain data and tensors."""
        return {
            "curve": [dict(row) for row in self.curve],
            "steps": [dict(row) for row in self.steps],
            "since_evaluation": self.since_evaluation.values,
            "since_row": self.since_row.values,
            "flip_counts": {moment: dict(counts) for moment, counts in self.flip_counts.items()},
            "warnings": [dict(row) for row in self.warnings],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.curve, self.steps, self.warnings = (list(state.get(name, [])) for name in ("curve", "steps", "warnings"))
        for moment, counts in state.get("flip_counts", {}).items():  # checkpoints older than this record have none
            self.flip_counts[moment] = dict(counts)
        for name in ("since_evaluation", "since_row"):
            getattr(self, name).values = state[name]

    def write(self, folder: Path) -> None:
        """Rewrite both files, each atomically."""
        write_csv(folder / "metrics.csv", self.curve)
        write_csv(folder / "metrics_steps.csv", self.steps)
