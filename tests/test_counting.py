"""Bits, bytes and multiply-accumulates, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

import frostbit as fb
from frostbit.counting import layer_macs
from frostbit.graph import trace


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), fb.nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(),
        fb.nn.Linear(6 * 16, 5), nn.Linear(5, 2),
    )  # fmt: skip


def test_a_small_network_by_hand() -> None:
    found = fb.summary(small(), torch.randn(7, 3, 8, 8))
    rows = {row.name: (row.bits, row.parameters, row.bytes, row.macs) for row in found.rows}
    assert rows == {
        "0": (32, 108, 432, 6 * 6 * 4 * 27),
        "1": (32, 16, 32, 0),  # scale, shift, mean and variance of 4 channels; two of them are left
        "2": (1, 108, 14 + 6 * 2 + 1, 4 * 4 * 6 * 18),  # with the bias, a comparison with an int16 and a flip each
        "2 (bias)": (32, 6, 0, 0),
        "4": (1, 480, 60 + 20, 480),
        "4 (bias)": (32, 5, 0, 0),
        "5": (32, 12, 48, 10),
    }
    assert found.note == ""
    assert found.binary_parameters == 108 + 480
    assert found.real_parameters == 108 + 16 + 6 + 5 + 12
    assert found.bytes == 432 + 32 + 27 + 80 + 48
    assert found.float_bytes == 4 * (108 + 480 + 108 + 16 + 6 + 5 + 12)
    assert (found.binary_macs, found.real_macs) == (4 * 4 * 6 * 18 + 480, 6 * 6 * 4 * 27 + 10)
    text = str(found)
    assert f"1-bit parameters {588:,}" in text
    assert f"({found.binary_macs / (found.binary_macs + found.real_macs):.1%} binary)" in text


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.kernel, self.matrix = nn.Parameter(torch.randn(6, 2, 3, 3)), nn.Parameter(torch.randn(5, 6 * 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(functional.conv2d(x, self.kernel, groups=2))
        return functional.linear(input=x, weight=self.matrix)


def test_layers_called_as_functions_count() -> None:
    x = torch.randn(3, 4, 6, 6)
    assert layer_macs(trace(Functions(), x)) == {"conv2d()": (False, 16 * 6 * 18), "linear()": (False, 5 * 96)}
    found = fb.summary(Functions(), x)
    assert found.real_macs == 16 * 6 * 18 + 5 * 96
    assert found.real_parameters == 6 * 18 + 5 * 96


def test_bytes_are_counted_where_the_network_cannot_be_packed() -> None:
    """One bit for each binary weight, four bytes for everything else, and a sentence that says why."""

    class Sorting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sort(-1).values

    for model, example, why in (
        (Sorting(fb.nn.Linear(9, 5)), torch.randn(2, 9), "aten.sort.default in Sorting.forward cannot be packed"),
        (nn.Sequential(fb.nn.Linear(9, 5)), None, "that needs example_input"),
    ):
        found = fb.summary(model, example)
        assert found.bytes == 6 + 5 * 4
        assert why in found.note
        assert f"bytes are counted, not packed: {found.note}" in str(found)


def test_summary_leaves_the_model_as_it_was() -> None:
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fb.summary(model, torch.randn(7, 3, 8, 8))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


LAYERS: list[tuple[nn.Module, tuple[int, ...], int]] = [
    (nn.Linear(4, 5), (3, 4), 20),
    (nn.Linear(4, 5), (3, 7, 4), 7 * 20),
    (nn.Conv1d(4, 6, 3, stride=2), (3, 4, 9), 4 * 6 * 12),
    (nn.Conv2d(4, 4, 3, groups=4, padding=1), (3, 4, 5, 5), 25 * 4 * 9),
    (nn.Conv3d(2, 3, 2), (3, 2, 3, 3, 3), 8 * 3 * 16),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (3, 4, 5, 5), 25 * 4 * 3 * 9),
    (nn.BatchNorm2d(4), (3, 4, 5, 5), 0),
    (nn.LayerNorm((4, 5, 5)), (3, 4, 5, 5), 0),
    (nn.LayerNorm(5), (3, 4, 5), 0),
    (nn.PReLU(4), (3, 4, 5), 0),
    (weight_norm(nn.Linear(4, 5)), (3, 7, 4), 7 * 20),
    (weight_norm(nn.ConvTranspose1d(4, 6, 3)), (3, 4, 5), 5 * 4 * 6 * 3),
    (nn.LSTM(4, 5, batch_first=True), (3, 7, 4), 7 * 20 * (4 + 5)),
    (nn.LSTM(4, 5, bias=False), (7, 3, 4), 7 * 20 * (4 + 5)),
    (nn.GRU(4, 5, num_layers=2, bidirectional=True), (7, 3, 4), 7 * 2 * 15 * ((4 + 5) + (10 + 5))),
    (nn.RNN(4, 5), (7, 4), 7 * 5 * (4 + 5)),  # no batch
    (nn.GRUCell(4, 5), (3, 4), 15 * (4 + 5)),
]


@pytest.mark.parametrize(("layer", "shape", "macs"), LAYERS, ids=[str(layer[0]) for layer in LAYERS])
def test_macs_of_one_sample(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    """Every output entry costs one product for each weight that meets it; a transposed layer, every input entry."""
    graph = trace(nn.Sequential(layer), torch.randn(shape))
    assert sum(count for _, count in layer_macs(graph).values()) == macs


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_looking_up_multiplies_nothing(kind: Any) -> None:
    assert layer_macs(trace(kind(5, 4), torch.tensor([[1, 2]]))) == {}


@pytest.mark.parametrize("batch_first", [True, False])
def test_macs_of_attention_projections(batch_first: bool) -> None:
    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    model = Self()
    for binary in (False, True):
        assert layer_macs(trace(model, x)) == {"attention": (binary, 5 * 4 * 64)}
        if not binary:
            fb.binarize_(model, example_input=x, keep=None)
    found = fb.summary(model, x)
    assert (found.binary_macs, found.real_macs, found.binary_parameters) == (5 * 4 * 64, 0, 4 * 64)
    assert found.real_parameters == 32  # the biases


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    assert layer_macs(trace(Twice(), torch.randn(2, 4))) == {"layer": (False, 32)}


def test_tied_parameters_are_stored_once() -> None:
    model = nn.Sequential(fb.nn.Linear(4, 4, bias=False), fb.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    found = fb.summary(model, torch.randn(2, 4))
    assert (found.binary_parameters, found.bytes) == (16, 2)
    assert found.binary_macs == 32


def test_parameters_of_quantizers_and_of_modules_so_named_count() -> None:
    class Learned(fb.quantizers.Quantizer):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))

    model = nn.Sequential()
    model.add_module("quantizer", nn.Linear(2, 3))
    model.add_module("layer", fb.nn.Linear(3, 2, input_quantizer=Learned()))
    assert fb.summary(model, torch.randn(2, 2)).real_parameters == 9 + 2 + 3


def test_a_model_that_knows_its_shape_needs_no_example() -> None:
    model = fb.models.create("resnet8", width=4, input_size=8)
    fb.binarize_(model)
    found = fb.summary(model)
    assert found.binary_macs > found.real_macs > 0
    assert found.binary_parameters == sum(parameter.numel() for _, parameter in fb.binary_parameters(model))
    everything = sum(parameter.numel() for parameter in model.parameters())
    statistics = sum(2 * module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert found.binary_parameters + found.real_parameters == everything + statistics
