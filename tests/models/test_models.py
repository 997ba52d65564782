"""Models: names, shapes, torchvision's layout, separate ReLUs, initialization, and refusals."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn

from frostbit import models
from frostbit.errors import UsageError

# ReLUs inside the blocks: one per convolution of the main path
BLOCK_RELUS = {"resnet10": 8, "resnet18": 16, "resnet34": 32, "resnet50": 48}


def shape_of_output(model: nn.Module, batch: int = 2) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(model(torch.randn(batch, *model.input_shape)).shape)


def test_the_list_of_names_and_its_globs() -> None:
    cifar = {f"resnet{n}" for n in (8, 14, 20, 32, 44, 56)}
    others = {"resnet10", "resnet18", "resnet34", "resnet50", "mlp", "binarynet", "xnornet", "bireal18", "bireal34"}
    vits = {"vit_tiny", "vit_small", "vit_base"}
    assert set(models.list()) == cifar | others | vits | {"mobilenetv2", "bert"}
    assert models.list("resnet5*") == ["resnet50", "resnet56"]


@pytest.mark.parametrize("name", models.list("resnet*"))
def test_a_resnet_has_the_depth_of_its_name_and_every_relu_runs_once(name: str) -> None:
    model = models.create(name, width=4, input_size=16, num_classes=7, in_channels=2)
    assert model.input_shape == (2, 16, 16)
    main = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in path
    ]
    assert len(main) == int(name.removeprefix("resnet"))

    calls: dict[str, int] = {}
    relus = {
        path: module for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.ReLU)
    }
    assert len({id(module) for module in relus.values()}) == len(relus)
    assert len(relus) == 1 + BLOCK_RELUS.get(name, len(main) - 2)
    for path, module in relus.items():
        module.register_forward_hook(lambda *_, path=path: calls.__setitem__(path, calls.get(path, 0) + 1))
    assert shape_of_output(model) == (2, 7)
    assert calls == dict.fromkeys(relus, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # published parameter counts of the ImageNet models with 1000 classes
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
    ],
)
def test_imagenet_models_have_the_published_parameter_counts(name: str, expected: int) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=1000, input_size=224, init="torch")
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model.conv1.weight.shape == (64, 3, 7, 7)


def torchvision_layout(depths: tuple[int, ...], bottleneck: bool) -> dict[str, tuple[int, ...]]:
    """State-dict keys and shapes of torchvision's ResNet, written out from its published layout."""
    layout: dict[str, tuple[int, ...]] = {}

    def norm(path: str, channels: int) -> None:
        for field in ("weight", "bias", "running_mean", "running_var"):
            layout[f"{path}.{field}"] = (channels,)
        layout[f"{path}.num_batches_tracked"] = ()

    layout["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    before = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            path = f"layer{stage + 1}.{block}"
            convs = (
                [(width, before, 1), (width, width, 3), (4 * width, width, 1)]
                if bottleneck
                else [
                    (width, before, 3),
                    (width, width, 3),
                ]
            )
            for k, (out, into, kernel) in enumerate(convs, start=1):
                layout[f"{path}.conv{k}.weight"] = (out, into, kernel, kernel)
                norm(f"{path}.bn{k}", out)
            after = convs[-1][0]
            if block == 0 and (stage > 0 or before != after):
                layout[f"{path}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{path}.downsample.1", after)
            before = after
    layout |= {"fc.weight": (1000, before), "fc.bias": (1000,)}
    return layout


@pytest.mark.parametrize(
    ("name", "depths", "bottleneck"),
    [("resnet18", (2, 2, 2, 2), False), ("resnet34", (3, 4, 6, 3), False), ("resnet50", (3, 4, 6, 3), True)],
)
def test_state_dict_is_torchvisions(name: str, depths: tuple[int, ...], bottleneck: bool) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=1000, input_size=224, init="torch")
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(torchvision_layout(depths, bottleneck).items())


def test_the_stride_of_a_bottleneck_sits_on_its_3x3_convolution() -> None:
    block = models.create("resnet50", width=4).layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize(
    ("size", "stem", "kernel", "last_map"),
    [(32, None, 3, 4), (127, None, 3, 16), (128, None, 7, 4), (64, "imagenet", 7, 2), (128, "cifar", 3, 16)],
)
def test_the_stem_follows_the_input_size_unless_named(size: int, stem: str | None, kernel: int, last_map: int) -> None:
    model = models.create("resnet10", width=4, input_size=size, stem=stem)
    assert model.conv1.kernel_size == (kernel, kernel)
    seen: list[torch.Size] = []
    model.layer4.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    shape_of_output(model)
    assert seen == [(2, 32, last_map, last_map)]


def test_a_block_is_relu_of_branch_plus_shortcut() -> None:
    model = models.create("resnet8", width=4).eval()
    x = torch.randn(2, 4, 8, 8)
    for block, shortcut in ((model.layer1[0], nn.Identity()), (model.layer2[0], model.layer2[0].downsample)):
        inner = block.bn1(block.conv1(x)).clamp(min=0)
        expected = (block.bn2(block.conv2(inner)) + shortcut(x)).clamp(min=0)
        torch.testing.assert_close(block(x), expected)
        x = expected


@pytest.mark.parametrize(("name", "width"), [("resnet18", 64), ("resnet20", 16)])
def test_default_widths_and_none_means_default(name: str, width: int) -> None:
    assert models.create(name, width=None).conv1.out_channels == width


def test_fan_in_normal_draws_with_variance_one_over_fan_in() -> None:
    torch.manual_seed(0)
    model = models.create("resnet18")
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            scaled = module.weight * math.sqrt(module.weight[0].numel())
            tolerance = 5 / math.sqrt(scaled.numel())  # five standard errors of the mean
            assert abs(scaled.mean().item()) < tolerance, path
            assert abs(scaled.std().item() - 1) < tolerance, path
            assert scaled.abs().max() > 2, path  # a uniform draw of this variance ends at √3
    assert not model.fc.bias.any()


def test_the_other_initializations() -> None:
    torch.manual_seed(0)
    weight = models.create("resnet10", init="kaiming_normal").layer2[0].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 9)), rel=0.02)
    weight = models.create("resnet10", init="torch").layer2[0].conv1.weight
    assert weight.abs().max().item() <= 1 / math.sqrt(64 * 9)


def test_no_convolution_in_front_of_batch_norm_has_a_bias() -> None:
    images = {name for name in models.list() if "in_channels" in models.arguments(name)}
    for name in images - set(models.list("vit*")):  # which have layer norm
        with torch.device("meta"):
            model = models.create(name)
        for path, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert (module.bias is None) == (path not in ("fc", "classifier.1"))


def test_mlp_layers_and_output() -> None:
    model = models.create("mlp", hidden=[5, 6], num_classes=3, in_channels=2, input_size=4)
    kinds = [type(layer) for layer in model.layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2
    assert [m.weight.shape for m in model.modules() if isinstance(m, nn.Linear)] == [(5, 32), (6, 5), (3, 6)]
    assert model.input_shape == (2, 4, 4)
    assert shape_of_output(model) == (2, 3)


def test_input_shape_survives_a_copy_and_stays_out_of_the_state_dict() -> None:
    model = models.create("resnet8", width=2, input_size=16)
    assert copy.deepcopy(model).input_shape == (3, 16, 16)
    assert not any("input_shape" in key for key in model.state_dict())


def test_other_image_sizes_than_built_for_run() -> None:
    model = models.create("resnet20", width=4)
    assert model(torch.randn(2, 3, 24, 40)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet8", "resnet50", "mlp"])
def test_models_compile_into_one_graph(name: str) -> None:
    model = models.create(name, input_size=8, **({} if name == "mlp" else {"width": 2})).eval()
    x = torch.randn(2, *model.input_shape)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("resnet81", {}, "unknown model 'resnet81': did you mean 'resnet8'?"),
        ("resnet18", {"widht": 8}, "model 'resnet18' has no argument 'widht': did you mean 'width'?"),
        ("mlp", {"hiden": [4]}, "model 'mlp' has no argument 'hiden': did you mean 'hidden'?"),
        ("resnet18", {"stem": "cifra"}, "unknown stem 'cifra': did you mean 'cifar'?"),
        ("resnet18", {"init": "normal_fan_in"}, "unknown init 'normal_fan_in'"),
        ("resnet18", {"num_classes": 0}, "num_classes to be an integer >= 1, found 0"),
        ("resnet18", {"num_classes": True}, "num_classes to be an integer >= 1, found True"),
        ("resnet18", {"width": 0}, "width to be an integer >= 1, found 0"),
        ("resnet18", {"width": 1.5}, "width to be an integer >= 1, found 1.5"),
        ("resnet18", {"in_channels": -1}, "in_channels to be an integer >= 1, found -1"),
        (
            "resnet18",
            {"input_size": 7},
            "input_size to be an integer >= 8 (the 'cifar' stem's total stride), found 7",
        ),
        ("resnet18", {"input_size": 31, "stem": "imagenet"}, "input_size to be an integer >= 32"),
        ("resnet20", {"input_size": 3}, "input_size to be an integer >= 4"),
        ("mlp", {"hidden": []}, "hidden to be a list of widths"),
        ("mlp", {"hidden": 256}, "hidden to be a list of widths"),
        ("mlp", {"hidden": [8, 0]}, "every width in hidden to be an integer >= 1, found 0"),
    ],
)
def test_a_wrong_name_or_value_gets_one_sentence(name: str, kwargs: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        models.create(name, **kwargs)
    assert "\n" not in str(caught.value)
    if "unknown" not in said:
        assert isinstance(caught.value, UsageError)
