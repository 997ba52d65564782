"""Flip rules and Muon in recipes: presets, fields of their own, schedules, refusals, and a run that resumes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import frostbit as fb
from frostbit.errors import UsageError
from frostbit.training.build import build
from frostbit.training.files import load_tensors
from frostbit.training.module import TrainingModule
from frostbit.training.optimizers import make_hyper_schedule, make_optimizer
from frostbit.training.recipe import Recipe
from frostbit.training.resolve import resolve
from frostbit.training.settings import flatten, to_dict

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "mlp", "args": {"hidden": [16, 16, 16]}},
    "data": {"name": "digits", "limit_train": 128, "limit_test": 50},
    "train": {"epochs": 2, "batch": 32, "record_every": 2, "threads": 1, "accelerator": "cpu"},
    "binarize": {"min_binary_macs": 0.0},
}


def tiny(method: str, **settings: Any) -> Recipe:
    return resolve(flatten(TINY), {"method": method, **settings})


@pytest.mark.parametrize("method", ["bop", "bop2ndorder", "stompp+bop2ndorder"])
def test_presets_fill_in_the_rules_own_numbers(method: str) -> None:
    config = tiny(method).optimizer
    kind = fb.optim.Bop if method == "bop" else fb.optim.Bop2ndOrder
    (w,) = [torch.nn.Parameter(torch.ones(2))]
    group = kind([w]).param_groups[0]
    for name in ("threshold", "gamma", "sigma", "bias_correction"):
        assert getattr(config, name) == group.get(name), name
    assert (config.rest, config.lr, config.betas, config.momentum) == ("adam", 0.01, (0.9, 0.999), None)
    again = resolve(flatten(to_dict(tiny(method))))
    assert to_dict(again) == to_dict(tiny(method))


def test_fields_that_mean_nothing_are_cleared() -> None:
    sgd = tiny("bop", **{"optimizer.rest": "sgd", "optimizer.momentum": 0.5, "optimizer.sigma": 0.1}).optimizer
    assert (sgd.momentum, sgd.betas, sgd.sigma) == (0.5, None, None)
    plain = tiny("ste", **{"optimizer.gamma": 0.1}).optimizer
    assert (plain.gamma, plain.rest, plain.stairs) == (None, None, None)
    cema = tiny("bop", **{"optimizer.name": "cema", "optimizer.flip_lr": 0.5}).optimizer
    assert (cema.flip_lr, cema.gamma, cema.threshold) == (0.5, 0.1, None)


@pytest.mark.parametrize("name", ["bop", "bop2ndorder", "cema", "sgdat"])
def test_optimizers_of_recipes(name: str) -> None:
    recipe = tiny("bop", **{"optimizer.name": name, "optimizer.rest": "sgd", "optimizer.weight_decay": 0.1})
    net = build(recipe, 0).net
    optimizer = make_optimizer(recipe.optimizer, net)
    assert isinstance(optimizer, fb.optim.CaseOptimizer)
    sgd, flip, kernels = optimizer.param_groups
    assert {type(o).__name__.lower() for o in optimizer.optimizers.values()} == {"sgd", name}
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in (sgd, kernels)] == [(0.01, 0.9, 0), (0.01, 0.9, 0.1)]
    assert kernels["param_names"] == ["layers.linear1.weight", "fc.weight"]  # neither norms nor biases decay
    assert flip["lr"] == {"cema": 1e-3, "sgdat": 1e-2}.get(name, 0.0)
    assert make_hyper_schedule(recipe.optimizer, optimizer, 10) is None


def test_muon_moves_latent_weights_and_adam_the_rest() -> None:
    settings = {"optimizer.name": "muon", "optimizer.latent_lr": 0.05, "optimizer.lr": 0.03, "optimizer.gamma": 0.1}
    recipe = tiny("ste", **settings, **{"schedule.name": "cosine", "optimizer.weight_decay": 0.1})
    config = recipe.optimizer
    assert (config.rest, config.latent_lr, config.gamma, config.moments) == ("adam", 0.05, None, None)
    net = build(recipe, 0).net
    optimizer = make_optimizer(config, net)
    adam, muon, kernels = optimizer.param_groups
    assert [group["lr"] for group in (adam, muon, kernels)] == [0.03, 0.05, 0.03]
    assert muon["param_names"] == [name for name, _ in fb.binary_parameters(net)]
    assert "weight_decay" not in muon
    assert tiny("ste", **{"optimizer.name": "muon"}).optimizer.latent_lr == 0.02
    direct = tiny("bop", **{"optimizer.name": "muon"})
    flips = build(direct, 0).net
    with pytest.raises(UsageError, match=r"Muon cannot move .* it is a direct weight"):
        make_optimizer(direct.optimizer, flips)
    with pytest.raises(UsageError, match=r"optimizer.latent_lr must be above 0, found -1.0"):
        tiny("ste", **{"optimizer.name": "muon", "optimizer.latent_lr": -1.0})


def test_decay_without_a_real_kernel_is_none() -> None:
    settings = {"model.name": "binarynet", "model.args": {}, "model.width": 2, "data.size": 16}
    recipe = tiny("bop", **settings, **{"optimizer.weight_decay": 0.1})
    groups = make_optimizer(recipe.optimizer, build(recipe, 0).net).param_groups
    assert [group.get("weight_decay") for group in groups] == [0.0, None]


def test_schedules_of_recipes() -> None:
    settings = {"optimizer.gamma": 1e-2, "optimizer.gamma_end": 1e-4, "optimizer.hyper_shape": "staircase"}
    recipe = tiny("bop", **settings, **{"optimizer.stairs": 3, "optimizer.threshold_end": 1e-6})
    optimizer = make_optimizer(recipe.optimizer, build(recipe, 0).net)
    schedule = make_hyper_schedule(recipe.optimizer, optimizer, 9)
    assert schedule is not None
    seen = []
    for _ in range(9):
        seen.append(optimizer.param_groups[1]["gamma"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([1e-2] * 3 + [1e-3] * 3 + [1e-4] * 3)


@pytest.mark.parametrize(
    ("name", "start", "end", "shape", "said"),
    [
        ("threshold", 0, 1, "exponential", "optimizer.threshold cannot go from 0.0 to 1.0 as exponential"),
        ("gamma", 0.5, -5, "linear", "from 0.5 to -5.0 as linear: it must be above 0 and at most 1"),
        ("gamma", 0.5, 0, "staircase", "from 0.5 to 0.0 as staircase: it must be above 0"),
        ("gamma", 0.5, 0, "cosine", None),
    ],
)
def test_ends_that_a_curve_or_the_rule_cannot_have(
    name: str, start: float, end: float, shape: str, said: str | None
) -> None:
    settings = {f"optimizer.{name}": start, f"optimizer.{name}_end": end, "optimizer.hyper_shape": shape}
    recipe = tiny("bop", **settings)
    optimizer = make_optimizer(recipe.optimizer, build(recipe, 0).net)
    if said is None:
        assert make_hyper_schedule(recipe.optimizer, optimizer, 9) is not None
        return
    with pytest.raises(UsageError, match=said):
        make_hyper_schedule(recipe.optimizer, optimizer, 9)


REFUSALS = {
    "rest": ({"optimizer.rest": "adm"}, "unknown optimizer.rest 'adm': did you mean 'adam'"),
    "shape": ({"optimizer.hyper_shape": "lienar"}, "unknown optimizer.hyper_shape 'lienar': did you mean 'linear'"),
    "name": ({"optimizer.name": "bop2"}, "unknown optimizer 'bop2'"),
    "correction": (
        {"optimizer.name": "bop2ndorder", "optimizer.bias_correction": "adm"},
        "unknown optimizer.bias_correction 'adm': did you mean 'adam'",
    ),
    "latent": ({"binarize.weight": "ste_clip"}, "Bop cannot move 'layers.linear2.weight': it is a latent weight"),
    "direct": ({"optimizer.name": "adam"}, "Adam cannot move 'layers.linear2.weight': it is a direct weight"),
    "prox": (
        {"optimizer.name": "sgd", "optimizer.step_from": "quantized"},
        "cannot move 'layers.linear2.weight': it is a direct weight",
    ),
    "gamma": ({"optimizer.gamma": 2.0}, "Bop needs gamma to be above 0 and at most 1, found 2.0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    settings, said = REFUSALS[case]

    def make() -> torch.optim.Optimizer:
        recipe = tiny("bop", **settings)
        return make_optimizer(recipe.optimizer, build(recipe, 0).net)

    with pytest.raises(UsageError, match=said):
        make()


def test_a_run_leaves_signs_and_resumes_bit_exactly(tmp_path: Path) -> None:
    from frostbit.training import run

    settings = {
        "optimizer.gamma": 0.05,
        "optimizer.gamma_end": 0.01,
        "optimizer.sigma": 0.05,
        "schedule.name": "cosine",
    }
    recipe = tiny("stompp+bop2ndorder", **settings)
    result = run.train(copy.deepcopy(recipe), arm="a", seed=0, folder=tmp_path / "whole")
    assert result["resolved"]["optimizer"]["gamma"] == 0.05
    assert {window[2] for window in result["windows"]} == {4, 8}
    final = load_tensors(tmp_path / "whole" / "final.pt")
    assert set(final["layers.linear2.weight"].flatten().tolist()) == {-1.0, 1.0}
    checkpoint = load_tensors(tmp_path / "whole" / "last.ckpt")
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert groups[1]["gamma"] == pytest.approx(0.01)
    assert groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)

    before = TrainingModule.on_train_epoch_start

    def stop(module: TrainingModule) -> None:
        before(module)
        if module.current_epoch == 1:
            raise KeyboardInterrupt

    TrainingModule.on_train_epoch_start = stop  # for the time of one run
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.train(copy.deepcopy(recipe), arm="a", seed=0, folder=tmp_path / "cut")
    finally:
        TrainingModule.on_train_epoch_start = before  # as it was
    run.train(copy.deepcopy(recipe), arm="a", seed=0, folder=tmp_path / "cut", resume=True)
    resumed = load_tensors(tmp_path / "cut" / "final.pt")
    assert all(torch.equal(final[name], resumed[name]) for name in final)
    again = load_tensors(tmp_path / "cut" / "last.ckpt")["optimizer_states"][0]["state"]
    for number, state in checkpoint["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[number][name])), name
