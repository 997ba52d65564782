"""XNOR-Net and Bi-Real nets: the published layers, what becomes binary, and a few real images through the stems."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import frostbit as fb
from frostbit.errors import UsageError

NETWORKS = ("xnornet", "bireal18", "bireal34")
UNITS = {"bireal18": (4, 4, 4, 4), "bireal34": (6, 8, 12, 6)}


def published(name: str) -> nn.Module:
    with torch.device("meta"):
        return fb.models.create(name, num_classes=1000, input_size=224, init="torch")


def small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return fb.models.create(name, width={"xnornet": 12}.get(name, 8), **options)


def convolutions(model: nn.Module) -> list[tuple[int, int, int]]:
    """Return (channels, kernel, stride) in the order in which they were made."""
    found = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    return [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in found]


def map_sizes(model: nn.Module) -> dict[str, int]:
    """Return the height of every module's output."""
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda m, i, y, name=name: sizes.__setitem__(name, y.shape[2] if y.dim() == 4 else 1)
        )
    with torch.no_grad():
        model.eval()(torch.randn(1, *model.input_shape))
    return sizes


def test_xnornet_has_the_published_layers() -> None:
    model = published("xnornet")
    assert convolutions(model) == [
        (96, 11, 4),
        *((256, 5, 1), (384, 3, 1), (384, 3, 1), (256, 3, 1)),
        *((4096, 6, 1), (4096, 1, 1)),
    ]
    names = [name.rstrip("0123456789") for name, _ in model.named_children()]
    stem, tail = ["conv", "norm", "relu", "pool", "pooled_norm"], ["relu", "flatten", "fc"]
    plain, pooled = ["conv", "norm"], ["conv", "pool", "norm"]
    assert names == [*stem, *pooled, *plain, *plain, *pooled, *plain, *plain, *tail]
    pools = [m for m in model if isinstance(m, nn.MaxPool2d)]
    assert {(m.kernel_size, m.stride, m.padding) for m in pools} == {(3, 2, 0)}
    norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.affine) for m in norms} == {(0.1, True)}
    assert all(m.bias is None for m in model if isinstance(m, nn.Conv2d | nn.Linear))
    kernels = [96 * 363, 256 * 2400, 384 * 2304, 384 * 3456, 256 * 3456, 4096 * 9216, 4096 * 4096, 4096 * 1000]
    norms_of = [96, 96, 256, 384, 384, 256, 4096, 4096]
    assert sum(p.numel() for p in model.parameters()) == sum(kernels) + 2 * sum(norms_of)


@pytest.mark.parametrize("size", [57, 64, 65, 66, 67, 127, 224])
def test_xnornet_pads_to_the_same_size_and_its_large_kernel_covers_the_map(size: int) -> None:
    model = small("xnornet", input_size=size)
    sizes = map_sizes(model)
    assert sizes["conv1"] == -(-size // 4)
    assert [sizes[f"conv{n}"] for n in (2, 3, 4, 5)] == [sizes[f"pool{n}"] for n in (1, 2, 2, 2)]
    assert (sizes["conv6"], sizes["conv7"]) == (1, 1)
    if size == 224:
        assert [sizes[f"pool{n}"] for n in (1, 2, 5)] == [27, 13, 6]
        assert model.conv6.kernel_size == (6, 6)


@pytest.mark.parametrize("name", UNITS)
def test_bireal_has_the_published_layers(name: str) -> None:
    model = published(name)
    expected = [(64, 7, 2)]
    for stage, units in enumerate(UNITS[name]):
        width = 64 << stage
        expected += [(width, 3, 2 if stage else 1), *[(width, 3, 1)] * (units - 1)]
    assert convolutions(model) == expected
    assert len(expected) + 1 == int(name.removeprefix("bireal"))
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert {(m.momentum, m.eps) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(0.2, 1e-3)}
    shortcuts = [m for n, m in model.named_modules() if n.endswith("downsample")]
    assert [[type(m) for m in s] for s in shortcuts] == [[nn.AvgPool2d, nn.Conv2d, nn.BatchNorm2d]] * 3
    assert {(s[0].kernel_size, s[1].kernel_size, s[1].stride) for s in shortcuts} == {(2, (1, 1), (1, 1))}
    # convolutions, shortcuts, and two numbers for each channel that is normalized
    kernels, before = 64 * 147, 64
    channels = 64
    for stage, units in enumerate(UNITS[name]):
        width = 64 << stage
        kernels += 9 * width * (before + (units - 1) * width)
        channels += units * width
        if stage:
            kernels, channels = kernels + width * before, channels + width
        before = width
    assert sum(p.numel() for p in model.parameters()) == kernels + 2 * channels + 512 * 1000 + 1000


def test_a_unit_adds_the_norm_of_the_convolution_to_the_real_input() -> None:
    model = small("bireal18")
    fb.binarize_(model)
    x = torch.randn(2, 8, 9, 9)
    unit = model.layer1[0]
    conv = nn.functional.conv2d(fb.quantizers.hard(x), fb.quantizers.hard(unit.conv.weight), padding=1)
    torch.testing.assert_close(unit(x), unit.bn(conv) + x)
    narrowing = model.layer2[0].eval()
    pooled = nn.functional.avg_pool2d(x, 2, ceil_mode=True)  # nine pixels: the last one stands alone
    shortcut = narrowing.downsample[2](narrowing.downsample[1](pooled))
    assert narrowing(x).shape == (2, 16, 5, 5)
    torch.testing.assert_close(narrowing(x) - narrowing.bn(narrowing.conv(x)), shortcut)


@pytest.mark.parametrize(("size", "kernel", "last"), [(32, 3, 4), (127, 3, 16), (128, 7, 4), (224, 7, 7)])
def test_bireal_has_the_stems_of_a_resnet(size: int, kernel: int, last: int) -> None:
    model = small("bireal18", input_size=size)
    assert model.conv1.kernel_size == (kernel, kernel)
    sizes = map_sizes(model)
    assert (sizes["layer4"], sizes["layer1"]) == (last, size if kernel == 3 else size // 4)


@pytest.mark.parametrize(
    ("name", "size"), [("xnornet", 64), ("xnornet", 224), *((n, s) for n in UNITS for s in (32, 224))]
)
def test_what_becomes_binary(name: str, size: int) -> None:
    model = small(name, input_size=size, num_classes=7)
    report = fb.binarize_(model, weight="direct", min_binary_macs=0)
    layers = {"xnornet": 6, "bireal18": 16, "bireal34": 32}[name]
    assert len(report.converted) == len(fb.units(model)) == layers
    own_input = "ste_clip" if name == "xnornet" else "approx_sign"
    assert all(phrase.endswith(f"weight direct, input {own_input}") for phrase in report.converted.values())
    expected = {"conv1", "fc8"} if name == "xnornet" else {"conv1", "fc"} | {f"layer{n}.0.downsample.1" for n in "234"}
    assert set(report.kept) == expected
    assert not report.activations
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, size, size)).shape == (1, 7)
    summary = fb.summary(model)
    assert summary.binary_parameters == sum(p.numel() for _, p in fb.binary_parameters(model))
    statistics = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert (
        summary.real_parameters == sum(p.numel() for p in model.parameters()) - summary.binary_parameters + statistics
    )
    assert f"{summary.binary_parameters:,}" in str(summary)


def test_a_norm_between_relu_and_sign_is_no_constant_and_keeps_its_statistics() -> None:
    model = small("xnornet", input_size=64)
    fb.binarize_(model, min_binary_macs=0)  # at the initial statistics norms hand the ReLU's signs on
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.training and m.track_running_stats for m in norms)
    assert not any(m.running_mean.any() or m.num_batches_tracked for m in norms)
    blocked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 4, 3))
    with pytest.raises(UsageError, match="binarized input of '3' is constant"):
        fb.binarize_(blocked, keep="0", min_binary_macs=0, example_input=torch.randn(2, 3, 8, 8))
    assert blocked[1].training
    assert blocked[1].track_running_stats
    assert not blocked[1].running_mean.any()


def test_the_share_of_binary_work_at_the_published_widths() -> None:
    for name, least in (("xnornet", 0.9), ("bireal18", 0.9), ("bireal34", 0.95)):
        with torch.device("meta"):
            model = fb.models.create(name, num_classes=1000, input_size=224, init="torch")
        graph = fb.graph.trace(model, torch.empty(1, 3, 224, 224, device="meta"))
        macs = {layer: count for layer, (_, count) in fb.counting.layer_macs(graph).items()}
        real = sum(count for layer, count in macs.items() if layer in ("conv1", "fc", "fc8") or "downsample" in layer)
        assert 1 - real / sum(macs.values()) > least, name


def test_an_explicit_input_wins_over_the_models_own() -> None:
    for given, phrase in (("ste_clip", "ste_clip"), (None, "real"), ("default", "approx_sign")):
        report = fb.binarize_(small("bireal18"), input=given)
        assert set(report.converted.values()) == {f"Conv2d, weight ste_clip, input {phrase}"}
    report = fb.binarize_(fb.models.create("resnet8", width=4))
    assert {phrase.rpartition(" ")[2] for phrase in report.converted.values()} == {"ste_clip"}


def test_glorot_normal_draws_with_the_mean_of_both_fans() -> None:
    torch.manual_seed(0)
    model = fb.models.create("bireal18")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            field = module.weight[0, 0].numel() if module.weight.dim() == 4 else 1
            expected = (2 / (field * (module.weight.shape[0] + module.weight.shape[1]))) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / module.weight.numel() ** 0.5)
    assert not model.fc.bias.any()


def test_images_of_a_folder_train_through_the_imagenet_stems(tmp_path: Path) -> None:
    """JPEGs of several sizes, class folders, the loader's resize, two steps of a flip optimizer."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("plain", "striped")):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(count):
                height, width = 150 + 10 * n, 140 + 20 * label
                pixels = torch.randint(100, 156, (height, width, 3), generator=generator, dtype=torch.uint8)
                if label:
                    pixels[::8] = 255
                Image.fromarray(pixels.numpy()).save(tmp_path / split / name / f"{n}.jpg")
    data = fb.data.load("folder", path=str(tmp_path), size=128)
    assert (data.input_shape, len(data.train), len(data.test)) == ((3, 128, 128), 8, 4)
    for name in ("xnornet", "bireal18"):
        model = small(name, input_size=128, num_classes=2)
        fb.binarize_(model, weight="direct", min_binary_macs=0)
        opt = fb.optim.CaseOptimizer(
            model,
            {"binary": (fb.optim.Bop2ndOrder, {"gamma": 0.1, "sigma": 0.1})},
            default=(torch.optim.Adam, {"lr": 1e-2}),
        )
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for images, labels in fb.data.Loader(data.train, 4, shuffle=True, mean=data.mean, std=data.std):
            assert images.shape == (4, 3, 128, 128)
            opt.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            opt.step()
        still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
        assert not still, (name, still)
        assert all(opt.flips(p) for _, p in fb.binary_parameters(model))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("xnornet", {"input_size": 56}, r"input_size to be an integer >= 57 \(the three poolings must leave a pixel"),
        ("xnornet", {"width": 0}, "width to be an integer >= 1"),
        ("bireal18", {"input_size": 7}, "input_size to be an integer >= 8"),
        ("bireal34", {"in_channels": 0}, "in_channels to be an integer >= 1"),
    ],
)
def test_wrong_values(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fb.models.create(name, **options)
