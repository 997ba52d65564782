"""The promise of `hard`: exactly two values, +1 at ±0, and a NaN that stays one, everywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frostbit import quantizers
from frostbit.quantizers import Clip, Masked, STEClip, hard

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def specials(dtype: torch.dtype, repeat: int = 1) -> tuple[Tensor, list[float]]:
    """Return awkward inputs and their signs; ``repeat`` > 1 makes the tensor long enough for vector code."""
    info = torch.finfo(dtype)
    denormal = info.smallest_normal * info.eps
    pairs = [
        (0.0, 1), (-0.0, 1), (denormal, 1), (-denormal, -1), (info.tiny, 1), (-info.tiny, -1), (1.0, 1), (-1.0, -1),
        (info.max, 1), (info.min, -1), (float("inf"), 1), (float("-inf"), -1), (info.eps, 1), (-info.eps, -1),
    ] * repeat  # fmt: skip
    return torch.tensor([x for x, _ in pairs], dtype=torch.float64).to(dtype), [float(y) for _, y in pairs]


#: those that end at two values
BINARY = [name for name in quantizers.list() if quantizers.create(name).binary]


def hard_forms() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return everything whose forward promises to be `hard`, by name."""
    forms: dict[str, Callable[[Tensor], Tensor]] = {"hard": hard}
    for name in BINARY:
        quantizer = quantizers.create(name)
        quantizer.finished = True  # what a progression sets at its end
        forms[name] = quantizer
    frozen = Masked(Clip(), None)
    frozen.stage = "hard"
    through = Masked(Clip(), STEClip())
    through.stage = "hard"
    mixed = Masked(Clip(), None, drop_frozen=False)
    mixed.stage, mixed.mask = "mixed", torch.ones(1, dtype=torch.bool)
    return forms | {"frozen": frozen, "frozen+ste": through, "all-True mask": mixed}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", hard_forms())
def test_exactly_two_values_with_zero_positive(name: str, dtype: torch.dtype) -> None:
    form = hard_forms()[name]
    for repeat in (1, 9):
        x, signs = specials(dtype, repeat)
        y = form(x)
        assert y.dtype == dtype
        assert y.tolist() == signs
        assert form(x.clone().requires_grad_()).tolist() == signs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", hard_forms())
def test_nan_stays_nan(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([float("nan"), -1.0, 0.0, 2.0] * 9, dtype=dtype)
    for y in (hard_forms()[name](x), hard_forms()[name](x.clone().requires_grad_())):
        assert y.isnan().tolist() == x.isnan().tolist()
        assert y[1:4].tolist() == [-1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool], ids=str)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"floating dtype, found {dtype}"):
        hard(torch.ones(3, dtype=dtype))


def test_the_input_is_left_alone_and_no_history_is_kept() -> None:
    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    y = hard(x)
    assert x.tolist() == [-2, 3]
    assert not y.requires_grad
    assert hard(torch.tensor(-3.0)).item() == -1
    assert hard(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("name", quantizers.list())
def test_channels_last_stays_channels_last(name: str) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    quantizer = quantizers.create(name)
    y = quantizer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, quantizer(x.contiguous()))
    if y.requires_grad:
        grad = torch.randn(2, 3, 4, 5)
        (last,) = torch.autograd.grad(y, x, grad.to(memory_format=torch.channels_last))
        (plain,) = torch.autograd.grad(quantizer(x.contiguous()), x, grad)
        torch.testing.assert_close(last, plain)


def test_views_and_expanded_tensors() -> None:
    base = torch.randn(4, 6)
    for view in (base[::2, 1::2], base.t(), base[:1].expand(5, 6), base.flip(0)):
        assert torch.equal(hard(view), torch.where(view >= 0, 1.0, -1.0))


LARGE = 3 * 65_536 + 7
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda x: x,
    "with an offset": lambda x: x[5:],
    "matrix": lambda x: x[: 400 * 401].view(400, 401),
    "transposed": lambda x: x[: 400 * 401].view(400, 401).t(),
    "columns": lambda x: x[: 400 * 401].view(400, 401)[:, 3:],
    "images": lambda x: x[: 4 * 12 * 64 * 64].view(4, 12, 64, 64),
    "channels last": lambda x: x[: 4 * 12 * 64 * 64].view(4, 12, 64, 64).to(memory_format=torch.channels_last),
    "3d channels last": lambda x: x[: 4 * 3 * 2 * 4096].view(4, 3, 2, 64, 64).to(memory_format=torch.channels_last_3d),
    "one channel": lambda x: x[: 40 * 64 * 64].view(40, 1, 64, 64).to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:400].expand(400, 400),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_tensors_of_any_layout(layout: str, dtype: torch.dtype) -> None:
    values = torch.randn(LARGE).to(dtype)
    values[::1001] = float("nan")
    values[3::7] = -0.0
    x = LAYOUTS[layout](values)
    y = hard(x)
    expected = torch.where(x.isnan(), x, torch.where(x >= 0, 1, -1).to(dtype))
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert y.data_ptr() != x.data_ptr()
    if layout != "columns":
        assert y.stride() == (x.stride() if layout != "expanded" else (400, 1))


def test_large_tensors_without_data_and_in_exports() -> None:
    class Hard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return hard(x)

    assert hard(torch.empty(LARGE, device="meta")).shape == (LARGE,)
    x = torch.randn(LARGE)
    for strict in (False, True):
        assert torch.equal(torch.export.export(Hard(), (x,), strict=strict).module()(x), hard(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_autocast_does_not_touch_the_values(name: str, dtype: torch.dtype) -> None:
    quantizer = quantizers.create(name)
    quantizer.finished = True
    x, signs = specials(torch.float32)
    with torch.autocast("cpu", dtype):
        assert quantizer(x.requires_grad_()).tolist() == signs


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_hard_is_a_comparison_with_zero(values: list[float]) -> None:
    x = torch.tensor(values)
    expected = [v if v != v else (1.0 if v >= 0 else -1.0) for v in values]
    torch.testing.assert_close(hard(x), torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


BACKENDS = ["aot_eager"] + (["inductor"] if shutil.which("g++") or shutil.which("clang++") else [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_quantizers_equal_eager_ones(backend: str) -> None:
    names = quantizers.list() if backend == "aot_eager" else ["ste_clip"]
    forms = nn.ModuleList(quantizers.create(name) for name in names)

    def all_of_them(x: Tensor) -> list[Tensor]:
        return [hard(x), *(form(x) for form in forms)]

    compiled = torch.compile(all_of_them, fullgraph=True, backend=backend)
    x = torch.cat([specials(torch.float32, 3)[0], torch.randn(29), torch.tensor([float("nan")])])
    check_compiled(all_of_them, compiled, x)


def test_compiled_quantizers_take_any_layout() -> None:
    forms = nn.ModuleList(quantizers.create(name) for name in quantizers.list())

    def all_of_them(x: Tensor) -> list[Tensor]:
        return [hard(x), *(form(x) for form in forms)]

    images = torch.randn(2, 3, 4, 5)
    for x in (images.to(memory_format=torch.channels_last), images.transpose(1, 3), images[:, :, ::2], images[0, 0]):
        torch._dynamo.reset()
        check_compiled(all_of_them, torch.compile(all_of_them, fullgraph=True, backend="aot_eager"), x)


def check_compiled(
    all_of_them: Callable[[Tensor], list[Tensor]], compiled: Callable[[Tensor], list[Tensor]], x: Tensor
) -> None:
    grads = []
    for run in (all_of_them, compiled):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        values = run(leaf)
        (grad,) = torch.autograd.grad(sum(y.sum() for y in values if y.requires_grad), leaf)
        grads.append((values, grad))
    for eager, fast in zip(grads[0][0], grads[1][0], strict=True):
        torch.testing.assert_close(fast, eager, rtol=0, atol=0, equal_nan=True)
    known = ~x.isnan()  # at NaN no gradient is promised
    torch.testing.assert_close(grads[1][1][known], grads[0][1][known])


def test_exported_quantizers_keep_the_promise() -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.forms = nn.ModuleList(quantizers.create(name) for name in BINARY)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [form(x) for form in self.forms]

    model = All().eval()
    x, signs = specials(torch.float32)
    x = torch.cat([x, torch.tensor([float("nan")])])
    outputs = torch.export.export(model, (x,)).module()(x)
    for name, y, eager in zip(BINARY, outputs, model(x), strict=True):
        torch.testing.assert_close(y, eager, rtol=0, atol=0, equal_nan=True)
        if not quantizers.create(name).smooth:
            assert y[:-1].tolist() == signs
