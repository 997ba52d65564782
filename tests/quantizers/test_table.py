"""One table for sign, its surrogates and the clip: inputs, forward values, gradient factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from frostbit import quantizers
from frostbit.quantizers import ProxLinear

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
#: "1+" and "-1-" stand for the numbers next to ±1, away from 0
INPUTS = ["-inf", "-3", "-1-", "-1", "-0.5", "-0.0", "0.0", "0.25", "1", "1+", "3", "inf"]
SIGN = [-1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1]
CLIPPED = [-1, -1, -1, -1, -0.5, 0, 0, 0.25, 1, 1, 1, 1]
INSIDE = [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]


def inputs(dtype: torch.dtype) -> Tensor:
    beyond = 1 + torch.finfo(dtype).eps
    values = {"1+": beyond, "-1-": -beyond}
    return torch.tensor([values.get(text) or float(text) for text in INPUTS], dtype=dtype)


def sign_swish(x: float, mu: float) -> float:
    """SS_μ(x) = 2σ(μx)[1 + μx(1 − σ(μx))] − 1."""
    sigma = 1 / (1 + math.exp(-mu * x))
    return 2 * sigma * (1 + mu * x * (1 - sigma)) - 1


def slope(f: Callable[[float], float], x: float, step: float = 1e-5) -> float:
    return (f(x + step) - f(x - step)) / (2 * step)


def swish_slope(mu: float) -> Callable[[float], float]:
    """The gradient factor of BNN+ by finite differences of SignSwish; 0 far out."""
    return lambda x: 0.0 if abs(x) > 9 else slope(lambda v: sign_swish(v, mu), x)


def ede_factor(t: float) -> Callable[[float], float]:
    return lambda x: max(1 / t, 1) * t * (1 - math.tanh(t * x) ** 2)


@dataclass
class Row:
    name: str
    forward: list[float] | Callable[[float], float]
    gradient: list[float] | Callable[[float], float] | None
    arguments: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.arguments.values())])


TABLE = [
    Row("sign", SIGN, None),
    Row("ste_identity", SIGN, [1] * 12),
    Row("ste_clip", SIGN, INSIDE),
    Row("approx_sign", SIGN, [0, 0, 0, 0, 1, 2, 2, 1.5, 0, 0, 0, 0]),
    Row("swish_sign", SIGN, swish_slope(5), tolerance=1e-6),
    Row("swish_sign", SIGN, swish_slope(1), {"hardness": 1}, tolerance=1e-6),
    Row("bnn+", SIGN, swish_slope(2), {"hardness": 2}, tolerance=1e-6),
    Row("ede", SIGN, ede_factor(1), tolerance=1e-5),
    Row("ede", SIGN, ede_factor(0.5), {"hardness": 0.5}, tolerance=1e-5),
    Row("ede", SIGN, ede_factor(10), {"hardness": 10}, tolerance=1e-5),
    Row("clip", CLIPPED, INSIDE),
    Row("prox_linear", CLIPPED, [1] * 12),
    Row("prox_linear", [-1, -1, -1, -1, -1, 0.5, 0.5, 0.75, 1, 1, 1, 1], [1] * 12, {"hardness": 2}),
    Row("parq", [-1, -1, -1, -1, -1, 0, 0, 0.5, 1, 1, 1, 1], [1] * 12, {"hardness": 2}),
    Row("binary_relax", [-1, -1, -1, -1, -0.75, 0.5, 0.5, 0.625, 1, 1, 1, 1], [1] * 12, {"hardness": 2}),
    Row("bnn++", lambda x: sign_swish(x, 5), swish_slope(5), tolerance=1e-6),
    Row("smooth_swish_sign", lambda x: sign_swish(x, 2), swish_slope(2), {"hardness": 2}, tolerance=1e-6),
    Row("tanh", lambda x: math.tanh(2 * x), lambda x: 2 - 2 * math.tanh(2 * x) ** 2, {"hardness": 2}, tolerance=1e-6),
    Row("smooth_approx_sign", [-1, -1, -1, -1, -0.75, 0, 0, 0.4375, 1, 1, 1, 1], [0] * 4 + [1, 2, 2, 1.5] + [0] * 4),
    Row("smooth_ede", lambda x: 2 * math.tanh(x / 2), ede_factor(0.5), {"hardness": 0.5}, tolerance=1e-5),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_forward_values_and_gradient_factors(row: Row, dtype: torch.dtype) -> None:
    quantizer = quantizers.create(row.name, **row.arguments)
    x = inputs(dtype).requires_grad_()
    y = quantizer(x)
    assert y.dtype == dtype
    if isinstance(row.forward, list):
        assert y.tolist() == torch.tensor(row.forward, dtype=dtype).tolist()
    else:
        values = torch.tensor([row.forward(max(-30.0, min(30.0, v))) for v in x.tolist()], dtype=dtype)
        torch.testing.assert_close(y, values, rtol=torch.finfo(dtype).eps, atol=1e-6)
    if row.gradient is None:
        assert y.grad_fn is None
        assert not y.requires_grad
        return
    incoming = torch.arange(1, 13, dtype=dtype)
    y.backward(incoming)
    factors = row.gradient if isinstance(row.gradient, list) else [row.gradient(v) for v in x.tolist()]
    expected = torch.tensor(factors, dtype=torch.float64) * incoming.double()
    # the factor is rounded once and its product with the incoming gradient once more
    rounding = 2 * torch.finfo(dtype).eps if row.tolerance else 0.0
    torch.testing.assert_close(x.grad.double(), expected, rtol=row.tolerance + rounding, atol=row.tolerance)


def test_approx_sign_is_continuous_just_inside_and_outside_one() -> None:
    x = inputs(torch.float32)[[2, 3, 8, 9]].requires_grad_()
    quantizers.create("approx_sign")(x).sum().backward()
    assert x.grad.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("mu", [0.5, 5.0, 50.0])
def test_swish_sign_gradient_is_the_slope_of_sign_swish(mu: float) -> None:
    x = torch.linspace(-4, 4, 161, dtype=torch.float64, requires_grad=True)
    quantizers.create("swish_sign", hardness=mu)(x).sum().backward()
    expected = [slope(lambda v: sign_swish(v, mu), float(v)) for v in x.detach()]
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6 * mu)
    assert x.grad[80] == mu  # SS'(0) = μ
    assert bool((x.grad < 0).any()) or mu * 4 < 2.4  # SS is not monotone: it falls beyond μx = 2.399


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_transcendental_forms_survive_large_products_in_16_bits(dtype: torch.dtype) -> None:
    x = torch.tensor([-60000.0, -100.0, -1.0, 1.0, 100.0, 60000.0], dtype=dtype, requires_grad=True)
    for name, hardness in (("swish_sign", 500.0), ("ede", 1000.0)):
        (gradient,) = torch.autograd.grad(quantizers.create(name, hardness=hardness)(x).sum(), x)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e-3


def test_smooth_quantizers_have_their_own_derivative_as_gradient() -> None:
    for name in {row.name for row in TABLE}:
        quantizer = quantizers.create(name)
        if not quantizer.smooth or isinstance(quantizer, ProxLinear):  # B is 1 by intent
            continue
        x = torch.linspace(-2, 2, 40, dtype=torch.float64)  # 40 points: none at the kinks ±1
        step = 1e-6
        differences = (quantizer.value(x + step) - quantizer.value(x - step)) / (2 * step)
        torch.testing.assert_close(quantizer.B(x, quantizer.hardness), differences, rtol=1e-6, atol=1e-6)


def test_a_latent_held_at_the_clip_bound_stays_trainable() -> None:
    for name in ("ste_clip", "clip"):
        latent = torch.tensor([1.0, -1.0], requires_grad=True)
        quantizers.create(name)(latent).sum().backward()
        assert latent.grad.tolist() == [1, 1]
