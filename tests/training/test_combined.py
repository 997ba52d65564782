"""Activations by one method, weights by flips: each preset learns and ends as a network of signs."""

import pytest
import torch

from frostbit import hardened, is_hard
from frostbit.training.build import build
from frostbit.training.module import TrainingModule
from frostbit.training.run import load_run, resume, train

from .test_resume import ARM, run_and_die, same, traces

PRESETS = {
    "stompp+bop2ndorder": ({"optimizer.gamma": 0.05, "optimizer.sigma": 0.05}, "stompp"),
    "bop+bnn+": ({"optimizer.gamma": 0.05}, None),
    "bop+bnn++": ({"optimizer.gamma": 0.05}, "anneal"),
}


def logits_of_signs(net, images):
    """What the network computes if every binary layer multiplies signs with signs, written out."""
    x = torch.nn.functional.linear(images.flatten(1), net.layers.linear1.weight)
    for name in ("2", "3"):
        norm = getattr(net.layers, f"bn{int(name) - 1}")
        weight = getattr(net.layers, f"linear{name}").weight
        assert set(weight.unique().tolist()) == {-1.0, 1.0}
        x = torch.nn.functional.linear(torch.where(norm(x) >= 0, 1.0, -1.0), weight)
    return net.fc(net.layers.bn3(x).clamp(min=0))


@pytest.mark.parametrize("method", PRESETS)
def test_it_learns_and_ends_exactly_binary(method, tiny, tmp_path):
    settings, _ = PRESETS[method]
    recipe = tiny(method, **settings, **{"train.epochs": 12, "train.eval_every": 12})
    result = train(recipe, arm="a", seed=1, folder=tmp_path)
    assert result["final"]["recalibrated"] > 40  # ten classes, 320 images
    assert result["curve"][-1]["acc_as_is"] == result["curve"][-1]["acc_hardened"]
    module, built = load_run(tmp_path)
    assert is_hard(module.net)
    images = next(iter(module.loader(built.data.test)))[0]
    net = module.net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(images), logits_of_signs(net, images))
        with hardened(net):
            torch.testing.assert_close(net(images), logits_of_signs(net, images))


@pytest.mark.parametrize("method", PRESETS)
def test_only_the_activations_are_on_their_way(method, tiny):
    settings, kind = PRESETS[method]
    built = build(tiny(method, **settings), 0)
    assert (None if built.progression is None else built.recipe.progression.kind) == kind
    net, images = built.net.eval(), torch.randn(8, 1, 8, 8)
    for layer in (net.layers.linear2, net.layers.linear3):
        assert layer.weight_quantizer.direct
        assert (layer.input_quantizer.frozen_share == 1.0) == (kind is None)
    with torch.no_grad():
        assert torch.allclose(net(images), logits_of_signs(net, images)) == (kind is None)
        with hardened(net):
            torch.testing.assert_close(net(images), logits_of_signs(net, images))


def test_a_killed_run_ends_like_one_left_alone(tiny, tmp_path):
    recipe = tiny("bop+bnn++", **PRESETS["bop+bnn++"][0])
    train(recipe, folder=tmp_path / "whole", **ARM)
    run_and_die(recipe, tmp_path / "torn", TrainingModule, "training_step", 13)
    resume(tmp_path / "torn")
    assert same(traces(tmp_path / "whole"), traces(tmp_path / "torn"))
