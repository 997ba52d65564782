"""MobileNetV2: torchvision's layout, both forms, and the binary networks that it becomes."""

import copy
import re

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit import models
from frostbit.errors import UsageError
from frostbit.models.mobilenet import InvertedResidual, _round

PLACEMENTS = ("input", "activation")


def small(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.create("mobilenetv2", **{"width": 8, "input_size": 16, **options})


def torchvision_layout() -> dict[str, tuple[int, ...]]:
    """State-dict keys and shapes of torchvision's MobileNetV2, written out from its published layout."""
    layout: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(conv: str, norm: str, *shape: int) -> None:
        layout[f"{conv}.weight"] = shape
        for field in ("weight", "bias", "running_mean", "running_var"):
            layout[f"{norm}.{field}"] = shape[:1]
        layout[f"{norm}.num_batches_tracked"] = ()

    conv_and_norm("features.0.0", "features.0.1", 32, 3, 3, 3)
    before, number = 32, 1
    for expansion, out, blocks in [
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ]:
        for _ in range(blocks):
            path, place, inside = f"features.{number}.conv", 0, before * expansion
            if expansion > 1:
                conv_and_norm(f"{path}.0.0", f"{path}.0.1", inside, before, 1, 1)
                place = 1
            conv_and_norm(f"{path}.{place}.0", f"{path}.{place}.1", inside, 1, 3, 3)
            conv_and_norm(f"{path}.{place + 1}", f"{path}.{place + 2}", out, inside, 1, 1)
            before, number = out, number + 1
    conv_and_norm("features.18.0", "features.18.1", 1280, 320, 1, 1)
    return layout | {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


def test_the_imagenet_form_is_torchvisions() -> None:
    with torch.device("meta"):
        model = models.create("mobilenetv2", num_classes=1000, input_size=224, init="torch")
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(torchvision_layout().items())
    assert sum(p.numel() for p in model.parameters()) == 3_504_872  # published
    assert model.classifier[0].p == 0.2


def strides(model: nn.Module) -> list[int]:
    return [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def test_where_the_two_forms_halve_the_image() -> None:
    imagenet = [2, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    cifar = [1, 1, 1, *imagenet[3:]]
    assert strides(small(input_size=32, stem="imagenet")) == imagenet
    assert strides(small()) == cifar
    assert strides(small(input_size=127)) == cifar
    assert strides(small(input_size=128)) == imagenet
    assert small().classifier[0].p == 0.0
    seen: list[torch.Size] = []
    model = small(input_size=32)
    model.avgpool.register_forward_hook(lambda m, inputs, y: seen.append(inputs[0].shape))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 1280, 4, 4)]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        # the published networks of multipliers 0.25, 0.5, 0.75, 1 and 1.25
        (8, [8, 8, 8, 8, 16, 24, 40, 80, 1280]),
        (16, [16, 8, 16, 16, 32, 48, 80, 160, 1280]),
        (24, [24, 16, 24, 24, 48, 72, 120, 240, 1280]),
        (32, [32, 16, 24, 32, 64, 96, 160, 320, 1280]),
        (40, [40, 24, 32, 40, 80, 120, 200, 400, 1600]),
    ],
)
def test_widths_follow_the_multiplier(width: int, expected: list[int]) -> None:
    with torch.device("meta"):
        model = models.create("mobilenetv2", width=width)
    ends = [m.conv[-2].out_channels for m in model.features if isinstance(m, InvertedResidual)]
    stages = [ends[i] for i in (0, 1, 3, 6, 10, 13, 16)]
    assert [model.features[0][0].out_channels, *stages, model.features[-1][0].out_channels] == expected


@pytest.mark.parametrize(("channels", "expected"), [(4, 8), (12, 16), (11.2, 16), (20, 24), (26, 24), (27.2, 32)])
def test_rounding_never_loses_more_than_a_tenth(channels: float, expected: int) -> None:
    assert _round(channels) == expected


def test_a_block_adds_only_where_shapes_agree_and_ends_linear() -> None:
    x = torch.randn(2, 8, 6, 6)
    for out, stride, adds in ((8, 1, True), (8, 2, False), (16, 1, False)):
        torch.manual_seed(0)
        block = InvertedResidual(8, out, stride, 6).eval()
        widen, depthwise, narrow, norm = block.conv
        expected = norm(narrow(depthwise[1](depthwise[0](widen[1](widen[0](x)).clamp(0, 6))).clamp(0, 6)))
        expected = expected + x if adds else expected
        torch.testing.assert_close(block(x), expected)
        assert (block(x) < 0).any()


def test_every_relu6_is_a_module_that_runs_once() -> None:
    model = small()
    relus = {path: m for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.ReLU6)}
    assert len(relus) == len({id(m) for m in relus.values()}) == 1 + 1 + 16 * 2 + 1
    calls: dict[str, int] = {}
    for path, module in relus.items():
        module.register_forward_hook(lambda *_, path=path: calls.__setitem__(path, calls.get(path, 0) + 1))
    model(torch.randn(2, *model.input_shape))
    assert calls == dict.fromkeys(relus, 1)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_all_but_first_and_last_become_binary_depthwise_included(placement: str) -> None:
    model = small(input_size=32)
    report = fb.binarize_(model, placement=placement)
    assert set(report.kept) == {"features.0.0", "classifier.1"}
    assert len(report.converted) == 51
    assert report.binary_macs > 0.9
    ends = {f"features.{k}.conv.{3 if k > 1 else 2}" for k in range(1, 18)}
    for name, module in model.named_modules():  # bottlenecks stay linear: nothing sits behind their norms
        if name in ends:
            assert isinstance(module, nn.BatchNorm2d)
    binarizers = [name for name, module in model.named_modules() if isinstance(module, fb.nn.Binarizer)]
    if placement == "activation":
        assert len(binarizers) == 35
        assert not any(isinstance(m, nn.ReLU6) for m in model.modules())
    else:
        assert not binarizers
        # the last activation feeds the real classifier
        assert [n for n, m in model.named_modules() if isinstance(m, nn.ReLU6)] == ["features.18.2"]
        assert all(m.input_quantizer is not None for m in model.modules() if isinstance(m, fb.nn.Conv2d))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_depthwise_layers_stay_real_on_request(placement: str) -> None:
    model = small()
    report = fb.binarize_(model, placement=placement, keep="first_last_depthwise", min_binary_macs=0)
    depthwise = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert len(depthwise) == 17
    assert set(report.kept) == depthwise | {"features.0.0", "classifier.1"}
    assert sum(isinstance(m, nn.ReLU6) for m in model.modules()) == (0 if placement == "activation" else 18)


@pytest.mark.parametrize("keep", ["first_last_downsample", "first_last_depthwise"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_quantizer_is_constant_and_stompp_freezes_all(placement: str, keep: str) -> None:
    model = small()
    fb.binarize_(model, placement=placement, keep=keep, min_binary_macs=0)
    x = torch.randn(4, *model.input_shape)
    outputs: list[torch.Tensor] = []
    for module in model.modules():
        if getattr(module, "input_quantizer", None) is not None:
            module.input_quantizer.register_forward_hook(lambda m, i, y: outputs.append(y))
    with fb.hardened(model), torch.no_grad():
        assert model(x).std() > 0
    assert all(y.unique().tolist() == [-1, 1] for y in outputs)

    names = [unit.name for unit in fb.units(model)]
    prog = fb.StoMPP(model, total_steps=len(names), ste="ste_clip", refresh=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    prog.attach(optimizer)
    for step in range(len(names)):
        shares = list(fb.frozen_fraction(model).values())
        assert shares[: step + 1] == [1.0] * (step + 1)
        assert not any(shares[step + 1 :])
        if step % 17 == 0:  # a few real steps; the others only move the clock
            optimizer.zero_grad()
            model(x).square().mean().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert fb.is_hard(model)
    assert names[0] == ("features.1.conv.0.0" if keep == "first_last_downsample" else names[0])


def test_it_compiles_into_one_graph_and_survives_a_copy() -> None:
    model = small(input_size=8).eval()
    x = torch.randn(2, *model.input_shape)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    assert model(torch.randn(2, 3, 16, 24)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 12}, "width to be a multiple of 8, found 12"),
        ({"width": 0}, "width to be an integer >= 8, found 0"),
        ({"input_size": 7}, "input_size to be an integer >= 8 (the 'cifar' stem's total stride), found 7"),
        ({"input_size": 16, "stem": "imagenet"}, "input_size to be an integer >= 32"),
        ({"dropout": 1.0}, "dropout to lie in [0, 1), found 1.0"),
        ({"stem": "cifra"}, "unknown stem 'cifra': did you mean 'cifar'?"),
    ],
)
def test_a_wrong_value_gets_one_sentence(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        small(**options)
