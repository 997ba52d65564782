"""One row of a table, trained by one process and by two under ``torchrun``, over the same seeds.

    python benchmarks/two_processes.py [--recipe recipes/demo.yaml --arm stompp+ste --epochs 20 --seeds 0,1,2]

Masks, order of samples and augmentation are the same; batch norms are not, since each process takes its statistics from
its own half of a batch. Writes ``two_processes.json`` beside the other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import report

from frostbit.analysis.tables import Spread

ROOT = Path(__file__).resolve().parent.parent


def accuracies(options: argparse.Namespace, processes: int, folder: Path) -> list[float]:
    """Train each seed and return the final accuracies in percent."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    found = []
    for seed in options.seeds.split(","):
        train = ["frostbit.cli", "train", options.recipe, "--arm", options.arm, "--seed", seed, "--out", str(folder)]
        settings = ["--epochs", str(options.epochs), "--train.threads", "1", "--train.accelerator", "cpu", "--quiet"]
        command = [sys.executable, "-m", *launcher, *train, *settings, "--train.devices", str(processes)]
        subprocess.run([*command, *options.more], check=True, cwd=ROOT)
        result = json.loads((folder / f"{options.arm}-seed{seed}" / "result.json").read_text())
        found.append(result["final"]["recalibrated"])
    return found


def main() -> None:
    """Run both and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="recipes/demo.yaml", help="path from the root of the repository")
    parser.add_argument("--arm", default="stompp+ste")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2")
    options, options.more = parser.parse_known_args()
    rows = []
    for name, processes in (("one", 1), ("two, torchrun", 2)):
        with tempfile.TemporaryDirectory() as folder:
            values = accuracies(options, processes, Path(folder))
        what = {"processes": name, "recipe": options.recipe, "arm": options.arm, "epochs": options.epochs}
        rows.append(
            what | {"accuracy %": str(Spread.of(values)), "of each seed": ", ".join(f"{v:.2f}" for v in values)}
        )
    report("two_processes", rows)


if __name__ == "__main__":
    main()
