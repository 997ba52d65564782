"""The ProxConnect++ criterion: the paper's table, generated pairs of known verdict, jumps and flat pieces."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from frostbit import UsageError, quantizers
from frostbit.quantizers import Decomposition, decompose

Function = Callable[[Tensor], Tensor]
W = torch.linspace(-3, 3, 1201, dtype=torch.float64)

# the paper's table, and its repairs
TABLE = {
    "ste_identity": True,  # BC
    "prox_linear": True,  # PC
    "parq": True,
    "binary_relax": True,
    "ste_clip": False,  # BNN
    "bnn+": False,
    "bnn++": True,
    "approx_sign": False,  # Bi-Real
    "smooth_approx_sign": True,
    "ede": False,  # IR-Net
    "smooth_ede": True,
    "clip": True,
    "tanh": True,
    "sign": False,
}


def test_full_precision_decomposes():
    verdict = decompose(lambda w, h: w, lambda w, h: torch.ones_like(w))
    assert verdict.proximal
    torch.testing.assert_close(verdict.P(W), W)
    torch.testing.assert_close(verdict.T(W), W)


def check_maps(verdict: Decomposition, forward: Function, backward: Function, coarse: float = 1e-4) -> None:
    """F = T∘P everywhere, B = T'∘P away from kinks and jumps, P monotone."""
    p = verdict.P(W)
    assert bool((p.diff() >= 0).all())
    torch.testing.assert_close(verdict.T(p), forward(W), rtol=0, atol=coarse)
    smooth = torch.ones_like(W, dtype=torch.bool)
    for part in (p, forward(W), backward(W)):
        curved = part.diff().diff().abs() > 0.02 * (part.max() - part.min() + 1e-12)
        smooth[1:-1] &= ~curved
    p, expected = p[smooth], backward(W)[smooth]
    step = 1e-5 * float(p.max() - p.min())
    slope = (verdict.T(p + step) - verdict.T(p - step)) / (2 * step)
    close = (slope - expected).abs() <= 0.03 * expected.abs().max()
    assert close.double().mean() > 0.99  # what is left lies within a step of a kink


@pytest.mark.parametrize("numerical", [False, True], ids=["closed", "numerical"])
@pytest.mark.parametrize("name", TABLE)
def test_the_paper_s_table(name, numerical):
    for hardness in (None, 1.5, 12.0, 400.0):
        quantizer = quantizers.create(name)
        if hardness is not None and quantizer.hardness is None:
            continue
        verdict = decompose(name, hardness=hardness, numerical=numerical)
        assert verdict.proximal == TABLE[name], str(verdict)
        assert "\n" not in verdict.why
        assert not verdict.why.endswith(".")
        assert verdict.proximal or "repaired by" in verdict.why
        if verdict.proximal and hardness != 400.0:
            if hardness is not None:
                quantizer.hardness.fill_(hardness)
            check_maps(verdict, quantizer.value, lambda w, q=quantizer: q.B(w, q.hardness))


def test_every_quantizer_is_judged_alike_in_closed_form_and_numerically():
    for name in quantizers.list():
        closed, numerical = decompose(name), decompose(name, numerical=True)
        assert closed.proximal == numerical.proximal, name
        assert (closed.P is None) == (numerical.P is None)
        inside = W[(W.abs() < 1)]  # beyond, B may be 0, and P is open
        if closed.P is not None:
            torch.testing.assert_close(closed.P(inside), numerical.P(inside), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ste_clip", "approx_sign", "bnn+", "ede"])
def test_the_repair_that_is_named_repairs(name):
    repair = decompose(name).why.split("'")[1]
    first, second = quantizers.create(name), quantizers.create(repair)
    assert decompose(repair, numerical=True).proximal
    torch.testing.assert_close(first.B(W, first.hardness), second.B(W, second.hardness))


def test_a_backward_divided_by_a_constant_still_decomposes():
    for name in ("bnn++", "smooth_approx_sign", "smooth_ede"):
        quantizer = quantizers.create(name, hardness=7.0, unit_slope=True)
        for numerical in (False, True):
            verdict = decompose(quantizer, numerical=numerical)
            assert verdict.proximal
            check_maps(verdict, quantizer.value, lambda w, q=quantizer: q.B(w, q.hardness))
    # the closed form and the integral are one map
    closed, numerical = (decompose(quantizer, numerical=n) for n in (False, True))
    torch.testing.assert_close(closed.P(W), numerical.P(W), rtol=1e-6, atol=1e-6)


def test_a_finished_quantizer_is_judged_by_the_sign():
    quantizer = quantizers.create("bnn++")
    quantizer.finished = True
    assert not decompose(quantizer).proximal
    quantizer = quantizers.create("prox_linear")
    quantizer.finished = True
    assert decompose(quantizer).proximal


# ------------------------------------------------------------------------- twenty generated pairs of known verdict


def random(seed: int) -> Callable[[float, float], float]:
    generator = torch.Generator().manual_seed(seed)
    return lambda low, high: low + (high - low) * float(torch.rand(1, generator=generator))


def monotone_map(seed: int) -> tuple[Function, Function]:
    """Return P and P' of a random monotone map with two jumps, two flat pieces and slopes between."""
    draw = random(seed)
    starts = sorted(draw(-2, 2) for _ in range(3))
    pieces = [(start, draw(0.2, 0.5), draw(0.5, 2.0)) for start in starts]
    jumps = [(draw(-2, 2), draw(0.2, 1.0)) for _ in range(2)] if seed % 2 else []

    def p(w: Tensor) -> Tensor:
        y = sum(slope * (w - start).clamp(0, width) for start, width, slope in pieces)
        return y + sum(size * (w >= at) for at, size in jumps)

    return p, lambda w: sum(slope * ((w > start) & (w < start + width)) for start, width, slope in pieces)


def outer_map(seed: int) -> tuple[Function, Function]:
    """Return T and T'; increasing where P jumps, otherwise any smooth function."""
    draw = random(seed + 100)
    a, b = draw(0.5, 2.0), draw(0.1, 0.9 if seed % 2 else 3.0)
    return (lambda p: p + b / a * torch.sin(a * p)), (lambda p: 1 + b * torch.cos(a * p))


def good_pair(seed: int) -> tuple[Function, Function]:
    p, _ = monotone_map(seed)
    t, slope = outer_map(seed)
    return (lambda w: t(p(w))), (lambda w: slope(p(w)))


def bad_pair(seed: int) -> tuple[Function, Function]:
    draw = random(seed + 200)
    kind, at, size = seed % 5, draw(-1, 1), draw(0.3, 0.6)
    forward, backward = good_pair(2 * seed + 1)
    p, _ = monotone_map(2 * seed + 1)
    if kind == 0:  # a hard forward whose factor varies
        return (lambda w: torch.where(w >= at, 1.0, -1.0).double()), (lambda w: 2 + torch.sin(w / size))
    if kind == 1:  # the factor of a good pair, tilted: no function of P on its flat pieces
        return forward, (lambda w: backward(w) * (1 + 0.2 * torch.tanh(w)))
    if kind == 2:  # a rising forward with a negative factor
        return (lambda w: w + 0.3 * torch.sin(w)), (lambda w: -1 - 0.1 * w * w)
    if kind == 3:  # the factor vanishes where the forward moves
        return torch.tanh, (lambda w: 1.0 * ((w - at).abs() > size))
    return (lambda w: p(w) - 1.0 * (w >= at)), (lambda w: torch.ones_like(w))  # the forward jumps down


@pytest.mark.parametrize("seed", range(10))
def test_ten_generated_pairs_that_decompose(seed):
    forward, backward = good_pair(seed)
    verdict = decompose(lambda w, h: forward(w), lambda w, h: backward(w))
    assert verdict.proximal, str(verdict)
    check_maps(verdict, forward, backward, coarse=1e-3)
    if seed % 2 == 0:  # without jumps P is the one that the pair was made of, but for the stretches left open
        p, slope = monotone_map(seed)
        found, moving = verdict.P(W).diff(), (slope(W[:-1]) > 0) & (slope(W[1:]) > 0)
        torch.testing.assert_close(found[moving], p(W).diff()[moving], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_ten_generated_pairs_that_do_not(seed):
    forward, backward = bad_pair(seed)
    verdict = decompose(lambda w, h: forward(w), lambda w, h: backward(w))
    assert not verdict.proximal
    reason = ["no function of P", "no function of P", "falls", "infinite", "falls"][seed % 5]
    assert reason in verdict.why
    assert "repaired by" in verdict.why


# --------------------------------------------------------------------------------------------------- hand-made pairs


def sign(w: Tensor, h: Tensor | None) -> Tensor:
    return torch.where(w >= 0, 1.0, -1.0).double()


def one(w: Tensor, h: Tensor | None) -> Tensor:
    return torch.ones_like(w)


def ternary(w: Tensor, h: Tensor | None) -> Tensor:
    return 1.0 * (w >= 0.5) - 1.0 * (w <= -0.5)


HAND_MADE = [
    (ternary, one, True, "monotone"),
    (ternary, lambda w, h: 1.0 * (w.abs() <= 1), False, "from w = -1 to -0.5, where B goes from 0 to 1"),
    (sign, lambda w, h: 2.0 * (w >= 0) + 1, True, "monotone"),  # constant on each side: a function of P
    (sign, lambda w, h: -one(w, h), False, "falls at w = 0"),
    (sign, lambda w, h: w.abs(), False, "F jumps at w = 0, where B is 0"),
    (lambda w, h: torch.tanh(w), lambda w, h: w.abs(), False, "F moves at w = "),
    (lambda w, h: torch.tanh(w), lambda w, h: 1 + w * w, True, "monotone"),
    (lambda w, h: torch.tanh(9 * w), lambda w, h: 1 + w * w, True, "monotone"),  # saturates to the last bit
    (lambda w, h: w.clamp(-1, 1), lambda w, h: 1 + 1.0 * (w.abs() > 1), False, "B goes from 2 to 1"),
    (lambda w, h: w**3, lambda w, h: 3 * w**2, True, "monotone"),  # B touches 0 where F rests
    (lambda w, h: -w, lambda w, h: -one(w, h), True, "monotone"),
    (lambda w, h: 0 * w, lambda w, h: w, False, "no function of P"),
    (lambda w, h: 0 * w, lambda w, h: 0 * w, True, "monotone"),
    (None, one, True, "monotone"),
    (None, lambda w, h: torch.exp(-w.abs()), False, "no function of P"),
]


@pytest.mark.parametrize(("forward", "backward", "proximal", "words"), HAND_MADE)
def test_hand_made_pairs(forward, backward, proximal, words):
    verdict = decompose(forward, backward)
    assert verdict.proximal == proximal, str(verdict)
    assert words in verdict.why


def test_p_of_a_hard_pair_steps_like_the_forward():
    verdict = decompose(ternary, one)
    torch.testing.assert_close(verdict.P(W), ternary(W, None).double())
    verdict = decompose(None, lambda w, h: 4 * torch.ones_like(w))
    assert verdict.P(torch.tensor([-2.0, -1e-9, 0.0, 3.0])).tolist() == [-0.25, -0.25, 0.25, 0.25]
    assert verdict.T(torch.tensor([-0.25, 0.25])).tolist() == [-1, 1]
    assert verdict.P(torch.zeros(2, 3, dtype=torch.float16)).dtype == torch.float16


def test_hardness_reaches_a_pair_of_functions():
    verdict = decompose(lambda w, h: torch.tanh(h * w), lambda w, h: h * (1 - torch.tanh(h * w) ** 2), hardness=3.0)
    assert verdict.proximal
    torch.testing.assert_close(verdict.T(W), torch.tanh(3 * W), rtol=0, atol=1e-5)


WRONG = [
    (lambda: decompose("bnn+++"), "did you mean 'bnn\\+\\+'"),
    (lambda: decompose("clip", hardness=3.0), "Clip has no hardness, found hardness=3.0"),
    (lambda: decompose(None), "found None"),
    (lambda: decompose("clip", one), "a function of \\(w, h\\) or None, found 'clip'"),
    (lambda: decompose(one), "needs a backward function beside the forward one"),
    (lambda: decompose(quantizers.Masked(quantizers.Clip())), "acts by position"),
    (lambda: decompose(lambda w, h: 1 / w, one), "F must be finite on |w| ≤ 4, found .* at w = 0"),
    (lambda: decompose(one, lambda w, h: w.log()), "B must be finite"),
    (lambda: decompose(lambda w, h: w.sum(), one), "must act on each entry"),
]


@pytest.mark.parametrize(("attempt", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_be_judged_is_one_sentence(attempt, message):
    with pytest.raises(UsageError, match=message.replace("|w|", r"\|w\|")) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_a_user_s_class_with_a_changed_backward_is_judged_anew():
    class Odd(quantizers.SmoothSwishSign):
        def B(self, x: Tensor, h: Tensor | None) -> Tensor:
            return -super().B(x, h)

    assert not decompose(Odd()).proximal
    assert math.isfinite(float(decompose(Odd()).P(torch.ones(1))))


def test_a_verdict_does_not_change_with_its_quantizer():
    quantizer = quantizers.create("parq", hardness=2.0)
    verdict = decompose(quantizer)
    quantizer.hardness.fill_(50.0)
    torch.testing.assert_close(verdict.P(W), (2 * W).clamp(-1, 1))
