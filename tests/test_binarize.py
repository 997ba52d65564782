"""Conversion of other people's models: what becomes binary, what stays, and what works afterwards."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import frostbit as fb
from frostbit.errors import UsageError
from frostbit.nn.per_call import PerCall
from frostbit.quantizers import hard
from tests.nn.zoo import IMAGES, ROWS, Branching, ResNet, chain

# ---- the two placements


def test_placement_input_on_a_torchvision_resnet() -> None:
    torch.manual_seed(0)
    model = ResNet()
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    report = fb.binarize_(model, example_input=IMAGES)
    convolutions = ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1"]
    assert list(report.converted) == [*convolutions, "layer2.0.conv2"]
    assert set(report.kept) == {"conv1", "layer2.0.downsample.0", "fc"}
    assert all(isinstance(model.get_submodule(name), fb.nn.Conv2d) for name in report.converted)
    assert all(type(model.get_submodule(name)).__module__.startswith("torch") for name in report.kept)
    # every ReLU becomes the identity but the last, which only the pooling reads
    assert isinstance(model.relu, nn.Identity)
    for block in model.layer1:
        assert isinstance(block.relu, nn.Identity)
    last = model.layer2[0].relu
    assert isinstance(last, PerCall)
    assert [type(call) for call in last.calls] == [nn.Identity, nn.ReLU]
    assert set(report.activations) == {
        "relu", "layer1.0.relu (call 1)", "layer1.0.relu (call 2)", "layer1.1.relu (call 1)",
        "layer1.1.relu (call 2)", "layer2.0.relu (call 1)",
    }  # fmt: skip
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    model.load_state_dict(ResNet().state_dict(), strict=True)
    logits = model.eval()(IMAGES)
    assert not torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[1], logits[2])


def test_placement_activation_on_a_torchvision_resnet() -> None:
    model = ResNet()
    report = fb.binarize_(model, placement="activation", example_input=IMAGES)
    assert len(report.converted) == 6
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    binarizers = [module for module in model.modules() if isinstance(module, fb.nn.Binarizer)]
    assert len(binarizers) == len(report.activations) == 7
    assert len({id(binarizer.input_quantizer) for binarizer in binarizers}) == 7
    assert all(model.get_submodule(name).input_quantizer is None for name in report.converted)
    seen: list[Tensor] = []
    model.layer2[0].conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model.eval()(IMAGES)
    assert set(seen[0].unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(logits[0], logits[1])
    units = fb.units(model)
    assert [len(unit.layers) for unit in units] == [1, 1, 1, 1, 1, 1, 0]
    assert units[-1].name == "layer2.0.relu.calls.1"
    assert units[0].feature_shape == (16, 8, 8)  # as it leaves the stem, before the pooling


def test_the_forward_is_the_network_of_signs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 8), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    first, norm1, middle, norm2, full, last = (model[i] for i in (0, 1, 3, 4, 9, 10))
    fb.binarize_(model, example_input=IMAGES, keep="first_last", min_binary_macs=0)
    y = functional.conv2d(hard(norm1(first(IMAGES))), hard(middle.weight), middle.bias)
    y = functional.max_pool2d(norm2(y), 2).flatten(1)
    expected = last(functional.linear(hard(y), hard(full.weight), full.bias))
    torch.testing.assert_close(model(IMAGES), expected)
    assert isinstance(model[2], nn.Identity)
    assert isinstance(model[5], nn.Identity)


@pytest.mark.parametrize("placement", ["input", "activation"])
def test_one_relu_shared_by_a_whole_network_is_split_by_its_calls(placement: Any) -> None:
    torch.manual_seed(0)
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Linear(8, 8), relu, nn.Linear(8, 8), relu, nn.Sequential(nn.Linear(8, 8), relu), nn.Linear(8, 3)
    ).eval()
    first, second, third, last = model[0], model[2], model[4][0], model[5]
    fb.binarize_(model, placement=placement, example_input=ROWS, keep="0", min_binary_macs=0)
    y = hard(first(ROWS))
    for layer in (second, third):
        y = hard(functional.linear(y, hard(layer.weight), layer.bias))
    expected = functional.linear(y, hard(last.weight), last.bias)
    assert model[1] is model[3] is model[4][1]
    for _ in range(2):
        torch.testing.assert_close(model(ROWS), expected)
    assert [unit.layers for unit in fb.units(model)] == [[second], [third], [last]]


def test_a_relu_that_no_quantizer_reads_stays() -> None:
    model = chain(nn.BatchNorm1d(8), nn.ReLU())
    report = fb.binarize_(model, example_input=ROWS, keep=["0", "4"], min_binary_macs=0)
    assert isinstance(model[3], nn.ReLU)
    assert report.activations == {}


def test_every_kind_of_layer_is_converted_with_its_options() -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 6, padding_idx=0)
            self.conv1d = nn.Conv1d(6, 4, 3, padding=1)
            self.up1d = nn.ConvTranspose1d(4, 4, 2, stride=2)
            self.conv2d = nn.Conv2d(2, 4, 3, groups=2, padding="same")
            self.up2d = nn.ConvTranspose2d(4, 4, 2, groups=4)
            self.conv3d = nn.Conv3d(2, 2, 1, bias=False)
            self.up3d = nn.ConvTranspose3d(2, 2, 1)
            self.attention = nn.MultiheadAttention(7, 1, kdim=7)
            self.linear = nn.Linear(7, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.up1d(self.conv1d(self.embed(tokens).transpose(1, 2)))  # [2, 4, 6]
            x = self.up2d(self.conv2d(x.unflatten(1, (2, 2))))  # [2, 4, 3, 7]
            x = self.up3d(self.conv3d(x.unflatten(1, (2, 2)))).flatten(0, 2)
            return self.linear(self.attention(query=x, key=x, value=x)[0])

    model, tokens = All(), torch.randint(10, (2, 3))
    report = fb.binarize_(model, example_input=tokens, keep=None, weight_scale="mean_abs", pad_value=1, latent_clip=1.5)
    assert len(report.converted) == 9
    for name in report.converted:
        layer = model.get_submodule(name)
        assert type(layer) is getattr(fb.nn, type(layer).__name__)
        assert (layer.weight_scale, layer.latent_clip) == ("mean_abs", 1.5)
        assert layer.pad_value == (0 if "Transpose" in type(layer).__name__ else 1)
    assert model.embed.input_quantizer is None
    assert isinstance(model.attention.out_proj, fb.nn.Linear)
    assert model.attention.out_proj.latent_clip == 1.5
    model(tokens).sum().backward()
    assert report.binary_macs == 1.0


# ---- modes


def test_weights_only_networks_keep_real_inputs() -> None:
    model = ResNet()
    report = fb.binarize_(model, input=None, example_input=IMAGES)
    assert report.activations == {}
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 4
    assert all(model.get_submodule(name).input_quantizer is None for name in report.converted)
    seen: list[Tensor] = []
    layer = model.layer1[0].conv1
    layer.register_forward_hook(lambda _, args, y: seen.extend((args[0], y)))
    with fb.hardened(model):
        model(IMAGES)
    torch.testing.assert_close(seen[1], functional.conv2d(seen[0], hard(layer.weight), padding=1))
    assert seen[0].unique().numel() > 10


@pytest.mark.parametrize("placement", ["input", "activation"])
def test_inputs_only_networks_keep_real_weights(placement: Any) -> None:
    model = ResNet()
    fb.binarize_(model, weight=None, placement=placement, example_input=IMAGES)
    assert list(fb.binary_parameters(model)) == []
    units = fb.units(model)
    assert len(units) == (6 if placement == "input" else 7)
    assert all(unit.input_quantizer is not None for unit in units)
    assert model.layer1[0].conv1.weight.requires_grad
    progression = fb.StoMPP(model, total_steps=14, targets=("input",))
    for _ in range(14):
        progression.step()
    assert set(fb.frozen_fraction(model).values()) == {1.0}
    model(IMAGES)


def test_example_inputs_as_tuple_and_dict() -> None:
    for example in ((ROWS, torch.ones(1)), [ROWS, torch.ones(1)], {"x": ROWS, "scale": torch.ones(1)}):
        model = Branching()
        assert list(fb.binarize_(model, example_input=example, keep=None).converted) == ["first", "middle", "last"]


def test_without_an_example_a_traceable_model_is_converted_too() -> None:
    model = ResNet()
    report = fb.binarize_(model)
    assert len(report.converted) == 6
    assert report.binary_macs is None
    assert "unknown without example_input" in str(report)
    assert all(unit.feature_shape is None for unit in fb.units(model))
    assert fb.units(model, IMAGES)[0].feature_shape == (16, 4, 4)


def test_the_share_of_binary_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 144, 2))
    first, middle, last = 14 * 14 * 4 * 27, 12 * 12 * 8 * 18, 8 * 144 * 2
    with pytest.raises(UsageError, match=r"expected 80%.*largest real layer: 0"):
        fb.binarize_(model, example_input=IMAGES)
    report = fb.binarize_(model, example_input=IMAGES, min_binary_macs=0.4)
    assert report.binary_macs == pytest.approx(middle / (first + middle + last))
    text = str(report)
    assert text.startswith(f"1 layers binary, 2 kept real; binary MACs: {report.binary_macs:.1%}")
    assert "weight ste_clip, input ste_clip" in text


# ---- afterwards


def test_copies_and_pickles_keep_units_and_sharing() -> None:
    for options in ({}, {"placement": "activation"}):
        model = ResNet().eval()
        fb.binarize_(model, example_input=IMAGES, **options)
        expected = model(IMAGES)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert [(u.name, u.feature_shape) for u in fb.units(twin)] == [
                (u.name, u.feature_shape) for u in fb.units(model)
            ]
            assert fb.units(twin)[0].layers[0] is twin.layer1[0].conv1
            assert torch.equal(twin(IMAGES), expected)
            # the copy's turns belong to the copy: a pass cut short in one leaves the other alone
            twin.layer2[0].relu.next = 1
            assert torch.equal(model(IMAGES), expected)
            assert torch.equal(twin(IMAGES), expected)


def test_a_pass_that_was_cut_short_does_not_shift_the_turns() -> None:
    model = ResNet().eval()
    fb.binarize_(model, example_input=IMAGES)  # the last block's ReLU is the identity first, then itself
    expected = model(IMAGES)
    handle = model.layer2[0].conv2.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(IMAGES)
    handle.remove()
    assert torch.equal(model(IMAGES), expected)
    seen: list[Tensor] = []
    model.layer2[0].register_forward_hook(lambda _, args, y: seen.extend((args[0], y)))
    model(IMAGES)
    assert torch.equal(model.layer2[0](seen[0]), seen[1])  # a part that runs alone takes its turns too


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("placement", ["input", "activation"])
def test_what_is_put_in_has_the_models_mode(placement: Any, mode: bool) -> None:
    model = ResNet().train(mode)
    fb.binarize_(model, placement=placement, example_input=IMAGES)
    assert {module.training for module in model.modules()} == {mode}
    attention = nn.TransformerEncoderLayer(8, 2, 16, 0.0, nn.GELU(), batch_first=True).train(mode)
    fb.binarize_(attention, example_input=torch.randn(2, 3, 8), keep=None)
    assert {module.training for module in attention.modules()} == {mode}


def test_hooks_of_the_float_model_stay() -> None:
    model = ResNet()
    seen: list[int] = []
    model.layer1[0].conv1.register_forward_hook(lambda *_: seen.append(1))
    fb.binarize_(model, example_input=IMAGES)
    seen.clear()
    model(IMAGES)
    assert seen == [1]


def test_a_converted_model_compiles_and_exports_with_its_reused_activations() -> None:
    model = ResNet().eval()
    fb.binarize_(model, placement="activation", example_input=IMAGES)
    with torch.no_grad():
        expected = model(IMAGES)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(IMAGES), expected)
        program = torch.export.export(model, (IMAGES,))
    torch.testing.assert_close(program.module()(IMAGES), expected)


def test_a_weights_only_network_keeps_its_relus_in_either_placement() -> None:
    networks = []
    for placement in ("input", "activation"):
        torch.manual_seed(0)
        model = fb.models.create("resnet8", num_classes=10, input_size=8, width=4)
        fb.binarize_(model, input=None, placement=placement, min_binary_macs=0)
        networks.append(model)
    assert all(isinstance(model.relu, nn.ReLU) for model in networks)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(networks[0](x), networks[1](x))


class Shared(nn.Module):
    """Blocks that share one ReLU, and a branch that only training takes."""

    def __init__(self, branch: bool = False, checkpoint: bool = False) -> None:
        super().__init__()
        self.relu, self.branch, self.checkpoint = nn.ReLU(), branch, checkpoint
        self.layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(4))
        self.input_shape = (6,)

    def forward(self, x: Tensor) -> Tensor:
        if self.branch and self.training:
            self.relu(x)
        for layer in self.layers:
            if self.checkpoint and self.training:
                x = torch.utils.checkpoint.checkpoint(
                    lambda x, layer=layer: self.relu(layer(x)), x, use_reentrant=False
                )
            else:
                x = self.relu(layer(x))
        return x


@pytest.mark.parametrize("what", ["branch", "checkpoint"])
def test_calls_that_cannot_be_told_apart_are_refused(what: str) -> None:
    model = Shared(**{what: True})
    fb.binarize_(model, placement="activation", keep=None, min_binary_macs=0)
    x = torch.randn(5, 6, requires_grad=True)
    model.eval()(x)
    with pytest.raises(fb.UsageError, match="give each call a module of its own"):
        model.train()(x).sum().backward()
    model.eval()(x)


def test_a_direct_weight_that_a_real_layer_shares_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    before = model[0].weight.detach().clone()
    tokens = torch.randint(6, (3, 4))
    with pytest.raises(fb.UsageError, match="'0' stays real and shares the weight of '2'"):
        fb.binarize_(model, weight="direct", example_input=tokens, keep=["0"], min_binary_macs=0)
    assert torch.equal(model[0].weight, before)
    assert type(model[1]) is nn.Linear
