"""Values and gradients of every layer, held against torch's own layers and the plain composition."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import frostbit as fb
from frostbit import nn as fnn
from frostbit import quantizers
from frostbit.nn import layers as layers_module
from frostbit.nn.functional import reference_map
from frostbit.quantizers import Clip, Masked, Quantizer, hard

#: name → (class name in torch.nn and frostbit.nn, its arguments, shape of a batch)
LAYERS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": ("Linear", (5, 4), {}, (3, 5)),
    "linear no bias": ("Linear", (5, 4), {"bias": False}, (3, 5)),
    "linear tokens": ("Linear", (5, 4), {}, (2, 3, 5)),
    "linear one row": ("Linear", (5, 4), {}, (5,)),
    "conv1d": ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 9)),
    "conv2d": ("Conv2d", (3, 4, 3), {"padding": 1}, (2, 3, 6, 5)),
    "conv2d no bias": ("Conv2d", (3, 4, (3, 2)), {"stride": (2, 1), "bias": False}, (2, 3, 6, 5)),
    "conv2d grouped, dilated": ("Conv2d", (4, 6, 3), {"groups": 2, "dilation": 2, "padding": 2}, (2, 4, 6, 5)),
    "conv2d depthwise": ("Conv2d", (4, 8, 3), {"groups": 4, "padding": 1, "stride": 2}, (2, 4, 6, 5)),
    "conv2d same": ("Conv2d", (3, 4, 3), {"padding": "same", "dilation": 2}, (2, 3, 6, 5)),
    "conv2d same, even": ("Conv2d", (3, 4, (2, 4)), {"padding": "same"}, (2, 3, 6, 5)),
    "conv2d valid": ("Conv2d", (3, 4, 2), {"padding": "valid"}, (2, 3, 6, 5)),
    "conv2d reflect": ("Conv2d", (3, 4, 3), {"padding": (1, 2), "padding_mode": "reflect"}, (2, 3, 6, 5)),
    "conv2d circular": ("Conv2d", (3, 4, 3), {"padding": 1, "padding_mode": "circular"}, (2, 3, 6, 5)),
    "conv2d replicate": ("Conv2d", (3, 4, 3), {"padding": 1, "padding_mode": "replicate"}, (2, 3, 6, 5)),
    "conv2d one image": ("Conv2d", (3, 4, 3), {"padding": 1}, (3, 6, 5)),
    "conv3d": ("Conv3d", (2, 4, (1, 2, 3)), {"padding": (0, 1, 1), "groups": 2}, (2, 2, 3, 4, 5)),
    "transposed1d": ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "output_padding": 1}, (2, 4, 5)),
    "transposed2d": ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 5, 3)),
    "transposed2d one image": ("ConvTranspose2d", (4, 6, 3), {"dilation": 2, "bias": False}, (4, 5, 3)),
    "transposed3d": ("ConvTranspose3d", (2, 3, 2), {"stride": 2, "padding": 1}, (2, 2, 3, 2, 3)),
}
SAME = {"rtol": 1e-6, "atol": 1e-6}


def make(name: str, **binary: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return our layer, torch's with the same parameters, and a batch (some of it beyond ±1); float64."""
    kind, args, kwargs, shape = LAYERS[name]
    torch.manual_seed(0)
    ours = getattr(fnn, kind)(*args, **kwargs, **binary).double()
    with torch.no_grad():
        ours.weight.normal_(0, 0.8)
    theirs = getattr(nn, kind)(*args, **kwargs).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs, torch.randn(shape, dtype=torch.float64).mul(1.5)


def gradients(y: Tensor, *leaves: Tensor) -> list[Tensor | None]:
    incoming = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(torch.autograd.grad(y, leaves, incoming.to(y.dtype), allow_unused=True))


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, **SAME)


@pytest.mark.parametrize("quantizer", ["ste_identity", "ste_clip"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_torchs_layer_on_signs(name: str, quantizer: str) -> None:
    ours, theirs, x = make(name, weight_quantizer=quantizer, input_quantizer=quantizer)
    x.requires_grad_()
    y = ours(x)
    signs = hard(x).requires_grad_()
    with torch.no_grad():
        theirs.weight.copy_(hard(theirs.weight))
    expected = theirs(signs)
    torch.testing.assert_close(y, expected, **SAME)
    biases = [] if ours.bias is None else [ours.bias]
    mine = gradients(y, x, ours.weight, *biases)
    plain = gradients(expected, signs, theirs.weight, *([] if theirs.bias is None else [theirs.bias]))
    if quantizer == "ste_clip":
        plain[0] = plain[0] * (x.detach().abs() <= 1)
        plain[1] = plain[1] * (ours.weight.detach().abs() <= 1)
        assert bool((x.abs() > 1).any())
        assert bool((ours.weight.abs() > 1).any())
    assert_same(mine, plain)


@pytest.mark.parametrize("name", LAYERS)
def test_without_quantizers_a_layer_is_torchs_own(name: str) -> None:
    ours, theirs, x = make(name, weight_quantizer=None, input_quantizer=None)
    x.requires_grad_()
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, **SAME)
    assert_same(gradients(y, x, *ours.parameters()), gradients(expected, x, *theirs.parameters()))


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv2d same, even", "conv3d"])
@pytest.mark.parametrize("pad_value", [-1.0, 1.0])
def test_pad_value_is_what_the_signs_are_padded_with(name: str, pad_value: float) -> None:
    ours, theirs, x = make(name, pad_value=pad_value, weight_quantizer="ste_identity", input_quantizer="ste_identity")
    x.requires_grad_()
    signs = hard(x).requires_grad_()
    with torch.no_grad():
        theirs.weight.copy_(hard(theirs.weight))
    padded = functional.pad(signs, theirs._reversed_padding_repeated_twice, value=pad_value)
    theirs.padding = (0,) * len(theirs.kernel_size)
    y, expected = ours(x), theirs(padded)
    torch.testing.assert_close(y, expected, **SAME)
    assert_same(gradients(y, x, *ours.parameters()), gradients(expected, signs, *theirs.parameters()))
    if theirs.kernel_size != (1,):
        zero = make(name, pad_value=0.0, weight_quantizer="ste_identity", input_quantizer="ste_identity")[0]
        assert not torch.equal(zero(x), y)


def states() -> dict[str, Callable[[tuple[int, ...]], Quantizer | None]]:
    """Return makers of quantizers for a tensor of a given shape, in every state."""

    def masked(stage: str, ste: str | None, drop: bool = False) -> Callable[[tuple[int, ...]], Quantizer]:
        def build(shape: tuple[int, ...]) -> Quantizer:
            quantizer = Masked(Clip(), quantizers.resolve(ste), drop)
            quantizer.stage = stage
            quantizer.mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5
            return quantizer

        return build

    table: dict[str, Callable[[tuple[int, ...]], Quantizer | None]] = {"real": lambda shape: None}
    for name in quantizers.list():
        table[name] = lambda shape, name=name: quantizers.create(name)
    table |= {
        "soft": masked("soft", None),
        "mixed": masked("mixed", None),
        "mixed+ste": masked("mixed", "ste_clip"),
        "mixed+swish": masked("mixed", "swish_sign"),
        "frozen": masked("hard", None, drop=True),
        "frozen, one graph": masked("hard", None),
        "frozen+ste": masked("hard", "ste_clip"),
        "frozen+approx": masked("hard", "approx_sign"),
    }
    return table


@pytest.mark.parametrize("scaled", [None, "mean_abs"])
@pytest.mark.parametrize("name", ["linear tokens", "conv2d grouped, dilated", "conv2d reflect", "transposed2d"])
def test_the_lean_map_equals_the_plain_composition(name: str, scaled: str | None) -> None:
    makers = states()
    ours, _, x = make(name, weight_scale=scaled)
    plain = copy.deepcopy(ours)
    features = x.shape[-1:] if name.startswith("linear") else x.shape[1:]
    pairs = [(a, a) for a in makers] + [("real", a) for a in makers] + [(a, "ste_clip") for a in makers]
    for for_input, for_weight in pairs:
        for layer in (ours, plain):
            layer.input_quantizer = makers[for_input](features)
            layer.weight_quantizer = makers[for_weight](tuple(layer.weight.shape))
        leaf = x.clone().requires_grad_()
        y = ours(leaf)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers_module, "quantized_map", reference_map)
            expected = plain(leaf)
        torch.testing.assert_close(y, expected, **SAME, msg=f"{for_input} / {for_weight}")
        assert_same(gradients(y, leaf, *ours.parameters()), gradients(expected, leaf, *plain.parameters()))
        with torch.no_grad():
            torch.testing.assert_close(ours(leaf), expected, **SAME)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_geometry(data: st.DataObject) -> None:
    """Any convolution, transposed or not, against torch's function on signs; ±1 padding included."""
    draw = data.draw
    dims = draw(st.integers(1, 3), "dims")
    sizes = st.integers(1, 3)
    three = ("kernel", "stride", "dilation")
    kernel, stride, dilation = (tuple(draw(sizes, what) for _ in range(dims)) for what in three)
    padding = tuple(draw(st.integers(0, 2), "padding") for _ in range(dims))
    groups = draw(sizes, "groups")
    cin, cout = groups * draw(st.integers(1, 2), "in"), groups * draw(st.integers(1, 2), "out")
    transposed, bias = draw(st.booleans(), "transposed"), draw(st.booleans(), "bias")
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if transposed:
        each = zip(padding, dilation, kernel, stride, strict=True)
        least = [max(2 * p - d * (k - 1), 0) // s + 2 for p, d, k, s in each]
    shape = (draw(st.integers(1, 2), "batch"), cin, *(n + draw(st.integers(0, 2), "extra") for n in least))
    unbatched = draw(st.booleans(), "unbatched")
    common = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    kind = f"Conv{'Transpose' if transposed else ''}{dims}d"
    pad_value = 0.0 if transposed else draw(st.sampled_from([0.0, 1.0, -1.0]), "pad_value")
    layer = getattr(fnn, kind)(
        cin, cout, kernel, bias=bias, **common, pad_value=pad_value, weight_quantizer="ste_identity",
        input_quantizer="ste_identity",
    ).double()  # fmt: skip
    x = torch.randn(shape, dtype=torch.float64)
    x = (x[0] if unbatched else x).requires_grad_()
    signs, weight = hard(x).requires_grad_(), hard(layer.weight).requires_grad_()
    reference = getattr(functional, f"conv{'_transpose' if transposed else ''}{dims}d")
    if pad_value:
        both_sides = [p for n in reversed(padding) for p in (n, n)]
        padded = functional.pad(signs, both_sides, value=pad_value)
        expected = reference(padded, weight, layer.bias, **common | {"padding": 0})
    else:
        expected = reference(signs, weight, layer.bias, **common)
    y = layer(x)
    torch.testing.assert_close(y, expected, **SAME)
    biases = [layer.bias] if bias else []
    assert_same(gradients(y, x, layer.weight, *biases), gradients(expected, signs, weight, *biases))


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    ours, _, x = make("linear")
    for quantized in (ours, fb.nn.Binarizer("ste_clip")):
        with pytest.raises(RuntimeError, match="has no derivative of its own"):
            torch.autograd.grad(quantized(x.requires_grad_()).square().sum(), x, create_graph=True)


def test_a_transposed_convolution_takes_output_size() -> None:
    ours, theirs, x = make("transposed2d")
    with torch.no_grad():
        theirs.weight.copy_(hard(theirs.weight))
    size = [10, 6]
    torch.testing.assert_close(ours(x, output_size=size), theirs(hard(x), output_size=size), **SAME)
    assert ours(x, output_size=size).shape != ours(x).shape


def away_from_kinks(t: Tensor) -> Tensor:
    """Move entries that lie within 0.01 of 0 or ±1, where the mixture has no derivative."""
    return t + 0.02 * torch.sign(t) * ((t.abs() < 0.01) | ((t.abs() - 1).abs() < 0.01))


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "conv2d reflect", "conv3d", "transposed2d"])
def test_gradients_of_a_masked_layer_in_transition_are_the_true_ones(name: str) -> None:
    """STE-free, the mixture is differentiable almost everywhere: finite differences must agree."""
    ours, _, x = make(name)
    makers = states()
    ours.input_quantizer = makers["mixed"](x.shape[1:])
    ours.weight_quantizer = makers["mixed"](tuple(ours.weight.shape))
    x = away_from_kinks(x).requires_grad_()
    with torch.no_grad():
        ours.weight.copy_(away_from_kinks(ours.weight))
    parameters = dict(ours.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(ours, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in parameters.values())))


def test_weight_scale_is_the_mean_magnitude_of_each_filter() -> None:
    for name in ("linear", "conv1d", "conv2d grouped, dilated", "conv3d"):
        ours, theirs, x = make(name, weight_scale="mean_abs", weight_quantizer="ste_identity", input_quantizer=None)
        with torch.no_grad():
            for out in range(theirs.weight.shape[0]):
                theirs.weight[out] = hard(theirs.weight[out]) * theirs.weight[out].abs().mean()
        x.requires_grad_()
        y, expected = ours(x), theirs(x)
        torch.testing.assert_close(y, expected, **SAME)
        # the scale takes no part in the gradient of the latent
        assert_same(gradients(y, x, ours.weight), gradients(expected, x, theirs.weight))


def test_weight_scale_of_a_transposed_convolution_is_per_output_channel() -> None:
    ours, theirs, x = make("transposed2d", weight_scale="mean_abs", input_quantizer=None)
    groups, per_group = theirs.groups, theirs.out_channels // theirs.groups
    with torch.no_grad():
        for rows in theirs.weight.chunk(groups):
            for out in range(per_group):
                rows[:, out] = hard(rows[:, out]) * rows[:, out].abs().mean()
    torch.testing.assert_close(ours(x), theirs(x), **SAME)


def test_channels_last_changes_neither_values_nor_layout() -> None:
    ours, _, x = make("conv2d")
    last = copy.deepcopy(ours).to(memory_format=torch.channels_last)
    leaf = x.clone().requires_grad_()
    other = x.to(memory_format=torch.channels_last).requires_grad_()
    y, z = ours(leaf), last(other)
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(z, y, **SAME)
    assert_same(gradients(z, other, *last.parameters()), gradients(y, leaf, *ours.parameters()))
    assert set(hard(last.weight).unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_a_layer_used_twice_sums_its_gradients(name: str) -> None:
    ours, _, x = make(name, weight_quantizer="ste_clip")
    (both,) = gradients(ours(x) + ours(2 * x), ours.weight)
    (first,), (second,) = gradients(ours(x), ours.weight), gradients(ours(2 * x), ours.weight)
    torch.testing.assert_close(both, first + second, **SAME)
