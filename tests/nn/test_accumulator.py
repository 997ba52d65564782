"""Narrow accumulators: what integer arithmetic gives, before scale and bias; straight through inside the range."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import frostbit as fb
from frostbit import nn as fnn
from frostbit.errors import UsageError
from frostbit.nn import layers as layers_module
from frostbit.nn.functional import reference_map

LAYERS: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": (fnn.Linear, (96, 5), {}, (7, 96)),
    "linear tokens": (fnn.Linear, (60, 5), {"bias": False}, (3, 6, 60)),
    "conv1d": (fnn.Conv1d, (12, 6, 5), {"stride": 2, "padding": 3}, (2, 12, 11)),
    "conv2d grouped": (fnn.Conv2d, (24, 6, 3), {"groups": 3, "padding": 1}, (2, 24, 6, 5)),
    "conv2d reflect": (fnn.Conv2d, (8, 4, 3), {"padding": 2, "padding_mode": "reflect"}, (2, 8, 6, 5)),
    "conv2d padded with -1": (fnn.Conv2d, (8, 4, 3), {"padding": 2, "pad_value": -1.0}, (2, 8, 6, 5)),
    "conv3d": (fnn.Conv3d, (5, 4, 3), {"padding": 1}, (2, 5, 4, 3, 3)),
    "transposed": (fnn.ConvTranspose2d, (12, 6, 3), {"groups": 3}, (2, 12, 5, 6)),
}


def whole(x: Tensor) -> Tensor:
    """Signs as integers."""
    return torch.where(x >= 0, 1, -1)


def integer_sums(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's sums in int64: torch's convolutions take integers on the CPU."""
    signs, weight = whole(x), whole(layer.weight.detach())
    if isinstance(layer, nn.Linear):
        return signs @ weight.t()
    if isinstance(layer, nn.ConvTranspose2d):
        return functional.conv_transpose2d(signs, weight, None, layer.stride, groups=layer.groups)
    mode = {"mode": "reflect"} if layer.padding_mode == "reflect" else {"value": int(layer.pad_value)}
    padded = functional.pad(signs, layer._reversed_padding_repeated_twice, **mode)
    convolution = getattr(functional, f"conv{x.dim() - 2}d")
    return convolution(padded, weight, None, layer.stride, 0, layer.dilation, layer.groups)


def held(sums: Tensor, bits: int, step: int) -> Tensor:
    """Add half, shift, saturate: in integers."""
    shift = step.bit_length() - 1
    top = 1 << (bits - 1)
    return torch.clamp((sums + step // 2) >> shift, -top, top - 1) << shift


def make(name: str, bits: int | None, scaled: bool, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    kind, arguments, options, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = kind(*arguments, **options, accumulator_bits=bits, weight_scale="mean_abs" if scaled else None).to(dtype)
    with torch.no_grad():  # filters from mostly -1 to mostly +1, inputs mostly +1: some sums saturate
        filters = 1 if kind is fnn.ConvTranspose2d else 0
        lean = torch.linspace(-1, 1, layer.weight.shape[filters], dtype=dtype) * layer.weight.abs().amax()
        layer.weight += lean.view(-1, *(1,) * (layer.weight.dim() - 1 - filters))
    return layer, torch.randn(shape, dtype=dtype) + 1.5


def per_output(layer: nn.Module) -> Tensor:
    """``mean|w|`` of each output channel, one by one."""
    w = layer.weight.detach().abs()
    if not isinstance(layer, nn.ConvTranspose2d):
        return torch.stack([filter.mean() for filter in w])
    return torch.stack([part[:, i].mean() for part in w.chunk(layer.groups) for i in range(w.shape[1])])


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_a_hard_layer_gives_what_integer_arithmetic_gives(name: str, bits: int, scaled: bool) -> None:
    layer, x = make(name, bits, scaled)
    sums = integer_sums(layer, x)
    fan_in = layer.weight.numel() // (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
    step = fnn.Accumulator(bits, fan_in).step
    expected = held(sums, bits, step).to(x.dtype)
    shape = (-1, *(1,) * (0 if isinstance(layer, nn.Linear) else x.dim() - 2))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            y = layer(x)
        bias = 0 if layer.bias is None else layer.bias.view(shape)
        if scaled:
            torch.testing.assert_close(y, expected * per_output(layer).view(shape) + bias)
        else:
            assert torch.equal(y, expected + bias)
    if bits <= 4:  # the case is not an empty one
        assert not torch.equal(expected, sums.to(x.dtype))


@given(st.integers(2, 16), st.integers(1, 100_000))
def test_the_step_is_the_smallest_that_covers_four_standard_deviations(bits: int, fan_in: int) -> None:
    step = fnn.Accumulator(bits, fan_in).step
    reach = (2 ** (bits - 1) - 1) * step
    assert step & (step - 1) == 0
    assert reach**2 >= 16 * fan_in
    assert step == 1 or (reach // 2) ** 2 < 16 * fan_in


def test_eight_bits_round_nothing_up_to_1008_products() -> None:
    steps = [fnn.Accumulator(8, fan_in).step for fan_in in (27, 576, 1008, 1009, 4608)]
    assert steps == [1, 1, 1, 2, 4]
    assert fnn.Accumulator(8, 576).limits == (-128, 127)
    sums = torch.tensor([-300.0, -128, -127, 0, 126, 127, 128, 300])
    assert fnn.Accumulator(8, 576).hold(sums).tolist() == [-128, -128, -127, 0, 126, 127, 127, 127]
    assert fnn.Accumulator(8, 1009).hold(torch.tensor([-3.0, -2, -1, 0, 1, 2, 3, 400])).tolist() == [
        *(-2, -2, 0, 0, 2, 2, 4, 254)
    ]


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("name", LAYERS)
def test_wide_enough_accumulators_change_nothing(name: str, scaled: bool) -> None:
    results = []
    for bits in (None, 20):
        layer, x = make(name, bits, scaled, torch.float64)
        y = layer(x.requires_grad_())
        incoming = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        results.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], incoming)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_passes_inside_the_range_and_the_biases_always(name: str) -> None:
    bits = 3
    layer, x = make(name, bits, True, torch.float64)
    free = make(name, None, True, torch.float64)[0]
    sums = integer_sums(layer, x)
    fan_in = layer.weight.numel() // (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
    low, high = fnn.Accumulator(bits, fan_in).limits
    inside = (sums >= low) & (sums <= high)
    assert inside.any()
    assert not inside.all()
    incoming = torch.randn(sums.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    x.requires_grad_()
    mine = torch.autograd.grad(layer(x), [x, layer.weight], incoming, retain_graph=True)
    plain = torch.autograd.grad(free(x), [x, free.weight], incoming * inside)
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other)
    if layer.bias is not None:
        (bias,) = torch.autograd.grad(layer(x), [layer.bias], incoming)
        torch.testing.assert_close(bias, incoming.transpose(0, -1 if incoming.dim() == 2 else 1).flatten(1).sum(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers_module, "quantized_map", reference_map)
        expected = layer(x)
        reference = torch.autograd.grad(expected, [x, *layer.parameters()], incoming)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    for one, other in zip(torch.autograd.grad(y, [x, *layer.parameters()], incoming), reference, strict=True):
        torch.testing.assert_close(one, other)


def test_in_16_bits_and_under_autocast_the_sums_stay_exact() -> None:
    layer, x = make("linear", 6, True)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = held(integer_sums(layer, x), 6, 2)
    scale = per_output(layer).bfloat16()
    assert torch.equal(y, (exact.bfloat16() * scale) + layer.bias.bfloat16())
    torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.02)


def test_a_soft_operand_has_no_such_sum_and_nothing_is_done() -> None:
    layer, x = make("linear", 2, False)
    plain = copy.deepcopy(layer)
    plain.accumulator_bits = None
    for module in (layer, plain):
        module.weight_quantizer = fb.quantizers.create("bnn++")
    assert torch.equal(layer(x), plain(x))
    for module in (layer, plain):
        module.weight_quantizer.finished = True
    assert not torch.equal(layer(x), plain(x))
    for module in (layer, plain):
        module.weight_quantizer = fb.quantizers.Masked(fb.quantizers.Clip())
        module.weight_quantizer.stage, module.weight_quantizer.mask = "mixed", torch.ones(96, dtype=torch.bool)
    assert torch.equal(layer(x), plain(x))
    assert not torch.equal(hardened(layer, x), hardened(plain, x))
    layer.weight_quantizer = plain.weight_quantizer = fb.quantizers.create("binary_relax")
    layer.weight_quantizer.finished = layer.weight_quantizer.at_latent = True  # as under rPC
    assert torch.equal(layer(x), plain(x))
    layer.eval(), plain.eval(), plain.weight_quantizer.eval()
    assert not torch.equal(layer(x), plain(x))


def hardened(module: nn.Module, x: Tensor) -> Tensor:
    with fb.hardened(module), torch.no_grad():
        y: Tensor = module(x)
    return y


@pytest.mark.parametrize(("same", "keys"), [(True, None), (False, None), (False, 24)])
def test_attention_holds_the_sums_of_its_projections(same: bool, keys: int | None) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"batch_first": True, "kdim": keys, "vdim": keys, "weight_scale": "mean_abs"}
    ours = fnn.MultiheadAttention(16, 2, **options, accumulator_bits=3).double()
    nn.init.normal_(ours.in_proj_bias)  # else values cancel to a zero, the sign of which is noise
    q = torch.randn(2, 5, 16).double()
    kv = q if same else torch.randn(2, 7, keys or 16).double()
    weights = ours.in_proj_weight.chunk(3) if keys is None else [w for _, w, _ in ours.latents()]

    def project(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        sums = held(whole(x) @ whole(w).t(), 3, fnn.Accumulator(3, w.shape[1]).step)
        return sums * w.abs().mean(1) + bias

    projected = [project(x, w, b) for x, w, b in zip((q, kv, kv), weights, ours.in_proj_bias.chunk(3), strict=True)]
    heads = [p.unflatten(-1, (2, 8)).transpose(1, 2) for p in projected]
    mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    expected = project(mixed, ours.out_proj.weight, ours.out_proj.bias)
    torch.testing.assert_close(ours(q, kv, kv)[0], expected)
    ours(q, kv, kv)[0].sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_a_whole_network_with_its_real_layers_left_alone() -> None:
    torch.manual_seed(0)
    model = fb.models.create("resnet8", width=8, input_size=8, in_channels=1)
    state = model.state_dict()
    overrides = {"fc": {"input": None}, "layer1.*": {"accumulator_bits": 3}}
    fb.binarize_(model, keep=["conv1", "*downsample*"], overrides=overrides, accumulator_bits=8, min_binary_macs=0)
    bits = {name: getattr(m, "accumulator_bits", None) for name, m in model.named_modules() if hasattr(m, "weight")}
    assert bits["conv1"] is bits["fc"] is None
    assert (bits["layer1.0.conv1"], bits["layer2.0.conv1"]) == (3, 8)
    model.load_state_dict(state, strict=True)  # no buffers: a float checkpoint loads strictly
    assert list(model.state_dict()) == list(state)
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(compiled(x), model(x))
    binarynet = fb.models.create("binarynet", width=4)
    fb.binarize_(binarynet, accumulator_bits=8)  # its own overrides keep the first input real
    assert (binarynet.conv1.accumulator_bits, binarynet.conv2.accumulator_bits) == (None, 8)


REFUSED = {
    "weights only": ({"input": None}, "accumulator_bits is for sums of ±1 products: no layer has a binary weight and"),
    "inputs only": ({"weight": None}, "no layer has a binary weight and input"),
    "activation": ({"placement": "activation", "min_binary_macs": 0}, "no layer has a binary weight and input"),
    "asked for": (
        {"accumulator_bits": None, "input": None, "overrides": {"layer1.*": {"accumulator_bits": 8}}},
        "accumulator_bits=8 is for sums of ±1 products: the input is real here",
    ),
    "one bit": ({"accumulator_bits": 1}, "accumulator_bits must be a whole number from 2 to 32, found 1"),
    "a half": ({"accumulator_bits": 7.5}, "accumulator_bits must be a whole number from 2 to 32, found 7.5"),
    "a typo": ({"overrides": {"layer1.*": {"acumulator_bits": 8}}}, "did you mean 'accumulator_bits'?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_model_as_it_was(case: str) -> None:
    options, said = REFUSED[case]
    model = fb.models.create("resnet8", width=4, input_size=8)
    before = repr(model)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        fb.binarize_(model, **{"accumulator_bits": 8} | options)
    assert "\n" not in str(caught.value)
    assert repr(model) == before
    assert not any(hasattr(module, "accumulator_bits") for module in model.modules())


def test_an_embedding_sums_nothing() -> None:
    assert fnn.Embedding(4, 4, accumulator_bits=8).accumulator_bits is None
    with pytest.raises(UsageError, match="the weight is real here"):
        fnn.Linear(4, 4, weight_quantizer=None, accumulator_bits=8)
