"""BinaryNet: its shapes, its norms, and the binary network that it becomes."""

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.errors import UsageError


def small(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return fb.models.create("binarynet", width=4, **options)


def test_the_published_shapes() -> None:
    with torch.device("meta"):
        model = fb.models.create("binarynet")
    convs = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [128, 128, 256, 256, 512, 512]
    assert [c.padding for c in convs] == [(0, 0)] + [(1, 1)] * 5
    assert {c.kernel_size for c in convs} == {(3, 3)}
    linears = [m for m in model if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(4608, 1024), (1024, 1024), (1024, 10)]
    assert all(m.bias is None for m in (*convs, *linears))


def test_sizes_between_the_layers_and_their_order() -> None:
    model = small()
    sizes: dict[str, int] = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, i, y, name=name: sizes.__setitem__(name, y.shape[-1]))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [sizes[name] for name in ("conv1", "conv2", "pool2", "pool4", "pool6")] == [30, 30, 15, 7, 3]
    names = [name for name, _ in model.named_children()]
    assert names[:7] == ["conv1", "norm1", "relu1", "conv2", "pool2", "norm2", "relu2"]
    assert names[-4:] == ["norm8", "relu8", "fc9", "norm9"]
    for size in (10, 16, 17, 64):
        assert small(input_size=size)(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_batch_norm_shifts_without_scaling() -> None:
    model = small()
    norms = [m for m in model if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 9
    assert {(m.weight, m.eps, m.momentum) for m in norms} == {(None, 1e-3, 0.01)}
    assert all(m.bias.requires_grad for m in norms)
    x = torch.randn(8, 4, 5, 5)
    with torch.no_grad():
        norms[0].bias += 2.0
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(norms[0](x), (x - mean) / (var + 1e-3).sqrt() + 2.0)


def test_layer_norm_goes_over_channels() -> None:
    model = small(norm="layer")
    assert len([m for m in model if isinstance(m, nn.LayerNorm)]) == 9
    x = torch.randn(2, 4, 5, 6)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(model.norm1(x), (x - mean) / (var + 1e-3).sqrt())
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_all_of_it_becomes_binary_but_the_image(norm: str) -> None:
    model = small(norm=norm)
    report = fb.binarize_(model, weight="direct")
    assert not report.kept
    assert len(report.converted) == 9
    assert report.binary_macs == 1.0
    assert model.conv1.input_quantizer is None
    assert all(m.input_quantizer is not None for m in model if hasattr(m, "latents") and m is not model.conv1)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert len(fb.units(model)) == 9
    real = [name for name, p in model.named_parameters() if name not in dict(fb.binary_parameters(model))]
    assert all(name.startswith("norm") for name in real)
    # what the second convolution multiplies are signs of the first norm's output
    seen = {}
    model.norm1.register_forward_hook(lambda m, i, y: seen.update(x=y))
    model.conv2.register_forward_hook(lambda m, i, y: seen.update(y=y))
    model(torch.randn(2, 3, 32, 32))
    expected = nn.functional.conv2d(fb.quantizers.hard(seen["x"]), model.conv2.weight, padding=1)
    torch.testing.assert_close(seen["y"], expected)


def test_a_models_own_answers_give_way_to_the_users() -> None:
    model = small()
    report = fb.binarize_(model, keep=fb.keep.first_last_downsample, min_binary_macs=0)
    assert set(report.kept) == {"conv1", "fc9"}
    model = small()
    fb.binarize_(model, overrides={"conv1": {"input": "ste_clip"}})
    assert model.conv1.input_quantizer is not None
    model = small()
    fb.binarize_(model, placement="activation", min_binary_macs=0)
    assert model.conv1.input_quantizer is None
    plain = fb.models.create("resnet8", width=4, input_size=8)
    assert set(fb.binarize_(plain, min_binary_macs=0).kept) >= {"conv1", "fc"}  # models without answers: as ever


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_size": 9}, "input_size to be an integer >= 10"),
        ({"norm": "bacth"}, "unknown norm 'bacth': did you mean 'batch'"),
        ({"width": 0}, "width to be an integer >= 1"),
    ],
)
def test_wrong_values(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fb.models.create("binarynet", **options)
