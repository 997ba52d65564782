"""BinaryConnect oscillates where ProxConnect with a growing hardness settles.

    python examples/oscillation.py             # docs/figures/oscillation.png, results/examples/oscillation.json

Sixteen ±1 weights are to agree with each other: the loss is half the sum of squared distances to their mean, 0 where
all are equal. Under BinaryConnect every weight of the minority is pushed over zero in the same step as many of the
majority, and so on for ever. ProxConnect starts from clip, lets the latents meet, then hardens. Twenty starts run
side by side, each a row of one layer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

import frostbit as fb

ROOT = Path(__file__).resolve().parent.parent
STARTS, WEIGHTS = 20, 16
RULES = {"BC": "ste_identity", "PC": "prox_linear"}


def disagreement(w: Tensor) -> Tensor:
    """Return the loss of each row."""
    return 0.5 * (w - w.mean(1, keepdim=True)).square().sum(1)


def run(rule: str, steps: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Train every start.

    Args:
        rule: ``"BC"`` or ``"PC"``.
        steps: optimizer steps.
        seed: of the starts.

    Returns:
        The number of signs that changed and the loss of the signs, both ``[steps, starts]``.
    """
    layer = fb.nn.Linear(WEIGHTS, STARTS, bias=False, weight_quantizer=RULES[rule], input_quantizer=None)
    model = nn.Sequential(layer)
    noise = torch.randn(STARTS, WEIGHTS, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.weight.copy_(0.05 + 0.1 * noise)
    optimizer = fb.optim.ProxConnect(model, torch.optim.SGD, lr=0.1)
    if rule == "PC":
        fb.Anneal(model, total_steps=steps, start=1, end=20, tail=0.25).attach(optimizer)

    flips, losses = [], []
    signs = fb.quantizers.hard(layer.weight)
    for _ in range(steps):
        optimizer.zero_grad()
        disagreement(model(torch.eye(WEIGHTS)).t()).sum().backward()  # each row's gradient is its own
        optimizer.step()
        before, signs = signs, fb.quantizers.hard(layer.weight)
        flips.append((signs != before).sum(1))
        losses.append(disagreement(signs))
    return torch.stack(flips), torch.stack(losses)


def summary(flips: Tensor, losses: Tensor) -> dict[str, float]:
    """Return what matters: how many starts have settled in the last quarter, and how many of them at the minimum."""
    still = flips[-len(flips) // 4 :].sum(0) == 0
    return {
        "starts": STARTS,
        "settled": int(still.sum()),
        "settled at loss 0": int((still & (losses[-1] == 0)).sum()),
        "signs changed per step and start, last quarter": float(flips[-len(flips) // 4 :].double().mean()),
        "mean loss at the end": float(losses[-1].mean()),
    }


def main() -> None:
    """Run both rules and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "oscillation.png")
    parser.add_argument("--result", type=Path, default=ROOT / "results" / "examples" / "oscillation.json")
    options = parser.parse_args()
    from matplotlib.figure import Figure

    runs = {rule: run(rule) for rule in RULES}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for rule, (flips, losses) in runs.items():
        panels[0].plot(flips.double().mean(1), label=rule, linewidth=1)
        panels[1].plot(losses.mean(1), label=rule, linewidth=1)
    panels[0].set(title=f"signs changed per step, of {WEIGHTS}", xlabel="step")
    panels[1].set(title="loss of the signs", xlabel="step")
    panels[0].legend(frameon=False)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=110)
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps({rule: summary(*each) for rule, each in runs.items()}, indent=1) + "\n")
    print(options.figure, options.result, sep="\n")


if __name__ == "__main__":
    main()
