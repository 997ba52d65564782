"""Smooth members: F is continuous and B is its exact derivative; a progression makes them hard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from frostbit.quantizers.base import Quantizer, pass_inside
from frostbit.quantizers.surrogates import _wide, swish_sign_derivative


class Clip(Quantizer):
    """``F = clip(x, −1, 1)``, ``B = 1{|x| ≤ 1}``: StoMPP's smooth member.

    At ``|x| = 1`` the gradient passes, so that a latent held at ±1 by ``latent_clip`` can still return.
    Source: Smith & Islam, Layerwise Progressive Freezing (arXiv 2601.22660).
    """

    smooth = True

    def F(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return ``clip(x, −1, 1)``."""
        return x.clamp(-1, 1)

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return 1 for ``|x| ≤ 1``, else 0."""
        return pass_inside(torch.ones_like(x), x)

    def pull(self, grad: Tensor, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return ``grad`` where ``|x| ≤ 1``."""
        return pass_inside(grad, x, out=grad if overwrite else None)


class Steep(Quantizer, ABC):
    """``F = k·f(μx)``, ``B = k·μ·f'(μx)`` for one curve f from −1 to 1; hardness is μ and the limit is the sign.

    A subclass gives ``curve`` and ``slope`` for arguments within ±30, in float32 or wider, and ``slope_at_0``. Where a
    layer scales its weights by ``mean|w|`` (v), F is ``v·k·f(μx)`` and B its derivative: nothing jumps when it is made
    hard.

    Args:
        hardness: μ.
        unit_slope: divide B by its value at 0, which grows with μ (a hundredfold from 5 to 500), so that the factor
            at 0 is always 1. The forward and its limit stay the same.
    """

    default_hardness: ClassVar[float | None] = 5.0
    smooth = True
    slope_at_0: ClassVar[float] = 1.0

    def __init__(self, hardness: float | None = None, unit_slope: bool = False) -> None:
        super().__init__(hardness)
        self.unit_slope = unit_slope

    @abstractmethod
    def curve(self, z: Tensor) -> Tensor:
        """Return ``f(z)``."""

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """Return ``f'(z)``."""

    def gain(self, mu: Tensor) -> Tensor | float:
        """Return k."""
        return 1.0

    def F(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return ``k·f(μx)``."""
        assert h is not None
        return (self.gain(h) * self.curve((_wide(x) * h).clamp(-30, 30))).to(x.dtype)

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return ``k·μ·f'(μx)``, divided by its value at 0 if ``unit_slope``."""
        assert h is not None
        factor = 1 / self.slope_at_0 if self.unit_slope else self.gain(h) * h
        return (factor * self.slope((_wide(x) * h).clamp(-30, 30))).to(x.dtype)

    def value(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return ``scale · F(x)`` while soft, ``scale · sign(x)`` once hard; see `Quantizer.value`."""
        if scale is None or self.finished or self._hardened:
            return super().value(x, scale)
        return self.F(x, self.hardness) * scale

    def scale_of_gradient(self, scale: Tensor) -> Tensor | None:
        """Return the scale, since B is the derivative of F; none with ``unit_slope``."""
        return None if self.unit_slope else scale

    def extra_repr(self) -> str:
        """Show the hardness and the choice of slope."""
        return super().extra_repr() + (", unit_slope=True" if self.unit_slope else "")


class SmoothSwishSign(Steep):
    """``F = SS_μ``, ``B = SS'_μ``: BNN++. Hardness is μ, 5 by default; the usual path is 5 → 500.

    ``SS_μ(x) = 2σ(μx)[1 + μx(1 − σ(μx))] − 1``, which is ``t + z(1 − t²)`` with ``z = μx/2`` and ``t = tanh z``. It is
    not monotone: it peaks at 1.1997 where ``μx = 2.399``, then falls to 1. ``B`` is that of `SwishSign` (BNN+).

    Source: Lu et al., ProxConnect++ (arXiv 2402.17710); the curve: Darabi et al., BNN+ (arXiv 1812.11800).
    """

    def curve(self, z: Tensor) -> Tensor:
        """Return ``SS_1(z)``."""
        t = torch.tanh(z / 2)
        return t + z / 2 * (1 - t * t)

    def slope(self, z: Tensor) -> Tensor:
        """Return ``SS'_1(z)``."""
        return swish_sign_derivative(z, 1.0)


class Tanh(Steep):
    """``F = tanh(μx)``, ``B = μ(1 − tanh²(μx))``: the monotone alternative to `SmoothSwishSign`; μ is 5 by default."""

    def curve(self, z: Tensor) -> Tensor:
        """Return ``tanh z``."""
        return torch.tanh(z)

    def slope(self, z: Tensor) -> Tensor:
        """Return ``1 − tanh² z``."""
        return 1 - torch.tanh(z).square()


class SmoothApproxSign(Steep):
    """``F = z(2 − |z|)`` with ``z = clip(μx, −1, 1)``, ``B = μ(2 − 2|μx|)₊``: the forward that `ApproxSign` lacks.

    With its B, the derivative of this F, it decomposes (`frostbit.quantizers.decompose`). Hardness is μ, 1 by default.
    Source: Liu et al., Bi-Real Net (arXiv 1808.00278), which uses B with the sign.
    """

    default_hardness: ClassVar[float | None] = 1.0
    slope_at_0: ClassVar[float] = 2.0

    def curve(self, z: Tensor) -> Tensor:
        """Return ``z(2 − |z|)`` on [−1, 1], the sign outside."""
        z = z.clamp(-1, 1)
        return z * (2 - z.abs())

    def slope(self, z: Tensor) -> Tensor:
        """Return ``(2 − 2|z|)₊``."""
        return (2 - 2 * z.abs()).clamp_min(0)


class SmoothEDE(Tanh):
    """``F = k·tanh(t·x)``, ``B = k·t·(1 − tanh²(t·x))``, ``k = max(1/t, 1)``: the forward that `EDE` lacks.

    Hardness is t, 1 by default. Below 1 the forward is close to x and exceeds ±1; it is the sign in the limit.
    Source: Qin et al., IR-Net (arXiv 1909.10788), which uses B with the sign.
    """

    default_hardness: ClassVar[float | None] = 1.0

    def gain(self, mu: Tensor) -> Tensor:
        """Return ``k = max(1/t, 1)``."""
        return (1 / mu).clamp_min(1)
