"""Shared by the benchmarks: alternating rounds, medians, saved bytes, and where it all ran."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import frostbit as fb

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def cpu_name() -> str:
    """Return the processor's own name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Return hardware and versions, for the result file."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def rounds_of(
    variants: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2, calls: int = 1
) -> dict[str, list[float]]:
    """Run every variant in turn, round by round, and return the seconds of each.

    Args:
        variants: name → what to time.
        rounds: timed rounds.
        warmup: rounds before them.
        calls: calls a turn; with several, most of them find the caches as they left them.

    Returns:
        name → seconds of every timed call.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(warmup + rounds):
        for name, run in variants.items():
            for _ in range(calls):
                start = time.perf_counter()
                run()
                if round_number >= warmup:
                    times[name].append(time.perf_counter() - start)
    return times


def alternate(variants: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Return the median seconds of each variant, taken as in `rounds_of`."""
    return {name: statistics.median(each) for name, each in rounds_of(variants, rounds, warmup).items()}


def saved_bytes(model: nn.Module, loss: Callable[[], torch.Tensor]) -> int:
    """Return the bytes that one forward keeps for backward: each storage once, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss().backward()
    return sum(storages.values())


def training_step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, recorder: fb.analysis.Recorder | None = None
) -> Callable[[], None]:
    """Return a function that takes one SGD step, which drives the recorder if one is given."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if recorder is not None:
        recorder.attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def place(name: str, cpu: str) -> Path:
    """Return where a benchmark's figures of one kind of processor are: ``results/benchmarks/<cpu>/<name>.json``."""
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") / f"{name}.json"


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table and write them, with the machine, beside other machines' (`place`)."""
    widths = {key: max(len(key), *(len(_cell(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(f"{key:<{width}}" for key, width in widths.items()))
    for row in rows:
        print("  ".join(f"{_cell(row[key]):<{width}}" for key, width in widths.items()))
    path = place(name, cpu_name())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, "machine": machine(), "rows": rows}, indent=1) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
