"""The matched comparison of ProxConnect++: its recipes are matched, its settings are what they say, its runs learn."""

from pathlib import Path

import pytest
import torch
import yaml

from frostbit import nn as fnn
from frostbit.cli.compare import arm_recipes
from frostbit.evaluation import is_hard
from frostbit.training.build import build, make_net
from frostbit.training.recipe import Recipe
from frostbit.training.recipe_file import at_scale, read_recipe_file
from frostbit.training.resolve import resolve
from frostbit.training.run import load_run, train
from frostbit.training.settings import differences, flatten, to_dict

RECIPES = Path(__file__).parent.parent.parent / "recipes"
NAMES = sorted(path.stem for pattern in ("prox-*", "parq-*") for path in RECIPES.glob(f"{pattern}.yaml"))
STATED = {name: read_recipe_file(RECIPES / f"{name}.yaml") for name in NAMES}
SCALES = [(name, scale) for name in NAMES for scale in ("full", *STATED[name].get("scales", {}))]
EIGHT = ["fp", "pq", "rpc", "bc", "pc", "bnn", "bnn+", "bnn++"]
#: what a method may prescribe; everything else is the same in all arms
MAY_DIFFER = {
    *("method", "binarize", "binarize.weight", "binarize.latent_clip", "binarize.accumulator_bits"),
    *("progression", "progression.start", "progression.end", "progression.shape"),
    *("optimizer.grad_at", "optimizer.step_from"),
}
#: the real layers and the number of binary ones; the last layer of the CIFAR networks is binary
NETWORKS = {
    "resnet20": ({"conv1", "layer2.0.downsample.0", "layer3.0.downsample.0"}, 19),
    "resnet56": ({"conv1", "layer2.0.downsample.0", "layer3.0.downsample.0"}, 55),
    "resnet50": ({"conv1", "fc", *(f"layer{stage}.0.downsample.0" for stage in range(1, 5))}, 48),
    "vit_tiny": ({"patch_embed.proj", "head"}, 16),
}
IMAGES = {"cifar10": 50_000, "folder": 1_281_167}


def arms(name: str, scale: str) -> dict[str, Recipe]:
    return arm_recipes(at_scale(STATED[name], scale), {"methods": None, "arms": None}, {})


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_arms_differ_in_their_method_alone(name, scale):
    recipes = arms(name, scale)
    if name.startswith("prox"):
        assert list(recipes)[:8] == EIGHT
    assert set(differences({arm: to_dict(recipe) for arm, recipe in recipes.items()})) <= MAY_DIFFER
    for arm, recipe in recipes.items():
        if arm not in ("pq", "rpc"):
            continue
        steps = recipe.train.epochs * ((recipe.data.limit_train or IMAGES[recipe.data.name]) // recipe.train.batch)
        assert (recipe.progression.end - 1) * 0.5 * 0.85 * steps == pytest.approx(10, rel=0.08)
    binary = [recipe.binarize for recipe in recipes.values() if recipe.binarize is not None]
    assert len(binary) == len(recipes) - 1  # all but fp
    assert {config.weight_scale for config in binary} == {"mean_abs"}
    assert {config.input for config in binary} == ({"ste_clip"} if "bwa" in name else {None})


@pytest.mark.parametrize("name", [name for name, scale in SCALES if scale == "cpu"])
def test_the_networks_are_those_of_their_setting(name):
    for arm, recipe in arms(name, "cpu").items():
        recipe.model.num_classes, recipe.model.input_size, recipe.init_from = 10, 16, None
        net, report = make_net(recipe, torch.randn(4, 3, 16, 16))
        if arm == "fp":
            assert report is None
            continue
        layers = {path: m for path, m in net.named_modules() if isinstance(m, fnn.BinaryLayer)}
        real = {path for path, m in net.named_modules() if type(m) in (torch.nn.Linear, torch.nn.Conv2d)}
        assert (real, len(layers)) == NETWORKS[recipe.model.name]
        binary_inputs = {path for path, layer in layers.items() if layer.input_quantizer is not None}
        assert binary_inputs == (set(layers) - {"fc"} if "bwa" in name else set())
        with_bits = {path for path, layer in layers.items() if layer.accumulator_bits == 8}
        assert with_bits == (binary_inputs if arm.endswith("bwaa") else set())


PATCHES = {"depth": 1, "heads": 2, "patch_size": 2}
VIT = {
    "model": {"name": "vit_tiny", "width": 16, "init": "fan_in_normal"},
    "optimizer": {"name": "adamw", "lr": 0.005},
    "train": {"epochs": 8, "eval_every": 8},
    "binarize": {"weight_scale": "mean_abs", "min_binary_macs": 0.8},
}


def vit(tiny, method: str, **settings: object) -> Recipe:
    base = flatten(VIT) if method == "float" else {**flatten(VIT), "binarize.input": None}
    return tiny(method, **{**base, **settings, "model.args": PATCHES})


@pytest.mark.parametrize("method", ["bnn++", "pq"])
def test_a_vision_transformer_learns_with_binary_weights_and_goes_on_from_a_float_run(method, tiny, tmp_path):
    ending = {"progression.end": 1.5} if method == "pq" else {}  # the sum of h - 1 is about ten in 40 steps
    scratch = train(vit(tiny, method, **ending), arm="a", seed=0, folder=tmp_path / "scratch")
    assert scratch["final"]["recalibrated"] > 25  # ten classes, 320 images
    module, _ = load_run(tmp_path / "scratch")
    assert is_hard(module.net)
    assert not any(layer.input_quantizer for layer in module.net.modules() if isinstance(layer, fnn.BinaryLayer))
    train(vit(tiny, "float", **{"train.epochs": 20}), arm="fp", seed=0, folder=tmp_path / "fp-seed0")
    tuned = train(
        vit(tiny, method, **ending, init_from=str(tmp_path / "fp-seed{seed}")), arm="a", seed=0, folder=tmp_path / "t"
    )
    assert tuned["final"]["recalibrated"] > scratch["final"]["recalibrated"]


def test_sums_of_few_bits_in_a_run(tiny, tmp_path):
    settings = {"binarize.accumulator_bits": 3, "binarize.weight_scale": "mean_abs"}
    result = train(tiny("bnn++", **settings, **{"train.epochs": 8}), arm="a", seed=0, folder=tmp_path / "3")
    assert result["resolved"]["binarize"]["accumulator_bits"] == 3
    assert result["final"]["recalibrated"] > 40
    module, _ = load_run(tmp_path / "3")
    layers = [layer for layer in module.net.modules() if isinstance(layer, fnn.BinaryLayer)]
    assert {layer.accumulator(24).bits for layer in layers} == {3}


def test_one_changed_line_of_a_recipe_puts_stompp_over_bnn(tmp_path):
    text = (RECIPES / "demo.yaml").read_text()
    line = "progression: {refresh: 20}"
    assert text.count(line) == 1
    changed = text.replace(line, "progression: {refresh: 20, soft: bnn++, soft_hardness: [5, 500]}")
    (tmp_path / "r.yaml").write_text(changed)
    given = {"model.name": "resnet8", "model.width": 8, "train.epochs": 6, "train.eval_every": 6, "seeds": [0]}
    arms = arm_recipes(read_recipe_file(tmp_path / "r.yaml"), {"methods": None, "arms": "stompp"}, given)
    built = build(arms["stompp"], 0)
    soft = {type(q.soft).__name__ for unit in built.progression.units for q in unit.quantizers()}
    assert soft == {"SmoothSwishSign"}
    result = train(arms["stompp"], arm="stompp", seed=0, folder=tmp_path / "run")
    assert result["final"]["recalibrated"] > 50
    module, _ = load_run(tmp_path / "run")
    assert is_hard(module.net)
    assert resolve(flatten(yaml.safe_load(text))).progression.soft == "clip"
