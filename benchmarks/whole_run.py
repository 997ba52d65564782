"""A whole STE-free run in the paper's form beside the STE run: `python benchmarks/whole_run.py`.

ResNet-18 (CIFAR) of width 64, every activation a binarizer. Both runs take the same number of steps, one step of
each in turn; the sum over the run is compared. Goal: at most 0.75 times the STE run.
"""

from __future__ import annotations

import argparse
import time

import torch
from harness import report, training_step
from torch import nn

import frostbit as fb


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps-per-unit", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    models: dict[str, nn.Module] = {}
    for name in ("STE", "StoMPP, STE-free"):
        models[name] = fb.models.create("resnet18", num_classes=10, input_size=32)
        fb.binarize_(models[name], placement="activation")
    total = options.steps_per_unit * len(fb.units(models["STE"]))
    progression = fb.StoMPP(models["StoMPP, STE-free"], total)
    steps = {name: training_step(model, images, labels) for name, model in models.items()}
    seconds = dict.fromkeys(steps, 0.0)
    steps["STE"]()  # warm-up; the progression's own steps must not start twice
    for _ in range(total):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if name != "STE":
                progression.step()
            seconds[name] += time.perf_counter() - start
    rows = [
        {"run": name, "steps": total, "seconds": each, "x STE": each / seconds["STE"]} for name, each in seconds.items()
    ]
    report("whole_run", rows)


if __name__ == "__main__":
    main()
