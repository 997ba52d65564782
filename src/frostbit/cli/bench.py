"""``frostbit bench``."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frostbit.cli.options import make_parser, parse
from frostbit.errors import RunError, UsageError

#: engine → the package that it needs
ENGINES = {
    "frostbit_runtime": "frostbit_runtime",
    "torch float32": "torch",
    "onnxruntime float32": "onnxruntime",
    "onnxruntime int8": "onnxruntime",
}


def run(argv: Sequence[str]) -> int:
    """Time a packed file beside the same network in torch and onnxruntime; print one table."""
    parser = make_parser(
        "bench",
        "Latency and memory of a packed file in frostbit_runtime, and of the same network in torch (float32) and "
        "onnxruntime (float32 and int8) where they are installed. Each engine runs in processes of its own; a time is "
        "the best of all repeats.",
        usage="FILE [options]",
        settings=False,
    )
    parser.add_argument("file", type=str, help="packed file, from frostbit export")
    parser.add_argument("--batch", type=str, default="1,64", help="batch sizes")
    parser.add_argument("--threads", type=str | None, help="e.g. 1,2; one and all if left out")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is measured")
    parser.add_argument("--out", type=str | None, help="also write the figures to this JSON file")
    own, _ = parse(parser, argv)
    if not own["seconds"] > 0:
        raise UsageError(f"--seconds must be above 0, found {own['seconds']}")
    batches = counts("batch", own["batch"])
    file = Path(own["file"])

    from frostbit.training.files import write_json
    from frostbit.training.provenance import cpu_name, versions

    sizes = describe(file)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = counts("threads", own["threads"]) if own["threads"] else sorted({1, cores})
    rows, failures = [], []
    for engine, package in ENGINES.items():
        if importlib.util.find_spec(package) is None:
            print(f"frostbit: {engine} is left out: {package} is not installed", file=sys.stderr)
            continue
        for count in threads:
            request = {"file": str(file), "engine": engine, "threads": count, "batches": batches}
            try:
                found = measure(request | {"seconds": own["seconds"]})
            except RunError as error:  # told once the others' figures are there
                failures.append(error)
                break
            rows += [{"engine": engine, "threads": count, "batch": int(b)} | found[b] for b in found]
    print(f"{file}: {sizes['file_bytes']:,} bytes, {sizes['float_bytes']:,} in float32; {cpu_name()}")
    if rows:
        show(rows)
    if own["out"]:
        write_json(own["out"], {"file": file.name, **sizes, "cpu": cpu_name(), "versions": versions(), "rows": rows})
    if failures:
        raise failures[0]
    return 0


def counts(option: str, text: str) -> list[int]:
    """Return numbers of at least 1, written with commas between them.

    Raises:
        UsageError: they are not that.
    """
    words = text.strip("[]").split(",")
    if not all(word.strip().isdecimal() and int(word) >= 1 for word in words):
        raise UsageError(f"--{option} must be whole numbers of at least 1 such as 1,64, found {text!r}")
    return [int(word) for word in words]


def describe(file: Path) -> dict[str, int]:
    """Return the sizes of a packed file.

    Raises:
        UsageError: it is none, or the runtime is not installed.
    """
    try:
        from frostbit_runtime import FileError, read
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a packed file needs the package {error.name!r}: pip install ./runtime, in Frostbit's repository"
        ) from None
    try:
        program = read(file)
    except FileError as error:
        raise UsageError(str(error)) from None
    float_bytes = int(program.info.get("float_bytes") or 0)
    return {"file_bytes": file.stat().st_size, "payload_bytes": program.nbytes, "float_bytes": float_bytes}


def measure(request: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure one engine with one number of threads, in a process of its own.

    Raises:
        RunError: the process failed.
    """
    import frostbit.deploy

    worker = Path(frostbit.deploy.__file__).with_name("bench_worker.py")
    done = subprocess.run([sys.executable, str(worker), json.dumps(request)], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunError(f"{request['engine']} failed on {request['file']!r}: {lines[-1] if lines else done.returncode}")
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table; factors are those of the first engine's time at the same batch and threads."""
    ours = {(row["threads"], row["batch"]): row["ms"] for row in rows if row["engine"] == rows[0]["engine"]}
    print(f"{'engine':<20} {'threads':>7} {'batch':>5} {'ms':>10} {'x':>7} {'peak MB':>8}")
    for row in rows:
        factor = row["ms"] / ours.get((row["threads"], row["batch"]), math.nan)
        print(
            f"{row['engine']:<20} {row['threads']:>7} {row['batch']:>5} {row['ms']:>10.3f} {factor:>7.1f} "
            f"{row['peak_mb']:>8.0f}"
        )
