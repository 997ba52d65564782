"""Vision transformers: timm's layout, the value written out, and the binary networks that they become."""

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import frostbit as fb
from frostbit import models
from frostbit.errors import UsageError

LINEARS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def small(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.create(
        "vit_tiny", **{"width": 16, "depth": 2, "heads": 2, "input_size": 16, "num_classes": 5} | options
    )


def timm_layout(width: int, classes: int, size: int, patch: int) -> dict[str, tuple[int, ...]]:
    """State-dict keys and shapes of timm's vision transformer, written out from its published layout."""
    layout: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (size // patch) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }

    def pair(path: str, *shape: int) -> None:
        layout[f"{path}.weight"], layout[f"{path}.bias"] = shape, shape[:1]

    for block in range(12):
        path = f"blocks.{block}"
        pair(f"{path}.norm1", width)
        pair(f"{path}.attn.qkv", 3 * width, width)
        pair(f"{path}.attn.proj", width, width)
        pair(f"{path}.norm2", width)
        pair(f"{path}.mlp.fc1", 4 * width, width)
        pair(f"{path}.mlp.fc2", width, 4 * width)
    pair("norm", width)
    pair("head", classes, width)
    return layout


@pytest.mark.parametrize(
    ("name", "width", "heads", "parameters"),
    # published parameter counts of DeiT-Ti, -S, -B for 1000 classes at 224
    [
        ("vit_tiny", 192, 3, 5_717_416),
        ("vit_small", 384, 6, 22_050_664),
        ("vit_base", 768, 12, 86_567_656),
    ],
)
def test_state_dict_is_timms(name: str, width: int, heads: int, parameters: int) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=1000, input_size=224)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert list(found.items()) == list(timm_layout(width, 1000, 224, 16).items())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {block.attn.heads for block in model.blocks} == {heads}
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def written_out(model: nn.Module, images: Tensor, patch: int, heads: int) -> Tensor:
    """The formula of the papers on timm's parameters: loops over patches and heads, no attention kernel."""
    p = dict(model.named_parameters())
    kernel = p["patch_embed.proj.weight"].flatten(1)
    tokens = [p["cls_token"].expand(len(images), 1, -1)]
    for row in range(0, images.shape[2], patch):
        for column in range(0, images.shape[3], patch):
            cut = images[:, :, row : row + patch, column : column + patch].flatten(1)
            tokens.append((cut @ kernel.t() + p["patch_embed.proj.bias"]).unsqueeze(1))
    x = torch.cat(tokens, 1) + p["pos_embed"]

    def norm(x: Tensor, path: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return y * p[f"{path}.weight"] + p[f"{path}.bias"]

    def linear(x: Tensor, path: str) -> Tensor:
        return x @ p[f"{path}.weight"].t() + p[f"{path}.bias"]

    for block in range(len(model.blocks)):
        path = f"blocks.{block}"
        q, k, v = linear(norm(x, f"{path}.norm1"), f"{path}.attn.qkv").chunk(3, -1)
        size = q.shape[-1] // heads
        parts = []
        for head in range(heads):
            one = slice(head * size, (head + 1) * size)
            scores = q[..., one] @ k[..., one].transpose(1, 2) / math.sqrt(size)
            parts.append(scores.softmax(-1) @ v[..., one])
        x = x + linear(torch.cat(parts, -1), f"{path}.attn.proj")
        inner = linear(norm(x, f"{path}.norm2"), f"{path}.mlp.fc1")
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        x = x + linear(inner, f"{path}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


@pytest.mark.parametrize(("size", "patch", "heads"), [(8, 4, 2), (12, 3, 4)])
def test_the_value_is_that_of_the_formula(size: int, patch: int, heads: int) -> None:
    model = small(input_size=size, patch_size=patch, heads=heads, init="fan_in_normal").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(model(images), written_out(model, images, patch, heads))


def test_defaults_follow_the_size() -> None:
    for size, patch, tokens in ((32, 4, 65), (124, 4, 962), (128, 16, 65), (224, 16, 197)):
        with torch.device("meta"):
            model = models.create("vit_tiny", input_size=size, depth=1)
        assert model.patch_embed.proj.kernel_size == (patch, patch)
        assert model.pos_embed.shape == (1, tokens, 192)
    assert small(width=32, heads=None).blocks[0].attn.heads == 1
    weight = models.create("vit_tiny", depth=1).blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert small(width=64, init="fan_in_normal").blocks[0].attn.qkv.weight.std().item() == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 20, "heads": 3}, "needs width to be a multiple of heads=3, found 20"),
        ({"input_size": 30}, "needs input_size to be a multiple of patch_size=4, found 30"),
        ({"depth": 0}, "depth to be an integer >= 1, found 0"),
        ({"heads": 0}, "heads to be an integer >= 1, found 0"),
        ({"patch_size": 0}, "patch_size to be an integer >= 1, found 0"),
        ({"patchsize": 4}, "has no argument 'patchsize': did you mean 'patch_size'?"),
        ({"init": "vti"}, "unknown init 'vti': did you mean 'vit'?"),
    ],
)
def test_a_wrong_value_gets_one_sentence(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        small(**options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match=re.escape("images of shape (3, 16, 16), found (3, 20, 20)")):
        small()(torch.randn(1, 3, 20, 20))


@pytest.mark.parametrize("setting", ["BW", "BWA"])
def test_what_becomes_binary(setting: str) -> None:
    model = small()
    state = model.state_dict()
    report = fb.binarize_(model, input=None if setting == "BW" else "ste_clip", weight_scale="mean_abs")
    assert set(report.kept) == {"patch_embed.proj", "head"}
    names = [f"blocks.{block}.{linear}" for block in (0, 1) for linear in LINEARS]
    assert list(report.converted) == names
    latents = {name for name, _ in fb.binary_parameters(model)}
    assert latents == {f"{name}.weight" for name in names}  # biases, norms, positions, head stay real
    units = fb.units(model)
    assert [unit.name for unit in units] == names
    assert [len(unit.layers) for unit in units] == [1] * 8
    shapes = [None] * 8 if setting == "BW" else [(16,), (16,), (16,), (64,)] * 2
    assert [unit.feature_shape for unit in units] == shapes
    kinds = {type(block.mlp.act) for block in model.blocks}
    assert kinds == ({nn.GELU} if setting == "BW" else {nn.Identity})
    model.load_state_dict(state, strict=True)
    summary = fb.summary(model)
    assert summary.binary_parameters == 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64)
    assert summary.binary_macs == 17 * summary.binary_parameters
    for layer in (model.blocks[1].attn.qkv, model.blocks[1].mlp.fc2):
        x = torch.randn(2, 17, layer.in_features)
        scaled = torch.where(layer.weight >= 0, 1.0, -1.0) * layer.weight.abs().mean(1, keepdim=True)
        signs = x if setting == "BW" else torch.where(x >= 0, 1.0, -1.0)
        torch.testing.assert_close(layer(x), functional.linear(signs, scaled, layer.bias))


def test_a_gelu_before_a_sign_is_left_out_since_it_underflows() -> None:
    x = torch.tensor([-30.0, -6.0, -0.1, 0.0, 0.1, 6.0])
    signs = fb.quantizers.hard(x)
    assert not torch.equal(fb.quantizers.hard(functional.gelu(x)), signs)
    model = small()
    report = fb.binarize_(model)
    assert report.activations["blocks.0.mlp.act"] == "becomes the identity: blocks.0.mlp.fc2 takes its sign"
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias.fill_(-30.0)  # every sum of 16 signs is at least 14 below 0
        inner = {}
        model.blocks[0].mlp.fc2.register_forward_hook(lambda m, args, y: inner.update(y=y))
        model(torch.randn(1, *model.input_shape))
        fc2 = model.blocks[0].mlp.fc2
        expected = -fb.quantizers.hard(fc2.weight).sum(1) + fc2.bias
    torch.testing.assert_close(inner["y"], expected.expand(1, 17, -1))


def test_a_network_without_relu_takes_no_binarizer_as_activation() -> None:
    model = small()
    state = model.state_dict()
    with pytest.raises(UsageError, match="found no ReLU in VisionTransformer: use 'input'"):
        fb.binarize_(model, placement="activation")
    assert not any(isinstance(module, fb.nn.BinaryLayer) for module in model.modules())
    model.load_state_dict(state, strict=True)


def test_stompp_freezes_it_unit_by_unit_with_one_field_for_all_tokens() -> None:
    model = small()
    fb.binarize_(model, weight_scale="mean_abs")
    steps = 24
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    progression = fb.StoMPP(model, steps, refresh=2).attach(optimizer)
    images, labels = torch.randn(6, *model.input_shape), torch.randint(5, (6,))
    seen = set()
    for step in range(steps):
        for unit in progression.units:
            quantizer = unit.input_quantizer
            if quantizer.stage == "mixed":
                seen.add(unit.name)
                assert quantizer.mask.shape == unit.feature_shape
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        window = step // 3
        shares = list(fb.frozen_fraction(model).values())
        assert all(share == 1 for share in shares[:window])
        assert not any(shares[window + 2 :])
    assert len(seen) == 8
    model.eval()
    with torch.no_grad():
        as_is = model(images)
        with fb.hardened(model):
            assert torch.equal(model(images), as_is)


@pytest.mark.parametrize("method", ["bnn++", "prox_linear"])
def test_hardened_is_binary_whatever_the_progress(method: str) -> None:
    model = small().eval()
    fb.binarize_(model, weight=method, input=None, weight_scale="mean_abs")
    hard = small().eval()
    with torch.no_grad():
        for name, parameter in hard.named_parameters():
            if name in {n for n, _ in fb.binary_parameters(model)}:
                mean = parameter.abs().mean(1, keepdim=True)
                parameter.copy_(torch.where(parameter >= 0, mean, -mean))
        images = torch.randn(2, *model.input_shape)
        with fb.hardened(model):
            torch.testing.assert_close(model(images), hard(images))
        assert not torch.allclose(model(images), hard(images))


def test_it_compiles_into_one_graph() -> None:
    model = small().eval()
    images = torch.randn(2, *model.input_shape)
    for _ in range(2):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), model(images))
        if not isinstance(model.blocks[0].mlp.fc1, fb.nn.Linear):
            fb.binarize_(model, input=None, weight_scale="mean_abs")


@pytest.mark.parametrize("weight", ["ste_identity", "bnn++"])
def test_it_learns_with_binary_weights_end_to_end(weight: str) -> None:
    """Four classes of noisy patterns; the binary network tells fresh images apart."""
    model = small(num_classes=4, init="fan_in_normal")
    fb.binarize_(model, weight=weight, input=None, weight_scale="mean_abs")
    steps = 40
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    if weight == "bnn++":
        fb.Anneal(model, steps, tail=0.25).attach(optimizer)
    patterns = torch.randn(4, *model.input_shape)
    for _ in range(steps):
        labels = torch.randint(4, (32,))
        loss = functional.cross_entropy(model(patterns[labels] + torch.randn(32, *model.input_shape)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    labels = torch.arange(4).repeat(32)
    with torch.no_grad(), fb.hardened(model.eval()):
        hits = model(patterns[labels] + torch.randn(128, *model.input_shape)).argmax(1) == labels
    assert hits.float().mean() > 0.9
