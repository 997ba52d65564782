"""Distillation, blockades, paces, moments and weight-decay schedules through a recipe."""

import csv

import pytest
import torch
from torch.nn import functional as F

from frostbit.errors import UsageError
from frostbit.training import build as building
from frostbit.training.distill import Distill
from frostbit.training.files import read_json
from frostbit.training.run import load_run, resume, train

from .test_resume import before_call, fork, traces

ARM = {"arm": "a", "seed": 3}


def distilled(weight: float, temperature: float = 2.0):
    torch.manual_seed(0)
    teacher, student = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    x, y = torch.randn(8, 6), torch.randint(4, (8,))
    return Distill(teacher, temperature, weight), student, x, y


def test_a_teacher_equal_to_the_student_gives_no_gradient():
    distill, student, x, y = distilled(1.0)
    student.load_state_dict(distill.teacher.state_dict())
    logits = student(x)
    loss = distill(F.cross_entropy(logits, y), logits, x)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.weight.grad.abs().max() < 1e-6


def test_the_loss_is_the_formula_and_the_teacher_stays():
    distill, student, x, y = distilled(0.25)
    logits = student(x)
    loss = distill(F.cross_entropy(logits, y), logits, x)
    t, s = (F.softmax(v / 2, 1) for v in (distill.teacher(x), logits))
    divergence = (t * (t.log() - s.log())).sum(1).mean()
    assert loss.item() == pytest.approx((0.75 * F.cross_entropy(logits, y) + 0.25 * 4 * divergence).item())
    loss.backward()
    assert all(p.grad is None for p in distill.teacher.parameters())


def convolutions(width: int) -> torch.nn.Sequential:
    first, second = (torch.nn.Conv2d(channels, width, 3, padding=1) for channels in (3, width))
    return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.Flatten(), torch.nn.Linear(16 * width, 4))


@pytest.mark.parametrize(("compare", "widths"), [("attention", (2, 3)), ("direction", (2, 2))])
def test_features_are_compared_by_the_formula(compare, widths):
    torch.manual_seed(0)
    student, teacher = (convolutions(width) for width in widths)
    x = torch.randn(5, 3, 4, 4)
    told = Distill(teacher, 1.0, 0.0, student=student, features=["1", "2"], feature_weight=0.5, compare=compare)
    loss = told(torch.zeros(()), student(x), x)
    expected = 0.0
    for stop in (1, 2):
        s, t = student[:stop](x), teacher[:stop](x)
        if compare == "attention":
            s, t = s.square().sum(1), t.square().sum(1)
        s, t = (v.reshape(5, -1) / v.reshape(5, -1).square().sum(1, keepdim=True).sqrt() for v in (s, t))
        expected += 0.5 * (s - t).square().sum(1).sqrt().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert student[0].weight.grad.abs().max() > 0
    assert student[4].weight.grad.abs().max() == 0  # it comes behind what is compared
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"features": ["three"]}, "no module of both networks is called 'three'"),
        ({"features": ["1"], "compare": "attenton"}, "did you mean 'attention'"),
        ({"features": ["4"]}, r"needs features \[N, C, H, W\], found \[5, 32\]: use 'direction'"),
        ({"features": ["0.unused"]}, "student's '0.unused' is not called in a forward pass"),
        ({"features": ["1"], "compare": "direction"}, "32 values of the student's with 48 of the teacher's"),
    ],
)
def test_features_that_cannot_be_compared_are_named(settings, sentence):
    student, teacher, x = convolutions(2), convolutions(3), torch.randn(5, 3, 4, 4)
    student[0].unused, teacher[0].unused = torch.nn.Identity(), torch.nn.Identity()
    with pytest.raises(UsageError, match=sentence):
        Distill(teacher, 1.0, 0.5, student=student, **settings)(torch.zeros(()), student(x), x)


def test_a_run_learns_from_a_float_run_and_is_read_without_it(tiny, tmp_path):
    wide = {"model": {"args": {"hidden": [40, 24]}}}
    train(tiny("float", **wide), arm="float", seed=3, folder=tmp_path / "float-seed3")
    teacher = str(tmp_path / "float-seed{seed}")
    recipe = tiny("stompp", distill={"teacher": teacher})
    assert building.build(recipe, 3).distill is not None
    plain, taught = building.build(tiny(), 3), building.build(recipe, 3)
    for a, b in zip(plain.net.parameters(), taught.net.parameters(), strict=True):
        assert torch.equal(a, b)  # the teacher takes no random number from the run
    result = train(recipe, arm="a", seed=3, folder=tmp_path / "run")
    assert result["resolved"]["distill"]["teacher"] == "float-seed{seed}"
    other = train(tiny(), arm="a", seed=3, folder=tmp_path / "plain")
    assert result["curve"][-1]["train_loss"] != other["curve"][-1]["train_loss"]
    (tmp_path / "float-seed3" / "final.pt").unlink()
    load_run(tmp_path / "run")
    with pytest.raises(UsageError, match="must be a float run, found method 'stompp'"):
        building.build(tiny("stompp", distill={"teacher": str(tmp_path / "plain")}), 3)


BEYOND = {
    "recovery": {"progression": {"pace": "recovery", "ste": "ste_clip"}},
    "flips": {"progression": {"pace": "flips", "ste_strength": [1, 0], "ste": "ste_clip", "ste_span": "run"}},
    "blockade": {"blockade": {"unit": "body.3", "start": 0.1, "stop": 0.6}},
    "moments": {"optimizer": {"name": "adam", "lr": 0.01, "moments": "rescale", "moments_at": "both"}},
    "order": {"progression": {"order": "damage"}},
    "muon": {"optimizer": {"name": "muon", "lr": 0.01, "latent_lr": 0.05}},
}


@pytest.mark.parametrize("case", BEYOND)
def test_a_killed_run_goes_on_bit_for_bit(case, tiny, tmp_path):
    from frostbit.training.module import TrainingModule

    settings = dict(BEYOND[case])
    if case == "blockade":
        settings["blockade"] = settings["blockade"] | {"unit": building.build(tiny(), 3).progression.units[1].name}
    recipe = tiny(**settings)
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def killed():
        before_call(TrainingModule, "training_step", 13)  # in the third epoch of four
        train(recipe, **ARM, folder=cut)

    train(recipe, **ARM, folder=whole)
    process = fork.Process(target=killed)
    process.start()
    process.join()
    assert not (cut / "result.json").exists()
    resume(cut)
    assert read_json(cut / "result.json")["windows"] == read_json(whole / "result.json")["windows"]
    a, b = traces(whole), traces(cut)
    assert a["steps"] == b["steps"]
    assert all(torch.equal(a["final"][key], b["final"][key]) for key in a["final"])


def test_step_sizes_are_recorded_on_request(tiny, tmp_path):
    train(tiny(train={"record_moments": True}), **ARM, folder=tmp_path)
    rows = list(csv.DictReader((tmp_path / "metrics_steps.csv").open()))
    assert any(float(row["rate/open"] or 0) > 0 and float(row["update/frozen"] or -1) >= 0 for row in rows)
    assert read_json(tmp_path / "result.json")["frozen_over_open"]["rate/end"] == 1  # SGD has one rate


def test_weight_decay_follows_its_schedule(tiny):
    from frostbit.training.optimizers import make_hyper_schedule, make_optimizer

    recipe = tiny("ste", optimizer={"weight_decay": 0.1, "weight_decay_end": 0.0})
    optimizer = make_optimizer(recipe.optimizer, building.build(recipe, 0).net)
    schedule = make_hyper_schedule(recipe.optimizer, optimizer, 10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"distill": {"temperature": 2}}, "distill.teacher must name"),
        ({"distill": {"teacher": "x", "weight": 2}}, r"distill.weight must lie in \[0, 1\]"),
        ({"distill": {"teacher": "nowhere"}}, "nowhere"),
        ({"distill": {"teacher": "x", "feature_weight": -1}}, "distill.feature_weight must be at least 0"),
        ({"blockade": {"unit": "nowhere"}}, "a unit with an input quantizer, found 'nowhere'"),
        ({"method": "float", "blockade": {"unit": "x"}}, "no unit to block"),
        ({"optimizer": {"moments": "forget"}}, "unknown optimizer.moments"),
        ({"optimizer": {"name": "sgd", "moments": "rescale"}}, "SGD has no second moment"),
    ],
)
def test_what_cannot_be_is_one_sentence(settings, sentence, tiny, tmp_path):
    with pytest.raises(UsageError, match=sentence) as caught:
        train(tiny(**settings), **ARM, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
