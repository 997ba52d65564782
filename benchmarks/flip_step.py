"""One step of flip rules and of Muon beside torch's Adam over ResNet-18's parameters: `python benchmarks/flip_step.py`.

All get the same gradients, drawn anew for each round; one thread. Goals: a step of Bop2ndOrder at most 0.80 times a
step of Adam, with at most Adam's bytes of state.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from harness import alternate, report
from torch import Tensor, nn

import frostbit as fb


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors that the optimizer remembers."""
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in kept)


def parameters() -> list[nn.Parameter]:
    """Return ±1 weights in the shapes of ResNet-18 (CIFAR)."""
    with torch.device("meta"):
        model = fb.models.create("resnet18", num_classes=10, input_size=32, init="torch")
    return [nn.Parameter(fb.quantizers.hard(torch.randn(p.shape))) for p in model.parameters()]


def stepper(optimizer: torch.optim.Optimizer, gradients: list[list[Tensor]]) -> Callable[[], None]:
    """Return a function that takes a step, with each of several sets of gradients in turn."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    turns = [0]

    def step() -> None:
        for parameter, gradient in zip(held, gradients[turns[0] % len(gradients)], strict=True):
            parameter.grad = gradient
        turns[0] += 1
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # a lasting direction for each weight, and noise; every flip costs work, so their share is shown
    drift = [torch.randn(p.shape) for p in parameters()]
    gradients = [[1e-3 * (d + 3 * torch.randn_like(d)) for d in drift] for _ in range(4)]
    optimizers = {
        "Adam, foreach": torch.optim.Adam(parameters(), foreach=True),
        "Adam, fused": torch.optim.Adam(parameters(), fused=True),
        "Bop": fb.optim.Bop(parameters(), threshold=1e-8, gamma=1e-4),
        "Bop2ndOrder, none": fb.optim.Bop2ndOrder(parameters(), gamma=1e-2, sigma=1e-3),
        "Bop2ndOrder, adam": fb.optim.Bop2ndOrder(parameters(), gamma=1e-2, sigma=1e-3, bias_correction="adam"),
        "CEMA": fb.optim.CEMA(parameters()),
        "SGDAT": fb.optim.SGDAT(parameters()),
        "Muon, kernels alone": fb.optim.Muon(p for p in parameters() if p.dim() > 1),
    }
    kernels = [[g for g in each if g.dim() > 1] for each in gradients]
    steps = {
        name: stepper(opt, kernels if isinstance(opt, fb.optim.Muon) else gradients) for name, opt in optimizers.items()
    }
    seconds = alternate(steps, options.rounds)
    adam, adam_bytes = seconds["Adam, foreach"], state_bytes(optimizers["Adam, foreach"])
    rows = []
    for name, time in seconds.items():
        optimizer = optimizers[name]
        size = state_bytes(optimizer)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        flips = sum(optimizer.flips(p) for p in held) if isinstance(optimizer, fb.optim.FlipOptimizer) else None
        entries = sum(p.numel() for p in held)
        rounds = options.rounds + 2
        rows.append(
            {
                "step": name,
                "ms": time * 1e3,
                "x Adam": time / adam,
                "state MB": size / 1e6,
                "bytes - Adam's": size - adam_bytes,
                "flips per step": "-" if flips is None else flips / entries / rounds,
            }
        )
    report("flip_step", rows)


if __name__ == "__main__":
    main()
