"""ProxConnect's forward maps: proximal maps that are not the sign yet, with gradient 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from frostbit.errors import UsageError
from frostbit.quantizers.base import Quantizer, hard
from frostbit.quantizers.surrogates import _wide


class ProxLinear(Quantizer):
    """``F = L(ρ, ϱ)``, ``B = 1``: ProxConnect's piecewise linear map for the levels ±1.

    ``L(w) = sign(w)`` where ``|w| ≥ 1 − ρ``, else ``sign(w) · [ϱ + |w| (1 − ϱ) / (1 − ρ)]``: a jump of 2ϱ at 0, then
    a line that meets ±1 at ``|w| = 1 − ρ``. ``ρ = ϱ = 0`` is ``clip``; with either at 1 it is the sign.

    Hardness ``h ≥ 1`` sets both to ``1 − 1/h``: 1 is ``clip``, 2 is ``L(½, ½)``, ∞ is the sign. On this path the
    slope between the levels stays 1. A value below 1 counts as 1.

    Where a layer scales its weights by ``mean|w|`` (v), the levels are ±v from the start: ``v · L(w / v)``.

    Args:
        hardness: h, 1 by default.
        rho: holds ρ fixed, in [0, 1); ``None`` lets it follow h.
        varrho: holds ϱ fixed, in [0, 1); ``None`` lets it follow h. With both fixed there is no hardness.

    Raises:
        UsageError: a share outside [0, 1), or a hardness where both shares are fixed.

    Source: Dockhorn et al. 2021 (ProxConnect).
    """

    default_hardness: ClassVar[float | None] = 1.0
    #: whether F stays at the levels beyond them
    bounded = True

    def __init__(self, hardness: float | None = None, rho: float | None = None, varrho: float | None = None) -> None:
        super().__init__(hardness)
        for name, share in (("rho", rho), ("varrho", varrho)):
            if share is not None and not 0 <= share < 1:
                raise UsageError(f"{name} must lie in [0, 1), found {share}")
        if rho is not None and varrho is not None:
            if hardness is not None:
                raise UsageError(f"rho and varrho are both fixed, so hardness={hardness} would change nothing")
            self.hardness = None
        self.rho, self.varrho = rho, varrho

    def _left(self, h: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Return ``1 − ρ`` and ``1 − ϱ``: near the sign these keep the digits that ρ and ϱ would lose."""
        follows = 1.0 if h is None else 1 / h.clamp_min(1)
        return follows if self.rho is None else 1 - self.rho, follows if self.varrho is None else 1 - self.varrho

    def F(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return ``L(ρ, ϱ)`` of ``x``."""
        until, rise = self._left(h)
        # beyond |x| = 1 − ρ the line is above 1, so one minimum stands for both cases
        magnitude = 1 - rise + _wide(x).abs() * (rise / until)
        return (magnitude.clamp_max(1) if self.bounded else magnitude).to(x.dtype) * hard(x)

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return 1 everywhere."""
        return torch.ones_like(x)

    def value(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return ``scale · L(x / scale)`` while soft, ``scale · sign(x)`` once hard; see `Quantizer.value`."""
        if scale is None or self.finished or self._hardened:
            return super().value(x, scale)
        tiny = torch.finfo(scale.dtype).tiny  # a filter of zeros has scale 0
        return self.F(x / scale.clamp_min(tiny), self.hardness) * scale

    def pull(self, grad: Tensor, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return ``grad`` itself."""
        return grad

    def extra_repr(self) -> str:
        """Show the hardness and what is fixed."""
        fixed = [f"{name}={share}" for name, share in (("rho", self.rho), ("varrho", self.varrho)) if share is not None]
        return ", ".join([*filter(None, [super().extra_repr()]), *fixed])


class PARQ(ProxLinear):
    """``F = clip(h·x, −1, 1)``, ``B = 1``: the ``ϱ = 0`` member, a line of slope h (``1 − ρ = 1/h``).

    Args:
        hardness: the slope h ≥ 1, 1 by default.

    Source: Jin et al., PARQ, for one bit.
    """

    def __init__(self, hardness: float | None = None) -> None:
        super().__init__(hardness, varrho=0.0)


class BinaryRelax(ProxLinear):
    """``F = sign(x) · [ϱ + (1 − ϱ)|x|]`` on ``|x| ≤ 1`` and the sign outside, ``B = 1``: the ``ρ = 0`` member.

    With ``ϱ = 1 − 1/h = λ / (1 + λ)`` it is the weighted mean of x and its sign that BinaryRelax takes, ``λ = h − 1``.

    Args:
        hardness: ``h = 1 + λ ≥ 1``, 1 by default.
        bounded: whether the sign holds outside ``|x| ≤ 1``, as in ProxConnect, or the weighted mean goes on, as in
            BinaryRelax. Rules that step from the quantized weight need the latter under ``weight_scale``: cut off at
            ``mean|w|`` again and again, weights shrink to the smallest of them.

    Source: Yin et al. 2018 (BinaryRelax).
    """

    def __init__(self, hardness: float | None = None, bounded: bool = True) -> None:
        super().__init__(hardness, rho=0.0)
        self.bounded = bounded
