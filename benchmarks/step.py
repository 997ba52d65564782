"""One training step of ResNet-18 (CIFAR), float beside binary: `python benchmarks/step.py`.

Quantizers at the inputs of the sixteen 3x3 convolutions; the float network keeps its ReLUs. Goals: a STE step at
most 1.15 times the float step with at most 0.80 times its saved bytes; a STE-free StoMPP step with half the units
frozen at most 0.80 times the STE step, with all frozen at most 0.5 times; the mask update at most 2 % of a step;
compiled (where a compiler is) at most 1.10 times the float step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from harness import alternate, report, saved_bytes, training_step
from torch import nn

import frostbit as fb


def network(kind: str) -> nn.Module:
    """Return the network for one row; weights are the same in all."""
    torch.manual_seed(0)
    model = fb.models.create("resnet18", num_classes=10, input_size=32)
    if kind != "float":
        fb.binarize_(model)
    return model


def stompp_at(share: float) -> tuple[nn.Module, fb.StoMPP]:
    """Return a STE-free network with the first ``share`` of its units frozen, and its progression."""
    model = network("stompp")
    progression = fb.StoMPP(model, total_steps=16 * 1000)
    progression.steps_taken = round(share * 16) * 1000 - 1
    progression.step()
    progression._apply_all()
    return model, progression


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="also compiled steps (needs a C++ compiler)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))

    half, half_progression = stompp_at(0.5)
    models = {
        "float": network("float"),
        "STE": network("ste"),
        "StoMPP, half frozen": half,
        "StoMPP, all frozen": stompp_at(1.0)[0],
    }
    variants: dict[str, Callable[[], None]] = {
        name: training_step(model, images, labels) for name, model in models.items()
    }
    variants["mask update"] = lambda: half_progression._apply(15, 0.5)
    seconds = alternate(variants, options.rounds)
    if options.compile:
        compiled = {
            f"{name}, compiled": training_step(torch.compile(network(kind)), images, labels)
            for name, kind in (("float", "float"), ("STE", "ste"))
        }
        seconds |= alternate(compiled, options.rounds, warmup=4)
    memory = {
        name: saved_bytes(model, lambda model=model: nn.functional.cross_entropy(model(images), labels))
        for name, model in models.items()
    }
    rows = []
    for name, time in seconds.items():
        base = "float, compiled" if name.endswith("compiled") else "float"
        rows.append(
            {
                "step": name,
                "ms": time * 1e3,
                "x float": time / seconds[base],
                "x STE": time / seconds["STE, compiled" if name.endswith("compiled") else "STE"],
                "saved MB": memory[name] / 1e6 if name in memory else "-",
                "bytes x float": memory[name] / memory["float"] if name in memory else "-",
            }
        )
    report("step", rows)


if __name__ == "__main__":
    main()
