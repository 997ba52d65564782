"""A run does what the recipe says: the same as a plain loop, recorded truthfully, stopped with one sentence."""

import csv
import json
import math

import pytest
import torch
from torch.nn import functional

from frostbit import UsageError, clip_latents_, frozen_fraction
from frostbit.errors import RunError
from frostbit.training.build import build
from frostbit.training.evaluate import score
from frostbit.training.health import first_not_finite
from frostbit.training.module import TrainingModule
from frostbit.training.optimizers import lr_factor, make_optimizer
from frostbit.training.recipe import ScheduleConfig
from frostbit.training.resolve import resolve
from frostbit.training.run import load_run, make_trainer, read_config, train
from frostbit.training.settings import changed


def rows(path):
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def plain_loop(recipe, seed):
    """The same run without Lightning: the ten lines of a hand-written loop."""
    built = build(recipe, seed)
    module = TrainingModule(built.net, built.recipe, built.data, seed=seed, steps_per_epoch=built.steps_per_epoch)
    loader = module.loader(built.data.train, train=True)
    optimizer = make_optimizer(built.recipe.optimizer, built.net)
    if built.progression is not None:
        built.progression.attach(optimizer)
    for epoch in range(built.recipe.train.epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(built.net(images), labels).backward()
            optimizer.step()
            clip_latents_(built.net)
    return built.net


@pytest.mark.parametrize("method", ["float", "ste", "stompp", "stompp+ste", "hybrid", "stompp-bwn"])
def test_training_equals_a_plain_loop(method, tiny, tmp_path):
    recipe = tiny(method)
    train(recipe, arm="a", seed=1, folder=tmp_path)
    module, _ = load_run(tmp_path)
    expected = plain_loop(recipe, 1).state_dict()
    found = module.net.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_run_folder_tells_the_truth(tiny, tmp_path):
    recipe = tiny("stompp", **{"data.val_fraction": 0.2, "train.eval_every": 3})
    result = train(recipe, arm="a", seed=0, folder=tmp_path)
    assert result == json.loads(json.dumps(json.loads((tmp_path / "result.json").read_text()))) | {
        "windows": result["windows"]
    }
    curve = rows(tmp_path / "metrics.csv")
    assert [row["epoch"] for row in curve] == [3, 4]  # every third, and always the last
    module, built = load_run(tmp_path)
    test = module.loader(built.data.test)
    assert curve[-1]["acc_as_is"] == score(module.net, test)[1] == result["final"]["raw"]
    assert curve[-1]["acc_hardened"] == curve[-1]["acc_as_is"]  # the last window is over
    assert curve[0]["acc_hardened"] != curve[0]["acc_as_is"]
    assert len(built.data.val) == 64
    assert curve[-1]["val_acc_as_is"] == score(module.net, module.loader(built.data.val))[1]
    steps = rows(tmp_path / "metrics_steps.csv")
    assert [row["step"] for row in steps] == list(range(2, 17, 2))
    units = [window[0] for window in result["windows"]]
    assert list(frozen_fraction(module.net)) == units
    assert all(steps[-1][unit] == 1 for unit in units)
    assert steps[0][units[-1]] == 0
    resolved = result["resolved"]
    assert (resolved["model"]["num_classes"], resolved["derived"]["steps"]) == (10, 16)


def test_the_last_step_has_a_row_of_its_own(tiny, tmp_path):
    result = train(tiny(**{"train.record_every": 7}), arm="a", seed=0, folder=tmp_path)
    steps = rows(tmp_path / "metrics_steps.csv")
    assert [row["step"] for row in steps] == [7, 14, 20]
    assert all(steps[-1][unit] == 1 for unit, *_ in result["windows"])


def test_train_accuracy_covers_the_epochs_since_the_last_row(tiny, tmp_path):
    rarely = train(tiny("ste", **{"train.eval_every": 2}), arm="a", seed=0, folder=tmp_path / "a")["curve"]
    often = train(tiny("ste"), arm="a", seed=0, folder=tmp_path / "b")["curve"]
    assert rarely[0]["train_acc"] == pytest.approx((often[0]["train_acc"] + often[1]["train_acc"]) / 2, abs=1e-3)


def test_final_network_is_the_recalibrated_one(tiny, tmp_path):
    result = train(tiny("ste"), arm="a", seed=0, folder=tmp_path)
    module, built = load_run(tmp_path)
    module.net.load_state_dict(torch.load(tmp_path / "final.pt", weights_only=True))
    assert score(module.net, module.loader(built.data.test))[1] == result["final"]["recalibrated"]
    assert result["final"]["recalibrated"] != result["final"]["raw"]


def test_result_does_not_name_the_machine(tiny, tmp_path):
    train(tiny("float"), arm="f", seed=0, folder=tmp_path / "f")
    train(tiny("ste", init_from=str(tmp_path / "f")), arm="a", seed=0, folder=tmp_path / "a")
    assert str(tmp_path) not in (tmp_path / "a" / "result.json").read_text()


def test_everything_frozen_still_counts_steps(tiny, tmp_path):
    recipe = tiny("reverse", **{"binarize.keep": "none", "progression.tail": 0.5})
    result = train(recipe, arm="a", seed=0, folder=tmp_path)
    module, built = load_run(tmp_path)
    assert built.progression.steps_taken == result["resolved"]["derived"]["steps"] == 20
    assert set(frozen_fraction(module.net).values()) == {1.0}


def test_a_loss_without_gradient_can_be_stepped(tiny):
    built = build(tiny("float"), 0)
    built.net.requires_grad_(False)
    module = TrainingModule(built.net, built.recipe, built.data, seed=0, steps_per_epoch=1)
    loss = module.training_step(module.loader(built.data.train, train=True).batch(0, 0), 0)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("precision", ["bf16", "64"])
def test_other_precisions_train(precision, tiny, tmp_path):
    result = train(tiny("stompp", **{"train.precision": precision}), arm="a", seed=0, folder=tmp_path)
    assert result["final"]["raw"] > 30
    state = torch.load(tmp_path / "final.pt", weights_only=True)
    assert state["fc.weight"].dtype == (torch.float64 if precision == "64" else torch.float32)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_adam_is_fused_and_can_be_clipped(precision, tiny, tmp_path):
    changes = {"optimizer.name": "adam", "optimizer.lr": 1e-3, "train.grad_clip": 1.0, "train.precision": precision}
    recipe = tiny("stompp", **changes)
    train(recipe, arm="a", seed=0, folder=tmp_path)  # Lightning refuses to clip for a fused optimizer in bf16
    assert make_optimizer(recipe.optimizer, build(recipe, 0).net).defaults["fused"] is True


def test_accumulation_counts_optimizer_steps(tiny, tmp_path):
    result = train(tiny("stompp", **{"train.accumulate": 2}), arm="a", seed=0, folder=tmp_path)
    assert result["resolved"]["derived"]["steps"] == 12  # 5 batches an epoch are 3 steps
    assert load_run(tmp_path)[1].progression.steps_taken == 12


def test_init_from_starts_where_the_float_run_ended(tiny, tmp_path):
    train(tiny("float"), arm="f", seed=0, folder=tmp_path)
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    for source in (tmp_path, tmp_path / "final.pt", tmp_path / "last.ckpt"):
        net = build(tiny("stompp", init_from=str(source)), 5).net
        assert all(torch.equal(net.state_dict()[key], final[key]) for key in final)


def test_each_seed_starts_from_the_float_run_of_its_own(tiny, tmp_path):
    for seed in (0, 1):
        train(tiny("float", **{"train.epochs": 1}), arm="fp", seed=seed, folder=tmp_path / f"fp-seed{seed}")
    recipe = tiny("bnn++", init_from=str(tmp_path / "fp-seed{seed}"))
    for seed in (0, 1):
        net = build(recipe, seed).net
        state = torch.load(tmp_path / f"fp-seed{seed}" / "final.pt", weights_only=True)
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    result = train(recipe, arm="a", seed=1, folder=tmp_path / "a")
    assert result["resolved"]["init_from"] == "fp-seed{seed}"
    assert not changed(read_config(tmp_path / "a")[0], recipe)  # the same command goes on instead of starting anew
    with pytest.raises(UsageError, match=r"fp-seed7"):
        build(recipe, 7)


def test_init_from_another_network_names_the_first_mismatch(tiny, tmp_path):
    train(tiny("float"), arm="f", seed=0, folder=tmp_path)
    with pytest.raises(UsageError, match=r"'layers.linear1.weight' is \(24, 64\) there, \(8, 64\) here"):
        build(tiny(init_from=str(tmp_path), **{"model.args": {"hidden": [8, 8]}}), 0)
    other = {"model.name": "resnet8", "model.args": {}, "model.width": 4}
    with pytest.raises(UsageError, match=r"belongs to another network: it has no 'conv1.weight'"):
        build(tiny(init_from=str(tmp_path), **other), 0)


def test_a_loss_that_is_not_finite_names_step_value_and_checkpoint(tiny, tmp_path, monkeypatch):
    step = TrainingModule.training_step

    def poisoned(self, batch, index):
        if self.global_step == 8:
            with torch.no_grad():
                self.net.layers.linear2.weight[0, 0] = math.nan
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", poisoned)
    with pytest.raises(RunError, match=r"the loss is not finite at step 8, first in 'layers.linear2.weight'") as e:
        train(tiny("float"), arm="a", seed=0, folder=tmp_path)
    assert str(tmp_path / "last.ckpt") in str(e.value)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    assert [row["step"] for row in rows(tmp_path / "metrics_steps.csv")] == [2, 4, 6, 8]


def test_a_statistic_that_is_not_finite_stops_at_the_evaluation(tiny, tmp_path, monkeypatch):
    hook = TrainingModule.on_train_epoch_start

    def poisoned(self):
        hook(self)
        if self.current_epoch == 1:
            self.net.layers.bn1.running_mean[0] = math.inf

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", poisoned)
    with pytest.raises(RunError, match=r"step 10, first in 'layers.bn1.running_mean'"):
        train(tiny("ste"), arm="a", seed=0, folder=tmp_path)
    assert len(rows(tmp_path / "metrics.csv")) == 1


def test_the_first_bad_output_is_found_when_parameters_are_fine():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Identity(), torch.nn.Linear(2, 2))
    assert first_not_finite(net, torch.ones(1, 2)) is None
    assert first_not_finite(net, torch.tensor([[1.0, math.nan]])) == "the output of '0'"


def test_a_checkpoint_of_another_method_or_network_is_refused(tiny, tmp_path):
    train(tiny("float"), arm="a", seed=0, folder=tmp_path / "f")
    train(tiny("stompp"), arm="a", seed=0, folder=tmp_path / "s")
    (tmp_path / "s" / "last.ckpt").write_bytes((tmp_path / "f" / "last.ckpt").read_bytes())
    with pytest.raises(UsageError, match="another method"):
        load_run(tmp_path / "s")


def test_sizes_that_contradict_the_data(tiny):
    with pytest.raises(UsageError, match=r"train.batch is 999, but there are only 320"):
        build(tiny(**{"train.batch": 999}), 0)
    with pytest.raises(UsageError, match=r"num_classes is 3, but 'digits' has 10"):
        build(tiny(**{"model.num_classes": 3}), 0)
    with pytest.raises(UsageError, match=r"input_size is 9, but the inputs of 'digits' have 8"):
        build(tiny(**{"model.input_size": 9}), 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1]),
        ({"name": "constant", "warmup_epochs": 1}, [0.1, 0.6, 1, 1, 1]),
        ({"name": "cosine"}, [1, 0.853553, 0.5, 0.146447, 0]),
        ({"name": "linear", "final_lr": 0.02}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"name": "step", "milestones": [1, 3], "gamma": 0.1}, [1, 1, 0.1, 0.01, 0.01]),
        ({"name": "step", "milestones": [3, 1], "gamma": 0.1}, [1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_learning_rate_schedules(config, expected):
    found = [lr_factor(ScheduleConfig(**config), 0.1, step, 10, 40) for step in (0, 5, 20, 30, 40)]
    if "milestones" not in config and "warmup_epochs" not in config:
        found = [lr_factor(ScheduleConfig(**config), 0.1, step, 10, 40) for step in (0, 10, 20, 30, 40)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_top_5_counts_a_label_among_the_five_largest_logits():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0]]).repeat(4, 1)
    labels = torch.tensor([0, 4, 5, 6])
    _, top1, top5 = score(torch.nn.Identity(), [(logits, labels)])
    assert (top1, top5) == (25.0, 50.0)
    assert score(torch.nn.Identity(), [(logits[:1, :3], labels[:1])])[2] == 100.0


def test_seconds_go_on_where_the_checkpoint_left_them(tiny, tmp_path):
    result = train(tiny(), arm="a", seed=0, folder=tmp_path)
    assert result["seconds_cpu"] > 0
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["frostbit"]["seconds"]
    module, _ = load_run(tmp_path)
    assert (module.seconds_before, module.seconds_cpu_before, module.seconds_evaluating) == saved
    assert module.seconds_cpu > module.seconds_cpu_before


@pytest.mark.parametrize(("method", "blocks"), [("float", False), ("ste", True), ("stompp", True)])
def test_two_processes_wait_for_no_gradient_that_a_hard_sign_blocks(method, blocks, tmp_path):
    settings = {"method": method, "train.devices": 2, "train.accelerator": "cpu"}
    trainer = make_trainer(resolve(settings), tmp_path, progress=False)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is blocks
