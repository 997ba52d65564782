"""What a quantizer keeps for backward, how it is copied and saved, and how a user writes one."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import frostbit as fb
from frostbit import quantizers
from frostbit.errors import UsageError
from frostbit.quantizers import Clip, Masked, Quantizer, STEClip, from_pair, hard

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FEATURES = 12


class Cosine(Quantizer):
    """A user's surrogate: hard forward, chosen backward."""

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        return torch.cos(x.clamp(-1.57, 1.57))


class Tanh(Quantizer):
    """A user's smooth quantizer with a hardness."""

    smooth = True
    default_hardness = 2.0

    def F(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(h * x)

    def B(self, x: Tensor, h: Tensor) -> Tensor:
        return h * (1 - torch.tanh(h * x).square())


def cube(x: Tensor, h: Tensor | None) -> Tensor:
    return x**3


def cube_slope(x: Tensor, h: Tensor | None) -> Tensor:
    return 3 * x**2


def masked(stage: str, ste: str | None, drop_frozen: bool = True, soft: Quantizer | None = None) -> Masked:
    quantizer = Masked(soft or Clip(), quantizers.resolve(ste), drop_frozen)
    quantizer.stage = stage
    if stage == "mixed":
        quantizer.mask = torch.arange(FEATURES) % 3 == 0
    return quantizer


def every_state() -> Iterator[tuple[str, Quantizer]]:
    """Yield every quantizer and every stage of the masked one with every surrogate."""
    for name in quantizers.list():
        yield name, quantizers.create(name)
    yield "finished clip", quantizers.create("clip")
    yield "user", Cosine()
    yield "user smooth", Tanh()
    yield "pair", from_pair(cube, cube_slope)
    yield "pair of sign", from_pair(None, cube_slope)
    for stage, ste, drop in itertools.product(
        ("soft", "mixed", "hard"), (None, "ste_identity", "ste_clip", "approx_sign", "clip"), (True, False)
    ):
        yield f"masked {stage} {ste} {drop}", masked(stage, ste, drop)
    yield "masked tanh", masked("mixed", "swish_sign", soft=Tanh())
    for stage, ste in itertools.product(("soft", "mixed", "hard"), (None, "ste_clip")):
        quantizer = masked(stage, ste)
        quantizer.frozen = quantizers.create("ternary")
        yield f"masked ternary {stage} {ste}", quantizer


STATES = dict(every_state())
STATES["finished clip"].finished = True


def check_stand_in(quantizer: Quantizer, x: Tensor, grad: Tensor) -> None:
    """Assert that what is kept for backward gives the value and the gradient of ``x`` itself."""
    value, kept = quantizer.encode(x)
    assert torch.equal(value, quantizer.value(x))
    rebuilt = quantizer.decode(kept, x.dtype)
    assert rebuilt.dtype == x.dtype
    assert torch.equal(rebuilt, value)
    pulled = quantizer.pull(grad.clone(), x)
    assert torch.equal(quantizer.pull(grad.clone(), kept), pulled)
    assert torch.equal(quantizer.pull(grad.clone(), x, overwrite=True), pulled)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STATES)
def test_what_is_kept_for_backward_stands_in_for_the_input(name: str, dtype: torch.dtype) -> None:
    quantizer = STATES[name]
    beyond = 1 + torch.finfo(dtype).eps
    x = torch.tensor([0.0, -0.0, 1, -1, beyond, -beyond, 0.5, -0.5, 3, -3, 1e-7, -1e-7], dtype=dtype)
    for batch in (x, torch.randn(5, FEATURES).mul(2).to(dtype)):
        check_stand_in(quantizer, batch, torch.randn(batch.shape).to(dtype))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(STATES)),
    st.lists(st.floats(-4, 4, width=16), min_size=FEATURES, max_size=FEATURES),
)
def test_the_stand_in_holds_for_any_numbers(name: str, values: list[float]) -> None:
    x = torch.tensor(values)
    check_stand_in(STATES[name], x, torch.ones_like(x))


def test_sign_and_range_fit_into_one_byte() -> None:
    x = torch.randn(8)
    one_byte = ["ste_identity", "ste_clip", "masked hard None False", "masked hard ste_clip True"]
    for name in one_byte:
        assert STATES[name].encode(x)[1].dtype.itemsize == 1


@pytest.mark.parametrize("ste", [None, "ste_identity", "ste_clip"])
def test_a_masked_quantizer_is_the_mixture_of_the_formula(ste: str | None) -> None:
    quantizer = masked("mixed", ste)
    x = torch.randn(7, FEATURES).mul(1.5).requires_grad_()
    mask = (torch.arange(FEATURES) % 3 == 0).expand(7, FEATURES)
    y = quantizer(x)
    assert torch.equal(y, torch.where(mask, hard(x), x.clamp(-1, 1)))
    y.sum().backward()
    inside = (x.abs() <= 1).float()
    frozen = {None: torch.zeros_like(x), "ste_identity": torch.ones_like(x), "ste_clip": inside}[ste]
    assert torch.equal(x.grad, torch.where(mask, frozen, inside))
    assert quantizer.frozen_share == pytest.approx(1 / 3)


def test_stages_of_a_masked_quantizer_before_and_after_its_window() -> None:
    x = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    before = masked("soft", None)
    assert before(x).tolist() == [-1, -0.5, 0.5, 1]
    assert (before.frozen_share, before.blocks) == (0.0, False)
    after = masked("hard", None)
    assert after(x).tolist() == [-1, -1, 1, 1]
    assert after(x).grad_fn is None
    assert not after(x).requires_grad
    assert after.frozen_share == 1.0
    one_graph = masked("hard", None, drop_frozen=False)
    (gradient,) = torch.autograd.grad(one_graph(x).sum(), x)
    assert gradient.tolist() == [0, 0, 0, 0]
    with_ste = masked("hard", "ste_clip")
    (gradient,) = torch.autograd.grad(with_ste(x).sum(), x)
    assert gradient.tolist() == [0, 1, 1, 0]


def test_a_mask_of_another_shape_is_one_clear_sentence() -> None:
    with pytest.raises(ValueError, match=r"\(12,\).*\(2, 5\).*mask='channel'"):
        masked("mixed", None)(torch.randn(2, 5))
    without = Masked(Clip())
    without.stage = "mixed"
    with pytest.raises(RuntimeError, match="no mask"):
        without(torch.randn(3))


def test_the_scale_acts_on_hard_entries_only() -> None:
    x, scale = torch.randn(3, FEATURES), torch.tensor([[0.5], [2.0], [3.0]])
    mask = (torch.arange(FEATURES) % 3 == 0).expand(3, FEATURES)
    for name in ("sign", "ste_identity", "ste_clip", "approx_sign", "swish_sign", "ede", "pair of sign", "user"):
        assert torch.equal(STATES[name].value(x, scale), hard(x) * scale), name
    assert torch.equal(STATES["clip"].value(x, scale), x.clamp(-1, 1))
    assert torch.equal(STATES["finished clip"].value(x, scale), hard(x) * scale)
    mixed = STATES["masked mixed None True"].value(x, scale)
    assert torch.equal(mixed, torch.where(mask, hard(x) * scale, x.clamp(-1, 1)))


@pytest.mark.parametrize("name", STATES)
def test_copies_and_pickles_behave_alike_and_are_independent(name: str) -> None:
    quantizer = STATES[name]
    x, incoming = torch.randn(3, FEATURES, requires_grad=True), torch.randn(3, FEATURES)
    expected = quantizer(x)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        y = twin(x)
        assert torch.equal(y, expected)
        assert y.requires_grad == expected.requires_grad
        if y.requires_grad:
            ours, theirs = (torch.autograd.grad(out, x, incoming, retain_graph=True)[0] for out in (expected, y))
            assert torch.equal(ours, theirs)
        if twin.hardness is not None:
            twin.hardness.fill_(77.0)
            assert quantizer.hardness != 77.0


@pytest.mark.parametrize("name", STATES)
def test_a_quantizer_adds_nothing_to_a_state_dict(name: str) -> None:
    plain = nn.Sequential(nn.Linear(3, 4))
    holder = nn.Sequential(nn.Linear(3, 4))
    holder[0].quantizer = STATES[name]
    assert list(holder.state_dict()) == list(plain.state_dict())
    holder.load_state_dict(plain.state_dict(), strict=True)
    assert list(STATES[name].parameters()) == []


def test_a_user_quantizer_by_subclass() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0], requires_grad=True)
    y = Cosine()(x)
    assert y.tolist() == [-1, -1, 1, 1]
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.cos(x.detach().clamp(-1.57, 1.57)))
    smooth = Tanh(hardness=3.0)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    assert torch.equal(smooth(x), torch.tanh(3 * x))
    assert torch.autograd.gradcheck(smooth, x)
    smooth.finished = True
    assert set(smooth(x).tolist()) == {-1.0, 1.0}


def test_a_user_quantizer_with_a_forward_of_its_own_needs_no_flag() -> None:
    class Soft(Quantizer):
        def F(self, x: Tensor, h: Tensor | None) -> Tensor:
            return x / (1 + x.abs())

    quantizer = Soft()
    assert quantizer(torch.tensor([1.0])).item() == 0.5
    assert quantizer.smooth
    assert quantizer.frozen_share == 0.0
    assert not Cosine().smooth


def test_a_user_quantizer_by_pair() -> None:
    x = torch.tensor([-2.0, 0.5], requires_grad=True)
    smooth = quantizers.resolve((cube, cube_slope))
    y = smooth(x)
    assert y.tolist() == [-8, 0.125]
    y.sum().backward()
    assert x.grad.tolist() == [12, 0.75]
    assert smooth.frozen_share == 0.0
    surrogate = quantizers.resolve((None, cube_slope))
    assert surrogate(x).tolist() == [-1, 1]
    assert not surrogate.smooth
    assert surrogate.frozen_share == 1.0
    hardness = from_pair(lambda x, h: h * x, lambda x, h: h * torch.ones_like(x), hardness=3.0)
    assert hardness(x).tolist() == [-6, 1.5]
    with pytest.raises(ValueError, match="hardness must be positive"):
        from_pair(cube, cube_slope, hardness=-1)


def test_whatever_stands_for_a_quantizer_resolves_to_a_new_one() -> None:
    mine = quantizers.create("ede", hardness=3.0)
    for spec in ("ede", mine, {"name": "ede", "hardness": 3.0}, (cube, cube_slope)):
        first, second = quantizers.resolve(spec), quantizers.resolve(spec)
        assert isinstance(first, Quantizer)
        assert first is not second
        assert first is not spec
    assert quantizers.resolve({"name": "ede", "hardness": 3.0}).hardness == 3.0
    assert quantizers.resolve(None) is None


WRONG = [
    (lambda: quantizers.create("ste_clp"), "unknown quantizer 'ste_clp': did you mean 'ste_clip'"),
    (lambda: quantizers.create("zzz"), "known: .*ste_identity"),
    (lambda: quantizers.create("ede", hardnes=3), "'ede' has no argument 'hardnes': did you mean 'hardness'"),
    (lambda: quantizers.create("sign", hardness=3), "no hardness, found hardness=3"),
    (lambda: quantizers.create("ede", hardness=0), "hardness must be positive and finite, found 0"),
    (lambda: quantizers.create("ede", hardness=float("nan")), "hardness must be positive and finite, found nan"),
    (lambda: quantizers.create("ede", hardness=float("inf")), "hardness must be positive and finite, found inf"),
    (lambda: quantizers.create("ede", hardness="hard"), "hardness must be positive and finite, found 'hard'"),
    (lambda: quantizers.resolve({"hardness": 3.0}), "needs a 'name'"),
    (lambda: quantizers.create("prox_linear", rho="much"), "quantizer 'prox_linear': "),
]


@pytest.mark.parametrize(("attempt", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_names_and_arguments_get_one_sentence(attempt, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [3, STEClip, ("a", "b"), [1, 2]])
def test_what_is_no_quantizer_is_refused(spec: object) -> None:
    with pytest.raises(UsageError, match="expected a quantizer, its name, a pair"):
        quantizers.resolve(spec)


def test_registering_a_quantizer_makes_its_name_usable_once() -> None:
    try:
        quantizers.register("cosine")(Cosine)
        assert isinstance(quantizers.create("cosine"), Cosine)
        assert "cosine" in quantizers.list("cos*")
        with pytest.raises(ValueError, match="registered already"):
            quantizers.register("cosine")(Tanh)
    finally:
        quantizers._registry._entries.pop("cosine", None)


def first_column(x: Tensor, h: Tensor | None) -> Tensor:
    return x[:, :1]


@pytest.mark.parametrize(("pair", "what"), [((first_column, cube), "F"), ((None, first_column), "B")])
def test_a_pair_that_would_be_broadcast_is_refused(pair: Any, what: str) -> None:
    layer = fb.nn.Linear(3, 3, weight_quantizer=pair)
    with pytest.raises(UsageError, match=rf"^{what} must act on each entry: expected .*\(3, 3\), found \(3, 1\)"):
        layer(torch.randn(2, 3)).sum().backward()


def test_a_factor_may_be_one_number_for_all_entries() -> None:
    layer = fb.nn.Linear(3, 3, weight_quantizer=(None, lambda x, h: 0.5))
    layer(torch.ones(2, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.full((3, 3), 1.0))


def test_a_hardness_may_be_a_number_of_numpy() -> None:
    hardness = quantizers.create("bnn++", hardness=np.float32(3)).hardness
    assert hardness is not None
    assert hardness.item() == 3


OWN = {
    "B": lambda self, x, h: (x.abs() <= 2).to(x.dtype),
    "F": lambda self, x, h: torch.tanh(x),
    "extreme": lambda self, x: hard(x) * (x.abs() > 0.5),
}


@pytest.mark.parametrize("parent", ["ste_identity", "ste_clip", "clip", "prox_linear", "ternary", "bnn++", "direct"])
@pytest.mark.parametrize("part", OWN)
def test_a_subclass_brings_its_own_part_of_a_pair(part: str, parent: str) -> None:
    """Shortcuts that a parent takes for its own pair do not outlive a change of the pair."""
    base = type(quantizers.create(parent))
    quantizer = type("Own", (base,), {part: OWN[part]})()
    x = torch.tensor([-3.0, -1.5, -0.3, 0.3, 1.0, 1.5], requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(y, quantizer(x))
        torch.testing.assert_close(x.grad, quantizer.B(x, quantizer.hardness) * torch.ones_like(x))
    if part == "B":
        assert x.grad.tolist() == [0, 1, 1, 1, 1, 1]
    elif part == "F":
        torch.testing.assert_close(y.detach(), torch.tanh(x.detach()))


def test_a_copy_that_is_made_inside_hardened_is_as_the_model_outside() -> None:
    model = nn.Sequential(fb.nn.Linear(4, 4))
    with fb.hardened(model):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        other(torch.randn(2, 4)).sum().backward()
        assert other[0].weight.grad is not None


def test_parameters_of_a_quantizer_are_refused() -> None:
    class Learned(Cosine):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(1))

    with pytest.raises(UsageError, match="Learned has parameters, which would get no gradient"):
        fb.nn.Linear(4, 4, weight_quantizer=Learned())
