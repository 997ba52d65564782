"""The flip rules for one weight, in plain arithmetic: what the fast ones are held against.

Averages are kept as float32 numbers, as the fast rules keep them, and each is rounded where those round; statistics
are computed in double precision. Each function takes the weight (±1), its gradient and what is remembered, and
returns the weight after the step and what is to be remembered.
"""

from __future__ import annotations

import math
import struct
from typing import Any


def single(x: float) -> float:
    """Return ``x`` rounded to float32."""
    value: float = struct.unpack("f", struct.pack("f", x))[0]
    return value


def average(old: float, new: float, share: float) -> float:
    """Return ``old + share·(new − old)`` as `torch.lerp` rounds it: from the nearer end, so that share 1 is exact."""
    share, difference = single(share), single(new - old)
    if share < 0.5:
        return single(old + share * difference)
    return single(new - difference * single(1 - share))


def bop(w: float, g: float, m: float, *, threshold: float, gamma: float) -> tuple[float, float]:
    """Return (w, m) after one step of Bop."""
    m = average(m, g, gamma)
    return (-w if w * m > threshold else w), m


def bop2ndorder_statistic(
    m: float, v: float, step: int, *, gamma: float, sigma: float, bias_correction: str, eps: float = 1e-10
) -> float:
    """Return s for averages m and v that have seen ``step`` gradients."""
    if bias_correction == "paper":
        return (m / gamma) / (math.sqrt(v / sigma) + eps)
    if bias_correction == "adam":
        m = m / (1 - (1 - gamma) ** step)
        v = v / (1 - (1 - sigma) ** step)
    return m / (math.sqrt(v) + eps)


def bop2ndorder(
    w: float, g: float, m: float, v: float, step: int, *, threshold: float, gamma: float, sigma: float, **options: Any
) -> tuple[float, float, float]:
    """Return (w, m, v) after step number ``step`` (from 1) of Bop2ndOrder.

    Args:
        w: the weight.
        g: its gradient.
        m: first moment.
        v: second moment.
        step: number of this step.
        threshold: τ.
        gamma: γ.
        sigma: σ.
        **options: ``bias_correction`` and ``eps``.
    """
    m = average(m, g, gamma)
    v = single(v - single(sigma) * single(v - g * g))
    s = bop2ndorder_statistic(m, v, step, gamma=gamma, sigma=sigma, **options)
    return (-w if w * s > threshold else w), m, v


def cema(w: float, g: float, mu: float, z: float, *, lr: float, gamma: float) -> tuple[float, float, float]:
    """Return (w, mu, z) after one step of CEMA; ``lr`` is α."""
    mu = average(mu, g, gamma)
    z = average(z, mu, lr)
    return (-w if w * z > 0 else w), mu, z


def sgdat(w: float, g: float, m: float, n: float, *, lr: float, threshold: float) -> tuple[float, float, float]:
    """Return (w, m, n) after one step of SGDAT."""
    m = single(m - single(lr) * g)
    new = math.copysign(1.0, m) if abs(m) > threshold * n else w
    return new, m, n + (new != w)
