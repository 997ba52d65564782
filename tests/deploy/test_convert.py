"""Packed layers: the hardened layer's integers bit for bit, in eager mode, compiled and exported."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostbit as fb
from frostbit.deploy import kernels, ops
from tests.deploy import zoo
from tests.nn import zoo as others


def hard_output(model: nn.Module, *x: Tensor) -> Tensor:
    with torch.no_grad(), fb.hardened(model.eval()):
        return model(*x)


IMAGE, SIGNAL, VOLUME, ROWS = (2, 4, 7, 6), (2, 4, 9), (2, 4, 5, 4, 6), (3, 5, 6)
LAYERS: list[tuple[type[nn.Module], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (fb.nn.Linear, (6, 5), {}, ROWS),
    (fb.nn.Linear, (6, 5), {"bias": False}, (6,)),
    (fb.nn.Conv2d, (4, 6, 3), {"padding": 1}, IMAGE),
    (fb.nn.Conv2d, (4, 6, 3), {"padding": 1, "pad_value": -1.0}, IMAGE),
    (fb.nn.Conv2d, (4, 6, 3), {"padding": (1, 2), "stride": 2, "pad_value": 1.0}, IMAGE),
    (fb.nn.Conv2d, (4, 8, 3), {"padding": 2, "dilation": 2, "groups": 2}, IMAGE),
    (fb.nn.Conv2d, (4, 4, 3), {"groups": 4, "bias": False}, IMAGE),
    (fb.nn.Conv2d, (4, 6, 4), {"padding": "same"}, IMAGE),
    (fb.nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, IMAGE),
    (fb.nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "circular"}, IMAGE),
    (fb.nn.Conv2d, (4, 6, 3), {}, IMAGE[1:]),
    (fb.nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1}, SIGNAL),
    (fb.nn.Conv3d, (4, 6, 3), {"padding": 1}, VOLUME),
    (fb.nn.ConvTranspose1d, (4, 6, 3), {"stride": 2}, SIGNAL),
    (fb.nn.ConvTranspose2d, (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, IMAGE),
    (fb.nn.ConvTranspose3d, (4, 6, 2), {"dilation": 2}, VOLUME),
]


@pytest.mark.parametrize(("kind", "arguments", "options", "shape"), LAYERS, ids=lambda value: str(value)[:60])
@pytest.mark.parametrize("how", ["plain", "scaled", "narrow", "weights only", "input only"])
def test_a_packed_layer_computes_what_the_hardened_one_does(
    kind: Any, arguments: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...], how: str
) -> None:
    torch.manual_seed(0)
    settings = {
        "plain": {}, "scaled": {"weight_scale": "mean_abs"}, "narrow": {"accumulator_bits": 3},
        "weights only": {"input_quantizer": None}, "input only": {"weight_quantizer": None},
    }[how]  # fmt: skip
    layer = kind(*arguments, **options, **settings)
    with torch.no_grad():
        layer.weight[0] = -0.0
    x = torch.randn(shape)
    x.flatten()[::5] = -0.0
    expected, found = hard_output(layer, x), fb.deploy.convert(layer)(x)
    if how == "plain" and layer.bias is None:
        assert torch.equal(found, found.round())
    if how != "weights only" and layer.bias is None:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


def test_without_kernels_the_integers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.ready("resnet8", pad_value=-1.0)
    packed = fb.deploy.convert(model)
    fast = packed(x)
    monkeypatch.setattr(kernels, "_available", False)
    assert torch.equal(packed(x), fast)
    assert torch.equal(fast, hard_output(model, x))


def test_nan_never_becomes_a_sign() -> None:
    layer = fb.deploy.convert(fb.nn.Linear(4, 3))
    assert layer(torch.tensor([[1.0, float("nan"), 0.0, 2.0]])).isnan().all()
    assert layer(torch.tensor([[float("inf"), float("-inf"), 0.0, 2.0]])).isfinite().all()


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"weight_scale": "mean_abs"}, {"input_quantizer": None}, {"accumulator_bits": 3}], ids=str
)
def test_attention(options: dict[str, Any], same: bool) -> None:
    torch.manual_seed(0)
    widths = {} if same else {"kdim": 6, "vdim": 5}
    layer = fb.nn.MultiheadAttention(8, 2, batch_first=True, **widths, **options)
    query = torch.randn(2, 4, 8)
    inputs = (query, query, query) if same else (query, torch.randn(2, 3, 6), torch.randn(2, 3, 5))
    with torch.no_grad(), fb.hardened(layer.eval()):
        expected = layer(*inputs)[0]
    torch.testing.assert_close(fb.deploy.convert(layer)(*inputs)[0], expected)


def test_embedding() -> None:
    layer = fb.nn.Embedding(7, 5, weight_scale="mean_abs")
    index = torch.tensor([[0, 6], [3, 3]])
    torch.testing.assert_close(fb.deploy.convert(layer)(index), hard_output(layer, index))


CASES = {
    "binarynet": lambda: zoo.ready("binarynet"),
    "activation": lambda: zoo.ready("resnet8", "activation"),
    "weights only": lambda: zoo.ready("mlp", input=None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_packed_model_compiles_and_exports(case: str) -> None:
    model, x = CASES[case]()
    packed = fb.deploy.convert(model)
    with torch.no_grad():
        expected = packed(x)
        compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), expected)
        batch = torch.export.Dim("batch")
        exported = torch.export.export(packed, (x,), dynamic_shapes=({0: batch},), strict=False)
        assert torch.equal(exported.module()(x[:3]), packed(x[:3]))
    torch._dynamo.reset()
    binary = [p.numel() for _, p in fb.binary_parameters(model)]
    bits = sum(-(-n // 8) for n in binary)
    assert sum(b.numel() for b in packed.buffers() if b.dtype == torch.uint8) == bits


def test_the_operators_are_sound() -> None:
    """Schema, fake kernels and dispatch, as torch itself checks them."""
    x, w = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 3)
    torch.library.opcheck(ops.binary_conv, (x, ops.pack(w), list(w.shape), [2, 1], [1, 0, 0, 2], [1, 2], 2, -1))
    w = torch.randn(4, 3, 3, 3)
    geometry = ([2, 1], [1, 0], [1, 0], [1, 2], 2)
    torch.library.opcheck(ops.binary_conv_transpose, (x, ops.pack(w), list(w.shape), *geometry))
    w = torch.randn(5, 6)
    torch.library.opcheck(ops.binary_linear, (x, ops.pack(w), list(w.shape)))
    torch.library.opcheck(ops.unpack, (ops.pack(w), list(w.shape), torch.float32))
    torch.library.opcheck(ops.sign, (x,))


def test_the_model_stays_as_it_was_and_the_copy_is_a_module_like_any_other() -> None:
    model, x = zoo.ready("resnet8")
    before = others.fingerprint(model)
    packed = fb.deploy.convert(model)
    others.assert_untouched(model, before)
    again = copy.deepcopy(packed)
    again.load_state_dict(packed.state_dict())
    expected = packed(x)
    assert torch.equal(again(x), expected)
    with torch.no_grad():  # prepared kernels follow their bits
        for name, buffer in again.named_buffers():
            if name.endswith("layer1.0.conv1.bits"):
                buffer.bitwise_not_()
    assert not torch.equal(again(x), expected)
    assert packed.layer1[0].conv1.weight.dtype == torch.float32  # what others ask a layer for


def test_a_shared_layer_and_a_model_that_is_one_layer() -> None:
    shared = fb.nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Identity(), shared)
    packed = fb.deploy.convert(model)
    assert packed[0] is packed[2]
    x = torch.randn(3, 4)
    torch.testing.assert_close(packed(x), hard_output(model, x))


def test_units_that_are_not_binary_yet_are_announced() -> None:
    torch.manual_seed(0)
    model = zoo.tiny("resnet8")
    x = zoo.batch_for(model)
    fb.binarize_(model)
    progression = fb.StoMPP(model, total_steps=80)
    for _ in range(15):
        progression.step()
    with pytest.warns(
        UserWarning, match=r"5 of 6 binary modules are not fully binary yet \(least: 'layer1.0.conv2', 0% frozen"
    ):
        packed = fb.deploy.convert(model)
    assert torch.equal(packed(x), hard_output(model, x))
    for _ in range(65):
        progression.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fb.deploy.convert(model)(x), hard_output(model, x))


class Louder(fb.nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Named(fb.nn.Linear):
    """Adds nothing to the computation."""


def test_layers_that_cannot_be_packed_are_refused_by_name() -> None:
    with pytest.raises(fb.UsageError, match="layer '0' is a Louder with a forward of its own"):
        fb.deploy.convert(nn.Sequential(Louder(3, 2)))
    fb.deploy.convert(nn.Sequential(Named(3, 2)))
    layer = fb.nn.Linear(3, 2)
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(fb.UsageError, match="latent weight 'weight' of layer '0' holds NaN"):
        fb.deploy.convert(nn.Sequential(layer))
