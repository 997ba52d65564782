"""What a run records and says about flips: columns, warnings that name what to change, figure, page, resume."""

import csv
import warnings
from html import unescape

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.analysis import figures
from frostbit.cli.report import inside_section
from frostbit.training.files import load_tensors
from frostbit.training.flips import FlipWatch
from frostbit.training.module import TrainingModule
from frostbit.training.record import Record
from frostbit.training.run import resume, train

from .test_resume import ARM, run_and_die, same, traces

LAYERS = ("layers.linear2", "layers.linear3")
MOVING = {"optimizer.gamma": 0.1, "optimizer.threshold": 0.0}


def rows_of(folder):
    with open(folder / "metrics_steps.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_columns_hold_ratios_whose_sum_is_the_number_of_flips(tiny, tmp_path):
    result = train(tiny("bop", **MOVING), folder=tmp_path, **ARM)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    state = load_tensors(tmp_path / "last.ckpt")["optimizer_states"][0]["state"]
    counts = [s["flips"] for s in state.values() if "flips" in s]
    assert len(counts) == 2
    assert all(counts)
    for layer, count in zip(LAYERS, counts, strict=True):
        assert sum(2 * 24 * 24 * row[f"flips/{layer}"] for row in rows) == pytest.approx(count, rel=1e-3)
        assert all(0 <= row[f"undecided/{layer}"] < 0.5 for row in rows)  # at τ = 0 only exact zeros are undecided
    assert {row["memory/gamma"] for row in rows} == {10.0}
    assert result["warnings"] == []


def test_memory_follows_a_schedule_and_other_methods_have_no_such_columns(tiny, tmp_path):
    settings = {"optimizer.gamma": 0.5, "optimizer.gamma_end": 0.1, "train.epochs": 2}
    train(tiny("bop", **settings), folder=tmp_path / "bop", **ARM)
    memory = [row["memory/gamma"] for row in rows_of(tmp_path / "bop")]
    assert memory == sorted(memory)
    assert memory[0] == pytest.approx(1 / 0.42, rel=1e-4)  # the record follows the scheduler's second step
    result = train(tiny("ste", **{"train.epochs": 1}), folder=tmp_path / "ste", **ARM)
    assert not [name for name in rows_of(tmp_path / "ste")[0] if "/" in name]
    assert result["warnings"] == []


BOTH = "no weight of 'layers.linear2', 'layers.linear3' flipped in epoch 1, and most of them are undecided: "
HIGH = {"optimizer.gamma": 0.1, "optimizer.threshold": 1e3}
CASES = {
    "memory": (
        *("bop2ndorder", {}),
        "optimizer.gamma 1e-07 remembers about 10,000,000 steps and the run has 20, so the average is still filling up "
        "at its end: raise optimizer.gamma to 0.05 or more",
    ),
    "threshold": (
        *("bop", HIGH),
        BOTH + "lower optimizer.threshold (now 1000) or raise optimizer.gamma (now 0.1)",
    ),
    "paper": (
        *("bop2ndorder", {**HIGH, "optimizer.sigma": 0.1, "optimizer.bias_correction": "paper"}),
        BOTH + "lower optimizer.threshold (now 1000)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_says_what_to_change(case, tiny, tmp_path):
    method, settings, said = CASES[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(tiny(method, **settings), folder=tmp_path, **ARM)
    texts = [str(w.message) for w in caught if "optimizer." in str(w.message)]
    assert texts == result["warnings"] == [said]  # once in four epochs
    assert said in unescape(inside_section(tmp_path, result).html)


class Watched:
    """One binary layer, a rule, and gradients given by hand."""

    def __init__(self, rule=fb.optim.Bop, **options):
        self.net = nn.Sequential(nn.Linear(4, 8))
        fb.binarize_(self.net, weight="direct", input=None, keep=None)
        self.optimizer = fb.optim.CaseOptimizer(
            self.net, {"binary": (rule, options)}, default=(torch.optim.SGD, {"lr": 0.1})
        )
        self.record = Record()
        self.watch = FlipWatch.over(self.net, self.optimizer, self.record)
        self.weight = self.net[0].weight

    def epoch(self, number, *gradients):
        for gradient in gradients:
            self.weight.grad = gradient
            self.optimizer.step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.watch.check_epoch(number, tell=True)
        return [str(w.message) for w in caught]


def test_a_layer_that_flips_back_and_forth():
    one = Watched(threshold=0.0, gamma=1.0)
    w = one.weight.detach().clone()
    (text,) = one.epoch(1, w, -w, w, -w)
    expected = "40% or more of the weights of '0' flipped in the mean step of epoch 1: "
    assert text == expected + "raise optimizer.threshold (now 0) or lower optimizer.gamma (now 1)"
    assert one.epoch(2, w, -w) == []  # said once
    calm = Watched(threshold=0.0, gamma=1.0)
    w = calm.weight.detach().clone()
    assert calm.epoch(1, w, w, w, w) == []  # a quarter flips in the mean step


def test_layers_that_stand_still_for_several_reasons():
    agrees = Watched(threshold=0.0, gamma=0.01)
    assert agrees.epoch(1, -agrees.weight.detach()) == [
        "no weight of '0' flipped in epoch 1, and the average agrees with most of them: "
        "raise optimizer.gamma (now 0.01)"
    ]
    held = Watched(fb.optim.SGDAT, lr=1.0, threshold=100.0)
    w = held.weight.detach().clone()
    assert held.epoch(1, w) == [
        "40% or more of the weights of '0' flipped in the mean step of epoch 1: "
        "lower optimizer.flip_lr (now 1) or raise optimizer.threshold (now 100)"
    ]
    assert held.epoch(2, -w) == [
        "no weight of '0' flipped in epoch 2, and most of them are undecided: "
        "raise optimizer.flip_lr (now 1) or lower optimizer.threshold (now 100)"
    ]
    dead = Watched(threshold=0.0, gamma=0.5)
    assert dead.epoch(1, torch.zeros(8, 4)) == ["no weight of '0' flipped in epoch 1: no gradient reaches it"]
    frozen = Watched(threshold=0.0, gamma=0.5)
    frozen.epoch(1, frozen.weight.detach().clone())
    assert frozen.epoch(2, None, None) == []  # out of the backward pass: nothing to change
    assert frozen.watch.row()["flips/0"] == 1.0
    assert frozen.watch.row()["flips/0"] == 0.0


def test_memory_is_judged_by_the_largest_gamma_and_once():
    one = Watched(gamma=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.watch.check_memory(1000, None, tell=True)
        one.watch.check_memory(500, 0.1, tell=True)
        Watched(fb.optim.SGDAT).watch.check_memory(1, None, tell=True)  # has no such average
        Watched(gamma=1e-3).watch.check_memory(500, None, tell=False)  # another rank says it
    with pytest.warns(UserWarning, match=r"remembers about 1,000 steps and the run has 500, .* to 0.002 or more"):
        one.watch.check_memory(500, 1e-4, tell=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.watch.check_memory(500, None, tell=True)
    assert len(one.record.warnings) == 1


@pytest.mark.filterwarnings("ignore:.*optimizer:UserWarning")
@pytest.mark.parametrize("settings", [MOVING, HIGH], ids=["moving", "still"])
def test_a_killed_run_ends_with_the_same_record_and_warnings(settings, tiny, tmp_path):
    recipe = tiny("bop2ndorder", **{"optimizer.sigma": 0.01}, **settings)
    train(recipe, folder=tmp_path / "whole", **ARM)
    run_and_die(recipe, tmp_path / "torn", TrainingModule, "training_step", 13)
    resume(tmp_path / "torn")
    whole, torn = traces(tmp_path / "whole"), traces(tmp_path / "torn")
    assert all(same(whole[part], torn[part]) for part in whole)


def test_the_figure_has_a_line_for_each_layer_and_the_page_a_row(tiny, tmp_path):
    result = train(tiny("bop", **MOVING), folder=tmp_path, **ARM)
    rows = rows_of(tmp_path)
    figure = figures.flips(rows)
    ratios, undecided, memory = figure.axes
    assert [line.get_ydata().tolist() for line in ratios.get_lines()] == [
        [row[f"flips/{layer}"] for row in rows] for layer in LAYERS
    ]
    assert len(undecided.get_lines()) == 2
    assert [line.get_label() for line in memory.get_lines()] == ["memory 1/γ", "steps taken"]
    assert len(figures.sawtooth(rows, []).axes) == 3  # its units are the frozen shares alone
    assert len(figures.sawtooth(rows, []).axes[2].get_lines()) == 2
    html = inside_section(tmp_path, result).html
    assert all(f"<td>{layer}</td>" in html for layer in LAYERS)
    assert (tmp_path / "flips.png").exists()
    assert figures.flips([{"step": 1, "loss": 1.0, "train_acc": 1.0, "u": 1.0}]) is None
    no_gamma = [{k: v for k, v in row.items() if k != "memory/gamma"} for row in rows]
    assert len(figures.flips(no_gamma).axes) == 2
