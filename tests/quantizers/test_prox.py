"""ProxConnect's maps and the smooth members: formulas, limits, gradients, 16-bit types."""

import math

import pytest
import torch

import frostbit as fb
from frostbit import UsageError, quantizers

DOUBLE = torch.float64
W = torch.linspace(-2, 2, 801, dtype=DOUBLE)


def piecewise_linear(w: float, rho: float, varrho: float) -> float:
    """L(ρ, ϱ) as it is defined, case by case."""
    sign = 1.0 if w >= 0 else -1.0
    if abs(w) >= 1 - rho:
        return sign
    return sign * (varrho + abs(w) * (1 - varrho) / (1 - rho))


def sign_swish(w: float, mu: float) -> float:
    sigma = 1 / (1 + math.exp(-mu * w))
    return 2 * sigma * (1 + mu * w * (1 - sigma)) - 1


@pytest.mark.parametrize("rho", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("varrho", [0.0, 0.5, 0.99])
def test_prox_linear_is_the_formula(rho, varrho):
    quantizer = quantizers.create("prox_linear", rho=rho, varrho=varrho)
    expected = torch.tensor([piecewise_linear(float(w), rho, varrho) for w in W], dtype=DOUBLE)
    torch.testing.assert_close(quantizer(W), expected, rtol=1e-12, atol=1e-12)
    assert quantizer.hardness is None


@pytest.mark.parametrize("hardness", [1.0, 1.5, 4.0, 250.0])
def test_how_hardness_sets_rho_and_varrho(hardness):
    share = 1 - 1 / hardness
    for name, rho, varrho in (("prox_linear", share, share), ("parq", share, 0.0), ("binary_relax", 0.0, share)):
        expected = torch.tensor([piecewise_linear(float(w), rho, varrho) for w in W], dtype=DOUBLE)
        found = quantizers.create(name, hardness=hardness)(W)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # hardness is a float32
    torch.testing.assert_close(quantizers.create("parq", hardness=hardness)(W), (hardness * W).clamp(-1, 1))
    inside = W.abs() <= 1
    weighted = (W + (hardness - 1) * fb.quantizers.hard(W)) / hardness  # (w + λ sign w) / (1 + λ)
    relaxed = quantizers.create("binary_relax", hardness=hardness)(W)
    torch.testing.assert_close(relaxed[inside], weighted[inside], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["prox_linear", "parq", "binary_relax"])
def test_both_ends_of_the_path(name):
    x = torch.cat([torch.randn(200), torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-6, -1e-6])])
    for soft in (1.0, 0.25):  # below 1 counts as 1
        assert torch.equal(quantizers.create(name, hardness=soft)(x), x.clamp(-1, 1))
    away = x.abs() > 1e-5
    assert torch.equal(quantizers.create(name, hardness=1e9)(x)[away], quantizers.hard(x)[away])
    assert quantizers.create(name)(torch.tensor([float("nan")])).isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 1.0}, r"rho must lie in \[0, 1\), found 1.0"),
        ({"varrho": -0.1}, r"varrho must lie in \[0, 1\), found -0.1"),
        ({"rho": 0.1, "varrho": 0.1, "hardness": 2.0}, "hardness=2.0 would change nothing"),
    ],
)
def test_impossible_shares_are_one_sentence(arguments, message):
    with pytest.raises(UsageError, match=message):
        quantizers.create("prox_linear", **arguments)


def test_the_levels_of_a_proximal_map_follow_the_scale():
    x = torch.randn(3, 40)
    scale = torch.tensor([[0.5], [2.0], [0.0]])
    quantizer = quantizers.create("parq", hardness=3.0)
    y = quantizer.value(x, scale)
    torch.testing.assert_close(y[:2], torch.minimum((3 * x).abs(), scale)[:2] * x[:2].sign())
    assert torch.equal(y[2], torch.zeros(40))  # a filter of zeros
    quantizer.finished = True
    assert torch.equal(quantizer.value(x, scale), quantizers.hard(x) * scale)


def test_a_relaxation_that_is_not_cut_off_keeps_the_mean_magnitude():
    x = 0.1 * torch.randn(4, 20_000)  # a filter of 200 may keep a quarter of its mean by chance
    bounded, free = (quantizers.create("binary_relax", hardness=1.25, bounded=bounded) for bounded in (True, False))
    torch.testing.assert_close(free(x), (x + 0.25 * quantizers.hard(x)) / 1.25)
    far = torch.tensor([-3.0, -1.0, 1.0, 2.0])
    torch.testing.assert_close(free(far), torch.tensor([-2.6, -1.0, 1.0, 1.8]))
    assert torch.equal(bounded(far), far.clamp(-1, 1))
    once, again = x, x
    free.hardness.fill_(1.01), bounded.hardness.fill_(1.01)
    for _ in range(20):  # what rules that step from the quantized weight do
        once = free.value(once, once.abs().mean(1, keepdim=True))
        again = bounded.value(again, again.abs().mean(1, keepdim=True))
    torch.testing.assert_close(once.abs().mean(1), x.abs().mean(1))
    assert bool((again.abs().mean(1) < 0.2 * x.abs().mean(1)).all())
    free.finished = True
    assert torch.equal(free.value(x, torch.tensor(2.0)), 2 * quantizers.hard(x))


@pytest.mark.parametrize("name", ["bnn++", "tanh", "smooth_approx_sign", "smooth_ede"])
def test_a_smooth_map_has_the_scale_all_the_way(name):
    x = torch.randn(3, 40)
    scale = torch.tensor([[0.5], [2.0], [0.0]])
    quantizer = quantizers.create(name)
    torch.testing.assert_close(quantizer.value(x, scale), quantizer(x).detach() * scale)
    frozen = torch.arange(40) % 3 == 0
    masked = quantizers.Masked(quantizer)
    masked.stage, masked.mask = "mixed", frozen
    expected = torch.where(frozen, quantizers.hard(x), quantizer(x).detach()) * scale
    torch.testing.assert_close(masked.value(x, scale), expected)
    quantizer.hardness.fill_(1e6)
    soft = quantizer.value(x, scale)
    quantizer.finished = True
    torch.testing.assert_close(quantizer.value(x, scale), soft)  # no jump at the end
    # B stays the derivative of F, with the scale held fixed
    w = x.clone().requires_grad_()
    quantizer = quantizers.create(name)
    quantizer(w, scale).sum().backward()
    slope = quantizer.B(x, quantizer.hardness)
    torch.testing.assert_close(w.grad, slope * scale)
    w.grad, unit = None, quantizers.create(name, unit_slope=True)
    unit(w, scale).sum().backward()
    assert torch.equal(w.grad, unit.B(x, unit.hardness))  # 1 at 0, whatever the scale
    for ste, frozen_slope in ((None, torch.zeros(())), ("ste_identity", torch.ones(())), (name, slope * scale)):
        masked = quantizers.Masked(quantizers.create(name), quantizers.resolve(ste))
        for stage, is_frozen in (("soft", frozen & False), ("mixed", frozen), ("hard", frozen | True)):
            masked.stage, masked.mask, masked.drop_frozen, w.grad = stage, frozen, False, None
            masked(w, scale).sum().backward()
            torch.testing.assert_close(w.grad, torch.where(is_frozen, frozen_slope, slope * scale))


@pytest.mark.parametrize("mu", torch.logspace(math.log10(5), math.log10(500), 9).tolist())
def test_bnn_gradient_is_the_finite_difference_of_its_forward(mu):
    quantizer = quantizers.create("bnn++", hardness=mu)
    mu = quantizer.hardness.item()
    w = (torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([0.0, -40.0, 40.0])]).double() / mu).requires_grad_()
    quantizer(w).sum().backward()
    step = 1e-5 / mu
    with torch.no_grad():
        slope = (quantizer(w + step) - quantizer(w - step)) / (2 * step)
    assert float((w.grad - slope).abs().max()) < 1e-4 * mu
    assert float((w.grad - slope).abs().max()) < 1e-4 or mu > 20  # in absolute terms too where rounding allows
    assert quantizer.B(torch.zeros(1), quantizer.hardness).item() == pytest.approx(mu)


def test_bnn_forward_is_the_paper_s_curve():
    for mu in (5.0, 50.0):
        expected = torch.tensor([sign_swish(float(w), mu) for w in W], dtype=DOUBLE)
        torch.testing.assert_close(quantizers.create("bnn++", hardness=mu)(W), expected, rtol=1e-9, atol=1e-9)
    z = torch.linspace(2, 3, 10_001, dtype=DOUBLE)
    y = quantizers.create("bnn++", hardness=1.0)(z)
    assert y.max().item() == pytest.approx(1.1997, abs=1e-4)
    assert z[y.argmax()].item() == pytest.approx(2.399, abs=1e-3)


def test_bnn_forward_is_nearly_the_sign_at_the_final_hardness():
    w = torch.cat([torch.logspace(math.log10(0.02), 1, 500), -torch.logspace(math.log10(0.02), 1, 500)]).double()
    assert float((quantizers.create("bnn++", hardness=500.0)(w) - quantizers.hard(w)).abs().max()) < 1e-3


@pytest.mark.parametrize(("smooth", "hard"), [("bnn++", "bnn+"), ("smooth_ede", "ede")])
@pytest.mark.parametrize("hardness", [0.1, 1.0, 10.0])
def test_a_repair_keeps_the_backward_of_what_it_repairs(smooth, hard, hardness):
    first, second = (quantizers.create(name, hardness=hardness) for name in (smooth, hard))
    torch.testing.assert_close(first.B(W, first.hardness), second.B(W, second.hardness), rtol=1e-6, atol=1e-9)


def test_the_smooth_approx_sign_is_the_formula():
    quantizer = quantizers.create("smooth_approx_sign")
    expected = torch.where(W.abs() <= 1, W * (2 - W.abs()), W.sign())
    torch.testing.assert_close(quantizer(W), expected)
    assert torch.equal(quantizer.B(W, quantizer.hardness), quantizers.create("approx_sign").B(W, None))


STEEP = ["bnn++", "bnn+", "tanh", "smooth_approx_sign", "smooth_ede"]


@pytest.mark.parametrize("name", STEEP)
@pytest.mark.parametrize("hardness", [0.5, 5.0, 500.0])
def test_unit_slope_divides_the_backward_by_its_value_at_0(name, hardness):
    plain = quantizers.create(name, hardness=hardness)
    unit = quantizers.create(name, hardness=hardness, unit_slope=True)
    zero = torch.zeros(1, dtype=DOUBLE)
    assert unit.B(zero, unit.hardness).item() == pytest.approx(1)
    torch.testing.assert_close(
        unit.B(W, unit.hardness) * plain.B(zero, plain.hardness), plain.B(W, plain.hardness), rtol=1e-6, atol=1e-9
    )
    assert torch.equal(unit(W), plain(W))


HARDENING = ["prox_linear", "parq", "binary_relax", "bnn++", "tanh", "smooth_approx_sign", "smooth_ede"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HARDENING)
@pytest.mark.parametrize("hardness", [1.0, 5.0, 500.0, 5000.0])
def test_16_bit_values_are_the_rounded_32_bit_ones(name, hardness, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([-60000.0, -3.0, -0.02, -tiny, 0.0, tiny, 1e-3, 0.7, 60000.0], dtype=dtype, requires_grad=True)
    quantizer = quantizers.create(name, hardness=hardness)
    y = quantizer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    wide = x.detach().float().requires_grad_()
    expected = quantizer(wide)
    (slope,) = torch.autograd.grad(expected.sum(), wide)
    assert torch.equal(y, expected.to(dtype))
    torch.testing.assert_close(gradient, slope.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", HARDENING)
def test_hardened_and_finished_are_the_sign(name):
    x = torch.tensor([-2.0, -0.3, -0.0, 0.0, 1e-4, 0.3])
    layer = fb.nn.Linear(6, 1, bias=False, weight_quantizer=name, input_quantizer=None)
    with torch.no_grad():
        layer.weight.copy_(x)
        soft = layer(torch.eye(6)).flatten()
        assert not torch.equal(soft, quantizers.hard(x))
        with fb.hardened(layer):
            assert torch.equal(layer(torch.eye(6)).flatten(), quantizers.hard(x))
        assert torch.equal(layer(torch.eye(6)).flatten(), soft)
        layer.weight_quantizer.finished = True
        assert torch.equal(layer(torch.eye(6)).flatten(), quantizers.hard(x))
