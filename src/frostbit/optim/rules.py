"""The rules: Bop, Bop2ndOrder, CEMA and SGDAT, each as filter, statistic and threshold.

`frostbit.optim.reference` states the same rules for one weight in plain arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from frostbit.optim.base import FRACTION, NOT_NEGATIVE, POSITIVE, FlipOptimizer, Group, Ops, Range, Some
from frostbit.optim.checks import nearest

BiasCorrection = Literal["none", "paper", "adam"]
BIAS_CORRECTIONS = ("none", "paper", "adam")


class Bop(FlipOptimizer):
    """``m ← m + γ(g − m)``; a weight flips where ``w·m > τ``, strictly.

    Args:
        params: weights that are ±1, see `FlipOptimizer`.
        threshold: τ ≥ 0. At 0 a weight takes the sign that the averaged gradient asks for.
        gamma: γ in (0, 1]: the average remembers about 1/γ steps, which should be fewer than the run has.

    Source: Helwegen et al., Latent Weights Do Not Exist (arXiv 1906.02107), algorithm 1.
    """

    moments = ("m",)
    ranges: ClassVar[dict[str, Range]] = {"threshold": NOT_NEGATIVE, "gamma": FRACTION}

    def __init__(self, params: Iterable[Any], threshold: float = 1e-8, gamma: float = 1e-4) -> None:
        super().__init__(params, {"threshold": threshold, "gamma": gamma})

    def filter_(self, op: Ops, g: Some, moments: Sequence[Some], group: Group) -> None:
        """Update m."""
        op.lerp_(moments[0], g, group["gamma"])

    def flips_where(self, op: Ops, w: Some, moments: Sequence[Some], group: Group, step: int) -> Some:
        """Return where ``w·m > τ``."""
        x = op.mul(moments[0], w)
        op.gt_(x, group["threshold"])
        return x


class Bop2ndOrder(FlipOptimizer):
    """Bop with a second moment: ``m ← m + γ(g − m)``, ``v ← v + σ(g² − v)``; flips where ``w·s > τ``, strictly.

    The statistic s depends on ``bias_correction``:

    * ``"none"``: ``m / (√v + ε)``, the authors' biased form;
    * ``"paper"``: ``(m/γ) / (√(v/σ) + ε)``, as in the authors' code: constant factors, not a correction that fades;
    * ``"adam"``: ``m̂ / (√v̂ + ε)`` with ``m̂ = m / (1 − (1−γ)^t)`` and ``v̂ = v / (1 − (1−σ)^t)``.

    Args:
        params: weights that are ±1, see `FlipOptimizer`.
        threshold: τ ≥ 0. s has no unit, so τ does not depend on the gradient's scale.
        gamma: γ in (0, 1].
        sigma: σ in (0, 1].
        bias_correction: one of the names above.
        eps: ε > 0.

    Source: Suarez-Ramirez et al., A Bop and Beyond (arXiv 2104.05124).
    """

    moments = ("m", "v")
    ranges: ClassVar[dict[str, Range]] = {
        "threshold": NOT_NEGATIVE,
        "gamma": FRACTION,
        "sigma": FRACTION,
        "eps": POSITIVE,
    }

    def __init__(
        self,
        params: Iterable[Any],
        threshold: float = 1e-6,
        gamma: float = 1e-7,
        sigma: float = 1e-3,
        bias_correction: BiasCorrection = "none",
        eps: float = 1e-10,
    ) -> None:
        own = {"threshold": threshold, "gamma": gamma, "sigma": sigma, "bias_correction": bias_correction, "eps": eps}
        super().__init__(params, own)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch, after a look at its hyper-parameters."""
        name = (self.defaults | param_group)["bias_correction"]
        if name not in BIAS_CORRECTIONS:
            raise ValueError(f"unknown bias_correction {name!r}: {nearest(str(name), BIAS_CORRECTIONS)}")
        super().add_param_group(param_group)

    def filter_(self, op: Ops, g: Some, moments: Sequence[Some], group: Group) -> None:
        """Update m and v."""
        m, v = moments
        op.lerp_(m, g, group["gamma"])
        # not v·(1−σ) + σg²: in float32, 1 − 1e-7 is off by a fifth of 1e-7
        excess = op.addcmul(v, g, g, value=-1)
        op.add_(v, excess, alpha=-group["sigma"])

    def flips_where(self, op: Ops, w: Some, moments: Sequence[Some], group: Group, step: int) -> Some:
        """Return where ``w·s > τ``, written as ``√v − w·m·√b/(aτ) < −ε√b`` for ``s = (m/a) / (√(v/b) + ε)``."""
        m, v = moments
        if group["threshold"] == 0:  # s and m have one sign
            x = op.mul(m, w)
            op.gt_(x, 0)
            return x
        a, b = corrections(group, step)
        x = op.sqrt(v)
        op.addcmul_(x, m, w, value=-math.sqrt(b) / (a * group["threshold"]))
        op.lt_(x, -group["eps"] * math.sqrt(b))
        return x


def corrections(group: Group, step: int) -> tuple[float, float]:
    """Return what m and v are divided by.

    Args:
        group: with ``gamma``, ``sigma`` and ``bias_correction``.
        step: number of updates that m and v have seen, at least 1.

    Returns:
        (a, b).
    """
    gamma, sigma = group["gamma"], group["sigma"]
    if group["bias_correction"] == "paper":
        return gamma, sigma
    if group["bias_correction"] == "adam":
        return 1 - (1 - gamma) ** step, 1 - (1 - sigma) ** step
    return 1.0, 1.0


class CEMA(FlipOptimizer):
    """Two averages in a row: ``μ ← μ + γ(g − μ)``, ``z ← z + α(μ − z)``; a weight flips where ``w·z > 0``.

    α is the group's ``lr``: the authors let it follow the learning-rate schedule, and under this name any torch
    scheduler drives it.

    Args:
        params: weights that are ±1, see `FlipOptimizer`.
        lr: α in (0, 1].
        gamma: γ in (0, 1].

    Source: Quist et al., Understanding Weight-Magnitude Hyperparameters in Training Binary Networks (2023).
    """

    moments = ("mu", "z")
    ranges: ClassVar[dict[str, Range]] = {"lr": FRACTION, "gamma": FRACTION}

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, gamma: float = 1e-1) -> None:
        super().__init__(params, {"lr": lr, "gamma": gamma})

    def filter_(self, op: Ops, g: Some, moments: Sequence[Some], group: Group) -> None:
        """Update μ, then z."""
        mu, z = moments
        op.lerp_(mu, g, group["gamma"])
        op.lerp_(z, mu, group["lr"])

    def flips_where(self, op: Ops, w: Some, moments: Sequence[Some], group: Group, step: int) -> Some:
        """Return where ``w·z > 0``."""
        x = op.mul(moments[1], w)
        op.gt_(x, 0)
        return x


class SGDAT(FlipOptimizer):
    """SGD with an adaptive threshold: ``m ← m − η·g``; ``w ← sign(m)`` where ``|m| > τ·n``, n the weight's own flips.

    m sums up, nothing fades: a weight that has flipped often needs a larger sum to flip again. Only η/τ matters.

    Args:
        params: weights that are ±1, see `FlipOptimizer`.
        lr: η > 0.
        threshold: τ ≥ 0.

    Source: Shan et al., SGDAT: an optimization method for binary neural networks (2023).
    """

    moments = ("m", "n")
    ranges: ClassVar[dict[str, Range]] = {"lr": POSITIVE, "threshold": NOT_NEGATIVE}

    def __init__(self, params: Iterable[Any], lr: float = 1e-2, threshold: float = 1e-6) -> None:
        super().__init__(params, {"lr": lr, "threshold": threshold})

    def filter_(self, op: Ops, g: Some, moments: Sequence[Some], group: Group) -> None:
        """Update m."""
        op.add_(moments[0], g, alpha=-group["lr"])

    def flips_where(self, op: Ops, w: Some, moments: Sequence[Some], group: Group, step: int) -> Some:
        """Return where ``w·m + τ·n < 0``: only a weight whose sign is not m's can change."""
        m, n = moments
        x = op.mul(n, group["threshold"])
        op.addcmul_(x, m, w)
        op.lt_(x, 0)
        return x

    def flipped_(self, op: Ops, mask: Some, moments: Sequence[Some]) -> None:
        """Count each weight's flips."""
        op.add_(moments[1], mask)
