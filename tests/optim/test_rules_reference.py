"""The flip rules against the plain reference and against float64."""

import math
from typing import Any

import pytest
import torch

from frostbit.optim import Bop2ndOrder, reference

from .flips import RULES, signs

torch.set_num_threads(1)

HALF_ULP = 2.0**-24
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bop": ("bop", {"threshold": 1e-3, "gamma": 1e-2}),
    "bop, τ=0": ("bop", {"threshold": 0.0, "gamma": 0.3}),
    "bop, fast": ("bop", {"threshold": 0.1, "gamma": 0.7}),
    "cema": ("cema", {"lr": 1e-2, "gamma": 0.1}),
    "sgdat": ("sgdat", {"lr": 1e-2, "threshold": 1e-2}),
    "sgdat, τ=0": ("sgdat", {"lr": 1e-2, "threshold": 0.0}),
    **{
        f"bop2ndorder, {correction}, {name}": ("bop2ndorder", {"bias_correction": correction, **options})
        for correction in ("none", "paper", "adam")
        for name, options in {
            "τ=0": {"threshold": 0.0, "gamma": 1e-2, "sigma": 1e-3},
            "centre": {"threshold": 1e-6, "gamma": 1e-7, "sigma": 1e-3},
            "τ acts": {
                "threshold": {"none": 0.05, "paper": 0.8, "adam": 0.08}[correction],
                "gamma": 1e-2,
                "sigma": 1e-2,
            },
        }.items()
    },
}


def of_reference(rule: str, options: dict[str, Any], w: float, g: float, kept: list[float], step: int) -> list[float]:
    if rule == "bop2ndorder":
        return list(reference.bop2ndorder(w, g, *kept, step, **options))
    return list({"bop": reference.bop, "cema": reference.cema, "sgdat": reference.sgdat}[rule](w, g, *kept, **options))


def margin(rule: str, options: dict[str, Any], w: float, kept: list[float], step: int) -> float:
    """How far the statistic is from the threshold, in ulps of the threshold."""
    if rule == "bop":
        s, bound = w * kept[0], options["threshold"]
    elif rule == "cema":
        s, bound = w * kept[1], 0.0
    elif rule == "sgdat":
        s, bound = -w * kept[0], options["threshold"] * kept[1]
    else:
        rest = {key: value for key, value in options.items() if key != "threshold"}
        s, bound = w * reference.bop2ndorder_statistic(*kept, step, **rest), options["threshold"]
    return abs(s - bound) / (2 * HALF_ULP * abs(bound) or math.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_fast_and_reference_flip_alike_over_1000_steps(case: str, dtype: torch.dtype) -> None:
    rule, options = CASES[case]
    entries, steps = 24, 1000
    w = signs(entries, dtype=dtype)
    optimizer = RULES[rule]([w], **options)
    weights = w.tolist()
    kept = [[0.0] * len(optimizer.moments) for _ in range(entries)]
    generator = torch.Generator().manual_seed(1)
    drift = torch.randn(entries, generator=generator)
    flips = 0
    for step in range(1, steps + 1):
        w.grad = (0.1 * drift * math.sin(step / 60) + torch.randn(entries, generator=generator)).to(dtype)
        optimizer.step()
        for i, (g, now) in enumerate(zip(w.grad.tolist(), w.tolist(), strict=True)):
            before = weights[i]
            weights[i], *kept[i] = of_reference(rule, options, before, g, kept[i], step)
            if now != weights[i]:
                seen = kept[i] if rule != "sgdat" else [kept[i][0], optimizer.state[w]["n"][i].item()]
                assert margin(rule, options, before, seen, step) <= 4, (step, i)
                weights[i] = now  # both are right so close to the threshold: go on together
            flips += weights[i] != before
    assert flips == optimizer.flips(w)
    assert flips > entries  # the case says something
    for name, values in zip(optimizer.moments, zip(*kept, strict=True), strict=True):
        assert optimizer.state[w][name].dtype == torch.float32
        torch.testing.assert_close(optimizer.state[w][name], torch.tensor(values), rtol=2e-6, atol=0)


# ---- moments


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [1e-2, 1e-4, 1e-7])
def test_moments_follow_float64_over_3000_steps(gamma: float, weights: torch.dtype) -> None:
    w = signs(64, dtype=weights)
    opt = Bop2ndOrder([w], gamma=gamma, sigma=gamma)
    m, v = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3000):
        w.grad = (1 + torch.randn(64, generator=generator)).to(weights)
        opt.step()
        g = w.grad.double()
        m += gamma * (g - m)
        v += gamma * (g.square() - v)
    for name, exact in (("m", m), ("v", v)):
        worst = (opt.state[w][name].double() / exact - 1).abs().max().item()
        assert worst < 2e-5, (name, worst)
    # an average kept in bf16 would have stalled at about half of that
    assert (w.abs() == 1).all()
