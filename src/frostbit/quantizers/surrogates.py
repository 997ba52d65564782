"""Hard forward, chosen backward: sign with a surrogate gradient. One class per surrogate."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from frostbit.quantizers.base import Quantizer, hard, parts, pass_inside, sign_into


def swish_sign_derivative(x: Tensor, mu: Tensor | float) -> Tensor:
    """Return the derivative of SignSwish, ``μ [2 − μx·tanh(μx/2)] / (1 + cosh μx)``, computed in float32 or wider.

    Args:
        x: any shape, floating dtype.
        mu: hardness, positive.

    Returns:
        A tensor like ``x``; its value at 0 is μ, and it is negative beyond ``|μx| ≈ 2.4``.

    Source: Darabi et al., BNN+ (arXiv 1812.11800).
    """
    z = (_wide(x) * mu).clamp(-30, 30)  # cosh(30) is far below float32's range, and SS' there is below 1e-11·μ
    return (mu * (2 - z * torch.tanh(z / 2)) / (1 + torch.cosh(z))).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """Transcendental forms are computed in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


class Sign(Quantizer):
    """``F = sign``, no gradient: the output carries no autograd history."""

    trainable = False


class STEIdentity(Quantizer):
    """``F = sign``, ``B = 1``: the plain straight-through estimator.

    Source: Courbariaux et al., BinaryConnect (arXiv 1511.00363).
    """

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return 1 everywhere."""
        return torch.ones_like(x)

    def pull(self, grad: Tensor, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return ``grad`` itself."""
        return grad

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sign, and the sign as int8."""
        value = hard(x)
        return value, value.to(torch.int8)


class STEClip(Quantizer):
    """``F = sign``, ``B = 1{|x| ≤ 1}``: the straight-through estimator that stops outside [−1, 1].

    Source: Hubara et al., Binarized Neural Networks (arXiv 1602.02830).
    """

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return 1 for ``|x| ≤ 1``, else 0."""
        return pass_inside(torch.ones_like(x), x)

    def pull(self, grad: Tensor, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return ``grad`` where ``|x| ≤ 1``."""
        if torch.compiler.is_compiling():
            return pass_inside(grad, x.to(grad.dtype))
        if x.device.type == "cpu" and x.dtype == grad.dtype and x.numel() and max(map(abs, _ends(x))) <= 1:
            return grad  # reading x alone is a third of the traffic, and latents are mostly all inside
        out = grad if overwrite else torch.empty_like(grad)
        for grad_part, x_part, out_part in parts(grad, x, out):
            pass_inside(grad_part, x_part.to(grad.dtype), out=out_part)
        return out

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sign, and as int8 ±1 for entries inside [−1, 1], ±2 outside."""
        if torch.compiler.is_compiling():
            value = hard(x)
            return value, (value * (1 + (x.abs() > 1))).to(torch.int8)
        value, code = torch.empty_like(x), torch.empty_like(x, dtype=torch.int8)
        for x_part, value_part, code_part in parts(x, value, code):
            sign_into(value_part, x_part)
            doubled_inside = pass_inside(value_part, x_part).add_(value_part).to(torch.int8)
            torch.clamp(doubled_inside, -1, 1, out=code_part).mul_(3).sub_(doubled_inside)
        return value, code


def _ends(x: Tensor) -> tuple[float, float]:
    """Return the least and the greatest entry; NaN if there is one."""
    low, high = torch.aminmax(x)
    return low.item(), high.item()


class ApproxSign(Quantizer):
    """``F = sign``, ``B = max(0, 2 − 2|x|)``: derivative of a piecewise quadratic approximation of sign.

    Source: Liu et al., Bi-Real Net (arXiv 1808.00278).
    """

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return ``max(0, 2 − 2|x|)``."""
        return (2 - 2 * x.abs()).clamp_min(0)


class SwishSign(Quantizer):
    """``F = sign``, ``B = SS'_μ``: BNN+, sign with the derivative of SignSwish. Hardness is μ, 5 by default.

    Args:
        hardness: μ.
        unit_slope: divide B by its value at 0, which is μ.

    Source: Darabi et al., BNN+ (arXiv 1812.11800).
    """

    default_hardness: ClassVar[float | None] = 5.0

    def __init__(self, hardness: float | None = None, unit_slope: bool = False) -> None:
        super().__init__(hardness)
        self.unit_slope = unit_slope

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return ``SS'_μ(x)``, divided by μ if ``unit_slope``."""
        assert h is not None
        factor = swish_sign_derivative(x, h)
        return factor / h if self.unit_slope else factor


class EDE(Quantizer):
    """``F = sign``, ``B = k·t·(1 − tanh²(t·x))`` with ``k = max(1/t, 1)``: the error decay estimator.

    Hardness is t, 1 by default; the authors raise it log-linearly from 1e-3 to 1e1 (`Anneal(start=1e-3, end=10)`).
    Source: Qin et al., IR-Net (arXiv 1909.10788).
    """

    default_hardness: ClassVar[float | None] = 1.0

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return ``k·t·(1 − tanh²(t·x))``."""
        assert h is not None
        slope = h * torch.clamp_min(1 / h, 1)
        return (slope * (1 - torch.tanh(_wide(x) * h).square())).to(x.dtype)
