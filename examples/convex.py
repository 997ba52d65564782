"""ProxConnect's guarantee, observed: logistic regression with a convex regularizer stays under the bound.

    python examples/convex.py                  # docs/figures/convex.png, results/examples/convex.json

For a convex loss ℓ with gradients no longer than G, a convex regularizer r, a solution at distance R from the start
and learning rates ``η_t = R / (2G√t)``, both the last iterate w_t and the average of all iterates miss the minimum
of ``ℓ + r`` by at most ``GR(2 + 1.5 ln t)/√t``. ProxConnect takes the gradient at ``w = P(w*)``, where P is the
proximal map of ``(Σ η) r``, and moves the latent w*.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import frostbit as fb

ROOT = Path(__file__).resolve().parent.parent
WEIGHT_OF_L1 = 0.05


@dataclass(frozen=True)
class Regularizer:
    """A convex r, as the quantizer whose F is the proximal map of ``(h − 1) r``, B = 1, and as a function."""

    quantizer: fb.quantizers.Quantizer
    value: Callable[[Tensor], Tensor]
    prox: Callable[[Tensor, float], Tensor]


def soft_threshold(w: Tensor, by: Tensor | float) -> Tensor:
    """Return the proximal map of ``by · |w|``."""
    return w.sign() * (w.abs() - by).clamp_min(0)


REGULARIZERS = {
    # the box [-1, 1]: its proximal map is clip whatever the factor, so prox_linear stays at hardness 1
    "box": Regularizer(
        fb.quantizers.create("prox_linear", rho=0.0, varrho=0.0),
        lambda w: torch.zeros(()),  # the iterates are inside
        lambda w, by: w.clamp(-1, 1),
    ),
    # |w|: a pair of one's own, whose hardness 1 + Σ η the progression below supplies
    "l1": Regularizer(
        fb.quantizers.from_pair(
            lambda w, h: soft_threshold(w, WEIGHT_OF_L1 * (h - 1)), lambda w, h: torch.ones_like(w), hardness=1.0
        ),
        lambda w: WEIGHT_OF_L1 * w.abs().sum(),
        lambda w, by: soft_threshold(w, WEIGHT_OF_L1 * by),
    ),
}


def data() -> tuple[Tensor, Tensor]:
    """Return 200 points in 10 dimensions and labels ±1, some of them wrong."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, generator=generator, dtype=torch.float64)
    return x, (x @ torch.linspace(-2, 2, 10, dtype=torch.float64) + 2 * noise).sign()


def loss(scores: Tensor, y: Tensor) -> Tensor:
    """Return the logistic loss, the mean over the points."""
    return nn.functional.softplus(-y * scores).mean()


def solve(regularizer: Regularizer, x: Tensor, y: Tensor) -> Tensor:
    """Return the minimizer of ``ℓ + r`` by proximal gradient steps, to machine precision."""
    w = torch.zeros(x.shape[1], dtype=x.dtype)
    rate = 4 * len(x) / float(torch.linalg.matrix_norm(x, 2)) ** 2
    for _ in range(3000):
        slope = -(x * (y * torch.sigmoid(-y * (x @ w)))[:, None]).mean(0)
        w = regularizer.prox(w - rate * slope, rate)
    return w


def run(name: str, steps: int = 1000) -> dict[str, list[float]]:
    """Train with ProxConnect and measure both gaps at every step.

    Args:
        name: of the regularizer.
        steps: optimizer steps.

    Returns:
        ``{"last": …, "averaged": …, "bound": …}``, one number a step.
    """
    regularizer = REGULARIZERS[name]
    x, y = data()
    solution = solve(regularizer, x, y)
    lowest = loss(x @ solution, y) + regularizer.value(solution)
    # the gradient is a mean of ±σ x, so no longer than the points' mean length
    g, r = float(x.norm(dim=1).mean()), float(solution.norm())

    layer = fb.nn.Linear(10, 1, bias=False, weight_quantizer=regularizer.quantizer, input_quantizer=None)
    model = nn.Sequential(layer).double()
    nn.init.zeros_(layer.weight)
    optimizer = fb.optim.ProxConnect(model, torch.optim.SGD, lr=r / (2 * g))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / math.sqrt(t + 1))
    if layer.weight_quantizer.hardness is not None:
        fb.units(model, x)
        fb.Anneal(model, total_steps=steps + 1, shape="sum_lr").attach(optimizer)

    gaps: dict[str, list[float]] = {"last": [], "averaged": [], "bound": []}
    total = torch.zeros(10, dtype=torch.float64)
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        loss(model(x).squeeze(1), y).backward()
        optimizer.step()
        schedule.step()
        w = layer.weight_quantizer(layer.weight).detach().squeeze(0)
        total += w
        for key, at in (("last", w), ("averaged", total / t)):
            gaps[key].append(float(loss(x @ at, y) + regularizer.value(at) - lowest))
        gaps["bound"].append(g * r * (2 + 1.5 * math.log(t)) / math.sqrt(t))
    return gaps


def main() -> None:
    """Run both and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "convex.png")
    parser.add_argument("--result", type=Path, default=ROOT / "results" / "examples" / "convex.json")
    options = parser.parse_args()
    from matplotlib.figure import Figure

    runs = {name: run(name) for name in REGULARIZERS}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, gaps) in zip(figure.subplots(1, 2, sharey=True), runs.items(), strict=True):
        for (key, values), dash in zip(gaps.items(), ("-", "--", ":"), strict=True):
            axes.loglog(range(1, len(values) + 1), [max(v, 1e-9) for v in values], dash, label=key)
        axes.set(title=f"logistic regression, {name}", xlabel="step t", ylim=(1e-4, 1e2))
    figure.axes[0].set_ylabel("loss above the minimum")
    figure.axes[0].legend(frameon=False)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=110)
    shown = [0, 9, 99, 999]
    table = {n: {key: [values[i] for i in shown] for key, values in gaps.items()} for n, gaps in runs.items()}
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps({"steps": [i + 1 for i in shown], **table}, indent=1) + "\n")
    print(options.figure, options.result, sep="\n")


if __name__ == "__main__":
    main()
