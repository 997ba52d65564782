"""Conversion: what is kept, overridden and shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import frostbit as fb
from frostbit.errors import UsageError
from tests.nn.zoo import IMAGES, ROWS, ResNet, Shared, chain


def test_keep_takes_rules_names_and_globs() -> None:
    for keep, expected in (
        (lambda module, name: "conv2" in name, {"layer1.0.conv2", "layer1.1.conv2", "layer2.0.conv2"}),
        (["conv1", "fc"], {"conv1", "fc"}),
        ("layer1.*", {"layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"}),
    ):
        report = fb.binarize_(ResNet(), example_input=IMAGES, keep=keep, min_binary_macs=0)
        assert set(report.kept) == expected
        assert len(report.converted) == 9 - len(expected)


def test_a_shared_layer_may_be_kept() -> None:
    report = fb.binarize_(Shared(), example_input=ROWS, keep=["first", "twice"], min_binary_macs=0)
    assert set(report.converted) == {"other", "last"}


def test_a_layer_that_does_not_run_is_reported_as_kept() -> None:
    model = ResNet()
    model.auxiliary = nn.Linear(3, 3)
    report = fb.binarize_(model, example_input=IMAGES)
    assert report.kept["auxiliary"].startswith("not called")
    assert type(model.auxiliary) is nn.Linear


class Renamed(nn.Linear):
    pass


class Matrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.shift


class Call(nn.Module):
    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.of.weight)


class First(nn.Module):
    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x)[0]


REAL = [
    (lambda: weight_norm(nn.Linear(8, 8)), "2", "it is parametrized"),
    (lambda: nn.utils.weight_norm(nn.Linear(8, 8)), "2", "its weight is made anew before each call"),
    (lambda: Renamed(8, 8), "2", "Renamed is a subclass of Linear: only torch's own layers are converted"),
    (lambda: First(nn.LSTM(8, 8)), "2.of", "LSTM has no binary form"),
    (lambda: nn.GRUCell(8, 8), "2", "GRUCell has no binary form"),
    (lambda: Matrix(), "2", "Matrix has no binary form; its multiply-accumulates are not counted"),
    (lambda: Call(nn.Linear(8, 8)), "linear()", "called as a function, which cannot be replaced"),
]


@pytest.mark.parametrize(("make", "name", "reason"), REAL, ids=[reason for *_, reason in REAL])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_what_has_no_binary_form_is_reported_as_kept_and_counts(make: Any, name: str, reason: str) -> None:
    model = chain(make())
    report = fb.binarize_(model, example_input=ROWS, keep=["0", "4"], min_binary_macs=0)
    assert report.kept[name] == reason
    assert list(report.converted) == ["1", "3"]
    assert report.binary_macs == 0.5 if "not counted" in reason else report.binary_macs <= 0.4
    model(ROWS).sum().backward()


def test_the_first_layer_is_the_first_even_where_it_cannot_become_binary() -> None:
    model = nn.Sequential(Renamed(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), First(nn.GRU(8, 8)))
    report = fb.binarize_(model, example_input=ROWS, keep="first_last", min_binary_macs=0)
    assert list(report.converted) == ["1", "2"]
    with pytest.raises(UsageError, match="has no layer that can become binary"):
        fb.binarize_(nn.Sequential(Renamed(8, 8), First(nn.GRU(8, 8))), example_input=ROWS)


def test_a_subclass_with_its_own_forward_is_reported_as_kept() -> None:
    class Gated(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x

    model = chain(Gated(8, 8))
    report = fb.binarize_(model, example_input=ROWS, min_binary_macs=0)
    assert report.kept["2"] == "Gated is a subclass of Linear with a forward of its own"
    assert type(model[2]) is Gated


def test_overrides_change_single_layers_and_the_later_wins() -> None:
    model = ResNet()
    overrides = {
        "layer1.*": {"weight": "ste_identity", "latent_clip": 1.0},
        "layer1.1.conv1": {"weight": {"name": "ede", "hardness": 2.0}, "input": "approx_sign"},
        "layer2.0.conv2": {"weight": None},
        "layer2.0.conv1": {"input": None, "weight_scale": "mean_abs", "pad_value": -1},
    }
    report = fb.binarize_(model, example_input=IMAGES, overrides=overrides, min_binary_macs=0)
    assert type(model.layer1[0].conv1.weight_quantizer) is fb.quantizers.STEIdentity
    assert model.layer1[0].conv1.latent_clip == 1.0
    changed = model.layer1[1].conv1
    assert type(changed.weight_quantizer) is fb.quantizers.EDE
    assert changed.weight_quantizer.hardness == 2.0
    assert type(changed.input_quantizer) is fb.quantizers.ApproxSign
    assert model.layer2[0].conv2.weight_quantizer is None
    assert (model.layer2[0].conv1.input_quantizer, model.layer2[0].conv1.pad_value) == (None, -1)
    assert model.layer2[0].conv1.latent_clip is None
    assert "ede" in report.converted["layer1.1.conv1"]


def test_layers_reading_one_tensor_share_a_unit_and_a_quantizer() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.q(x) * self.k(x) + self.v(x * 2))

    for example in (None, ROWS):
        model = Heads()
        fb.binarize_(model, example_input=example, min_binary_macs=0)
        assert model.q.input_quantizer is model.k.input_quantizer
        assert model.v.input_quantizer is not model.q.input_quantizer
        assert model.q.weight_quantizer is not model.k.weight_quantizer
        units = fb.units(model)
        assert [unit.layers for unit in units] == [[model.q, model.k], [model.v]]
    own = Heads()
    fb.binarize_(own, example_input=ROWS, overrides={"k": {"input": "ste_identity"}}, min_binary_macs=0)
    assert [unit.layers for unit in fb.units(own)] == [[own.q], [own.k], [own.v]]
