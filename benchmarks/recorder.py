"""What the recorder costs: `python benchmarks/recorder.py`.

Training with StoMPP, half of the units frozen, on one thread, with and without a recorder at its default interval.
Turns of one interval of steps alternate, so each recorded turn holds one record. Goal: less than 3 %.
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from harness import report, rounds_of, training_step
from torch import nn

import frostbit as fb

#: the default of recipes and of the recorder
EVERY = 10
#: network → (arguments of its model, batch, image size)
NETWORKS: dict[str, tuple[dict[str, object], int, int]] = {
    "resnet20": ({"stem": "cifar"}, 16, 32),
    "resnet18": ({"width": 16, "stem": "cifar"}, 16, 32),
    "resnet8": ({"in_channels": 1}, 64, 8),
}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network in the middle of its freezing, and a batch."""
    arguments, batch, size = NETWORKS[name]
    torch.manual_seed(0)
    model = fb.models.create(name, input_size=size, **arguments)
    images = torch.randn(batch, int(arguments.get("in_channels", 3)), size, size)
    fb.binarize_(model, example_input=images)
    progression = fb.StoMPP(model, total_steps=1000 * len(fb.units(model)))
    progression.steps_taken = progression.total_steps // 2
    progression._apply_all()
    return model, images


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in NETWORKS:
        plain, images = network(name)
        recorded = copy.deepcopy(plain)
        labels = torch.randint(10, (len(images),))
        recorder = fb.analysis.Recorder(recorded, every=EVERY)
        steps = {
            "without": training_step(plain, images, labels),
            "with": training_step(recorded, images, labels, recorder),
        }
        turns = {kind: lambda step=step: [step() for _ in range(EVERY)] for kind, step in steps.items()}
        seconds = rounds_of(turns, options.rounds)
        # each pair of turns ran side by side: the median of their ratios does not see the machine's slow drift
        ratios = [b / a for a, b in zip(seconds["without"], seconds["with"], strict=True)]
        rows.append(
            {
                "network": name,
                "units": len(recorder.units),
                "every": EVERY,
                "ms a step": statistics.median(seconds["without"]) * 1e3 / EVERY,
                "overhead %": 100 * (statistics.median(ratios) - 1),
            }
        )
    report("recorder", rows)


if __name__ == "__main__":
    main()
