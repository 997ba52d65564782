"""What a binary layer promises beside its values: memory, history, precision, copies, arguments."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from frostbit import nn as fnn
from frostbit import quantizers
from frostbit.errors import UsageError
from frostbit.nn.functional import Convolution, reference_map
from frostbit.quantizers import Clip, Masked, Quantizer, hard

#: (class name, constructor arguments, shape of a batch)
KINDS: list[tuple[str, tuple[Any, ...], tuple[int, ...]]] = [
    ("Linear", (8, 4), (3, 8)),
    ("Conv1d", (4, 4, 3), (2, 4, 7)),
    ("Conv2d", (4, 4, 3), (2, 4, 7, 7)),
    ("Conv3d", (2, 4, 2), (2, 2, 3, 4, 4)),
    ("ConvTranspose1d", (4, 4, 3), (2, 4, 7)),
    ("ConvTranspose2d", (4, 4, 3), (2, 4, 5, 5)),
    ("ConvTranspose3d", (2, 4, 2), (2, 2, 3, 4, 4)),
]
IDS = [kind for kind, _, _ in KINDS]


def frozen() -> Masked:
    quantizer = Masked(Clip())
    quantizer.stage = "hard"
    return quantizer


def saved_bytes(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Count the bytes saved for backward, each storage once, parameters left out."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    alive = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("quantizer", ["ste_clip", "ste_identity"])
def test_a_convolution_saves_a_byte_for_each_input(quantizer: str, padding: Any) -> None:
    layer = fnn.Conv2d(8, 8, 3, padding=padding, weight_quantizer=quantizer, input_quantizer=quantizer)
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    op = Convolution((1, 1), (1, 1), (1, 1), 1)
    sizes = []
    for run in (
        lambda: layer(x * 1),
        lambda: reference_map(op, x * 1, layer.weight, layer.bias, layer.input_quantizer, layer.weight_quantizer),
    ):
        sizes.append(saved_bytes(run, list(layer.parameters())))
    assert sizes[0] <= 0.3 * sizes[1]
    assert sizes[0] == pytest.approx(x.numel(), rel=0.05)


def test_a_frozen_input_saves_nothing_for_its_own_gradient() -> None:
    layer = fnn.Conv2d(8, 8, 3, weight_quantizer=frozen(), input_quantizer=frozen(), bias=False)
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    assert saved_bytes(lambda: layer(x), list(layer.parameters())) == 0


@pytest.mark.parametrize(("kind", "args", "shape"), KINDS, ids=IDS)
@pytest.mark.parametrize("blocked", [frozen, lambda: "sign"], ids=["frozen", "sign"])
def test_frozen_layers_leave_the_backward_pass(kind: str, args: Any, shape: Any, blocked: Any) -> None:
    x = torch.randn(shape, requires_grad=True)
    both = getattr(fnn, kind)(*args, bias=False, weight_quantizer=blocked(), input_quantizer=blocked())
    y = both(x)
    assert y.grad_fn is None
    assert not y.requires_grad
    with_bias = getattr(fnn, kind)(*args, weight_quantizer=blocked(), input_quantizer=blocked())
    found = torch.autograd.grad(with_bias(x).sum(), [x, with_bias.weight, with_bias.bias], allow_unused=True)
    assert [g is None for g in found] == [True, True, False]
    only_input = getattr(fnn, kind)(*args, bias=False, weight_quantizer="ste_clip", input_quantizer=blocked())
    found = torch.autograd.grad(only_input(x).sum(), [x, only_input.weight], allow_unused=True)
    assert [g is None for g in found] == [True, False]
    only_weight = getattr(fnn, kind)(*args, bias=False, weight_quantizer=blocked(), input_quantizer="ste_clip")
    found = torch.autograd.grad(only_weight(x).sum(), [x, only_weight.weight], allow_unused=True)
    assert [g is None for g in found] == [False, True]


def test_a_frozen_activation_and_embedding_have_no_history() -> None:
    assert fnn.Binarizer(frozen())(torch.randn(3, requires_grad=True)).grad_fn is None
    assert fnn.Embedding(5, 3, weight_quantizer=frozen())(torch.tensor([1, 2])).grad_fn is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "args", "shape"), KINDS, ids=IDS)
def test_autocast_gives_torchs_dtypes_and_the_same_signs(kind: str, args: Any, shape: Any, dtype: torch.dtype) -> None:
    ours = getattr(fnn, kind)(*args)
    theirs = getattr(nn, kind)(*args)
    with torch.no_grad():
        theirs.weight.copy_(hard(ours.weight))
        theirs.bias.copy_(ours.bias)
    x = torch.randn(shape)
    leaf, signs = x.clone().requires_grad_(), hard(x).requires_grad_()
    with torch.autocast("cpu", dtype):
        y, expected = ours(leaf), theirs(signs)
        with torch.no_grad():
            assert torch.equal(ours(leaf), y)
    assert y.dtype == expected.dtype == dtype
    torch.testing.assert_close(y, expected)
    incoming = torch.randn(y.shape).to(dtype)
    mine = torch.autograd.grad(y, [leaf, *ours.parameters()], incoming)
    plain = torch.autograd.grad(expected, [signs, *theirs.parameters()], incoming)
    assert [g.dtype for g in mine] == [torch.float32] * 3
    inside = (leaf.abs() <= 1).float()
    torch.testing.assert_close(mine[0], plain[0] * inside, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mine[1], plain[1] * (ours.weight.abs() <= 1), rtol=0.05, atol=0.05)
    torch.testing.assert_close(mine[2], plain[2], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "args", "shape"), KINDS, ids=IDS)
def test_whole_layers_in_other_dtypes(kind: str, args: Any, shape: Any, dtype: torch.dtype) -> None:
    layer = getattr(fnn, kind)(*args).to(dtype)
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == dtype


@pytest.mark.parametrize(("x_dtype", "w_dtype"), [(torch.int64, torch.float32), (torch.float64, torch.float32)])
@pytest.mark.parametrize("quantizer", [None, "ste_clip"])
@pytest.mark.parametrize("grad", [True, False])
def test_operands_of_two_dtypes_are_refused_in_one_sentence(
    x_dtype: torch.dtype, w_dtype: torch.dtype, quantizer: str | None, grad: bool
) -> None:
    layer = fnn.Linear(4, 4, input_quantizer=quantizer).to(w_dtype)
    with torch.set_grad_enabled(grad), pytest.raises((TypeError, ValueError), match=str(x_dtype)) as caught:
        layer(torch.ones(2, 4, dtype=x_dtype))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "args", "shape"), KINDS, ids=IDS)
def test_layers_without_data_give_shapes(kind: str, args: Any, shape: Any) -> None:
    with torch.device("meta"):
        assert getattr(fnn, kind)(*args)(torch.empty(shape)).shape == getattr(nn, kind)(*args)(torch.empty(shape)).shape


def test_nan_in_an_input_or_latent_reaches_the_output() -> None:
    layer = fnn.Linear(4, 3)
    x = torch.randn(2, 4)
    x[0, 1] = float("nan")
    assert layer(x).isnan().any(1).tolist() == [True, False]
    with torch.no_grad():
        layer.weight[2, 0] = float("nan")
    assert layer(torch.randn(2, 4)).isnan().any(0).tolist() == [False, False, True]


@pytest.mark.parametrize(("kind", "args", "shape"), KINDS, ids=IDS)
def test_layers_are_torch_layers_with_torchs_names(kind: str, args: Any, shape: Any) -> None:
    ours, theirs = getattr(fnn, kind)(*args), getattr(nn, kind)(*args)
    assert isinstance(ours, getattr(nn, kind))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(shape)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert torch.equal(twin(x), ours(x))
        assert twin.weight_quantizer is not ours.weight_quantizer


def test_from_float_keeps_object_parameters_and_hooks() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1)
    seen: list[int] = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    weight = layer.weight
    same = fnn.Conv2d.from_float(layer, weight_quantizer="sign", input_quantizer=None)
    assert same is layer
    assert layer.weight is weight
    layer(torch.randn(1, 3, 4, 4))
    assert seen == [1]


@pytest.mark.parametrize("pad_value", [0.0, 0, -1, 1])
def test_every_legal_pad_value_is_taken_as_it_is(pad_value: float) -> None:
    assert fnn.Conv2d(3, 4, 3, padding=1, pad_value=pad_value).pad_value == pad_value


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: fnn.Conv2d(3, 4, 3, pad_value=0.5), "pad_value must be 0, 1 or -1, found 0.5"),
    (lambda: fnn.Linear(3, 4, weight_scale="mean_ab"), "unknown weight_scale 'mean_ab': did you mean 'mean_abs'"),
    (lambda: fnn.Linear(3, 4, latent_clip=0.0), "latent_clip must be positive, found 0.0"),
    (lambda: fnn.Linear(3, 4, weight_quantizer="ste_clipp"), "unknown quantizer 'ste_clipp': did you mean 'ste_clip'"),
    (lambda: fnn.Embedding(3, 4, sparse=True), "sparse=True"),
    (lambda: fnn.Binarizer(None), "needs a quantizer"),
    (lambda: fnn.ConvTranspose2d(2, 2, 2, pad_value=1), "pad_value must be 0"),
]


@pytest.mark.parametrize(("attempt", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_get_one_sentence(attempt: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attempt()


def test_a_misspelt_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="weight_quantiser"):
        fnn.Linear(3, 4, weight_quantiser="sign")


# ---- embedding


def test_an_embedding_looks_up_signs() -> None:
    ours = fnn.Embedding(6, 4, weight_quantizer="ste_clip")
    indices = torch.tensor([[0, 5], [5, 2]])
    y = ours(indices)
    assert torch.equal(y, hard(ours.weight)[indices])
    y.sum().backward()
    counts = torch.tensor([1.0, 0, 1, 0, 0, 2])[:, None]
    assert torch.equal(ours.weight.grad, counts * (ours.weight.abs() <= 1))
    assert torch.equal(fnn.Embedding(6, 4, weight_quantizer=None, _weight=ours.weight)(indices), ours.weight[indices])


@pytest.mark.parametrize("options", [{"padding_idx": 2}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_embedding_options_mean_what_they_mean_in_torch(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = fnn.Embedding(6, 4, weight_quantizer="ste_identity", **options)
    theirs = nn.Embedding(6, 4, **options)
    theirs.load_state_dict(ours.state_dict())
    indices = torch.tensor([0, 5, 5, 2])
    incoming = torch.randn(4, 4)
    ours(indices).backward(incoming)
    theirs(indices).backward(incoming)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.weight, theirs.weight)  # max_norm renormalizes the latents in place
    if "padding_idx" in options:
        assert not ours.weight.grad[2].any()
    if "max_norm" in options:
        assert ours.weight[5].norm().item() == pytest.approx(1.0, abs=1e-4)


def test_an_embedding_from_pretrained_vectors_and_with_a_scale() -> None:
    vectors = torch.randn(5, 3)
    layer = fnn.Embedding.from_pretrained(vectors)
    assert torch.equal(layer(torch.tensor([4])), hard(vectors[4:]))
    assert not layer.weight.requires_grad
    scaled = fnn.Embedding.from_pretrained(vectors, freeze=False)
    scaled.weight_scale = "mean_abs"
    expected = hard(vectors) * vectors.abs().mean(1, keepdim=True)
    torch.testing.assert_close(scaled(torch.tensor([1, 1, 3])), expected[[1, 1, 3]])


# ---- compiled and exported


class Mixture(nn.Module):
    """One layer of each kind, masked in transition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = fnn.Conv2d(3, 4, 3, padding=1, pad_value=1.0)
        self.act = fnn.Binarizer("approx_sign")
        self.deconv = fnn.ConvTranspose2d(4, 4, 2, input_quantizer=None, weight_scale="mean_abs")
        self.linear = fnn.Linear(4, 5)
        for layer, shape in ((self.conv, (4, 3, 3, 3)), (self.linear, (5, 4))):
            layer.weight_quantizer = Masked(Clip(), quantizers.create("ste_clip"))
            layer.weight_quantizer.stage = "mixed"
            layer.weight_quantizer.mask = torch.rand(shape) < 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.deconv(self.act(self.conv(x)))
        return self.linear(functional.adaptive_avg_pool2d(y, 1).flatten(1))


def test_compiled_layers_equal_eager_ones() -> None:
    model = Mixture()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 5, 5)
    results = []
    for run in (model, fast):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *model.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_an_exported_model_gives_the_same_and_is_binary() -> None:
    model = Mixture().eval()
    for module in model.modules():
        if isinstance(module, Quantizer):
            module._hardened = True
    x = torch.randn(2, 3, 5, 5)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), model(x))
