"""The ProxConnect++ methods as presets: what they resolve to, and that a run does what they say."""

import pytest

from frostbit import is_hard
from frostbit.errors import UsageError
from frostbit.optim import ProxConnect
from frostbit.training.build import build
from frostbit.training.methods import METHODS
from frostbit.training.module import TrainingModule
from frostbit.training.optimizers import make_optimizer
from frostbit.training.run import load_run, resume, train

from .test_resume import ARM, run_and_die, traces
from .test_resume import same as alike

UNBOUNDED = {"name": "binary_relax", "bounded": False}
PRESETS = {
    "bnn+": ("bnn+", None, "quantized", "latent"),
    "bnn++": ("bnn++", (5.0, 500.0), "quantized", "latent"),
    "pc": ("prox_linear", (1.0, 100.0), "quantized", "latent"),
    "parq": ("parq", (1.0, 100.0), "quantized", "latent"),
    "binary_relax": ("binary_relax", (1.0, 100.0), "quantized", "latent"),
    "pq": (UNBOUNDED, (1.0, 1.01), "quantized", "quantized"),
    "rpc": (UNBOUNDED, (1.0, 1.01), "latent", "quantized"),
}


@pytest.mark.parametrize("method", PRESETS)
def test_what_a_preset_resolves_to(method, tiny):
    weight, path, grad_at, step_from = PRESETS[method]
    recipe = tiny(method)
    assert recipe.binarize.weight == weight
    assert recipe.binarize.input == "ste_clip"
    assert (recipe.optimizer.grad_at, recipe.optimizer.step_from) == (grad_at, step_from)
    progression = recipe.progression
    assert path == (None if progression is None else (progression.start, progression.end))
    if progression is not None:
        assert (progression.kind, progression.tail, progression.order) == ("anneal", 0.15, "global")
    built = build(recipe, 0)
    optimizer = make_optimizer(built.recipe.optimizer, built.net)
    assert isinstance(optimizer, ProxConnect) == ((grad_at, step_from) != ("quantized", "latent"))


def test_explicit_settings_win_over_a_preset(tiny):
    recipe = tiny("pq", **{"optimizer.step_from": "latent", "progression.end": 3.0, "progression.shape": "geometric"})
    assert (recipe.optimizer.step_from, recipe.progression.end) == ("latent", 3.0)
    assert tiny("bop", **{"optimizer.grad_at": "latent"}).optimizer.grad_at is None  # nothing to a flip rule
    summed = tiny("pc", **{"progression.shape": "sum_lr"})
    assert (summed.progression.start, summed.progression.end) == (None, None)
    build(summed, 0)
    with pytest.raises(UsageError, match=r"optimizer\.grad_at must be"):
        tiny("pq", **{"optimizer.grad_at": "latnet"})
    built = build(tiny("float", **{"optimizer.step_from": "quantized"}), 0)
    with pytest.raises(UsageError, match="found no binary weight"):
        make_optimizer(built.recipe.optimizer, built.net)


@pytest.mark.parametrize("method", ["bnn++", "rpc"])
def test_a_run_of_it_learns_and_ends_hard(method, tiny, tmp_path):
    recipe = tiny(
        method, **{"train.epochs": 6, "train.eval_every": 6, "progression.end": 1.5} if method == "rpc" else {}
    )
    result = train(recipe, arm="a", seed=1, folder=tmp_path)
    assert result["final"]["recalibrated"] > 40  # ten classes, 320 images
    assert result["curve"][-1]["acc_as_is"] == result["curve"][-1]["acc_hardened"]
    module, _ = load_run(tmp_path)
    assert is_hard(module.net)


@pytest.mark.parametrize("settings", [{}, {"progression.shape": "sum_lr"}], ids=["linear", "sum_lr"])
def test_a_killed_run_ends_like_one_left_alone(settings, tiny, tmp_path):
    recipe = tiny("rpc", **settings)
    train(recipe, folder=tmp_path / "whole", **ARM)
    run_and_die(recipe, tmp_path / "torn", TrainingModule, "training_step", 13)
    resume(tmp_path / "torn")
    assert alike(traces(tmp_path / "whole"), traces(tmp_path / "torn"))


def test_one_line_of_a_recipe_puts_stompp_over_bnn(tiny, tmp_path):
    recipe = tiny("stompp+ste", **{"progression.soft": "bnn++", "progression.soft_hardness": [5, 500]})
    result = train(recipe, arm="a", seed=0, folder=tmp_path)
    assert result["final"]["recalibrated"] > 25


def test_the_methods_table_holds_every_preset():
    assert set(PRESETS) <= set(METHODS)
