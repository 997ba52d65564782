"""The ProxConnect++ criterion: does a pair (F, B) follow a proximal quantizer?

A pair decomposes if ``F = T∘P`` and ``B = T'∘P`` with P a proximal map (monotone, compact-valued, closed graph).
Training with it is then ProxConnect on the loss ``ℓ∘T``, whose guarantee carries over. That is so iff F and B are
functions of ``P(w) = ∫ dF/B`` and this P is monotone (Lu et al., arXiv
2402.17710).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from frostbit.errors import UsageError
from frostbit.quantizers.base import Quantizer, hard
from frostbit.quantizers.masked import Masked
from frostbit.quantizers.prox import PARQ, BinaryRelax, ProxLinear
from frostbit.quantizers.smooth import Clip, SmoothApproxSign, SmoothEDE, SmoothSwishSign, Steep, Tanh
from frostbit.quantizers.surrogates import EDE, ApproxSign, Sign, STEClip, STEIdentity, SwishSign

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Decomposition:
    """The verdict on a pair (F, B).

    Attributes:
        proximal: whether it decomposes.
        why: one sentence; for a pair that fails also what repairs it.
        P: the proximal map ``∫ dF/B``, elementwise on tensors of any shape; ``None`` where the integral is infinite.
            Its free constant is chosen so that P and F agree at 0.
        T: the outer map, with ``F = T∘P``; ``None`` where P is infinite or not monotone. Where the pair fails,
            ``B = T'∘P`` does not hold.
    """

    proximal: bool
    why: str
    P: Map | None
    T: Map | None

    def __str__(self) -> str:
        return f"{'proximal' if self.proximal else 'not proximal'}: {self.why}"


def decompose(quantizer: Quantizer, *, limit: float = 4.0, numerical: bool = False) -> Decomposition:
    """Return the verdict on a quantizer's pair; `frostbit.quantizers.decompose` also takes names and functions.

    Args:
        quantizer: in its present state; a finished one has the sign as F.
        limit: the numerical test looks at ``|w| ≤ limit``.
        numerical: integrate even where the answer is known in closed form.

    Returns:
        The verdict with P and T.

    Raises:
        UsageError: F or B is not finite somewhere, or does not act on each entry alone.
    """
    if isinstance(quantizer, Masked):
        raise UsageError("a masked quantizer acts by position, not by value: decompose its smooth member instead")
    known = None if numerical or quantizer.finished else _closed_form(quantizer)
    return known or _integrate(quantizer, limit)


_REPAIRS = {STEClip: "clip", ApproxSign: "smooth_approx_sign", SwishSign: "bnn++", EDE: "smooth_ede"}
_DERIVATIVES = (Clip, SmoothSwishSign, Tanh, SmoothApproxSign, SmoothEDE)


def _closed_form(quantizer: Quantizer) -> Decomposition | None:
    """Return what is known; a subclass may have changed F or B, so the class must be the very one."""
    kind = type(quantizer)
    hardness = None if quantizer.hardness is None else quantizer.hardness.clone()  # the verdict is on this one

    def forward(w: Tensor) -> Tensor:
        return quantizer.F(w, hardness)

    if kind in (STEIdentity, ProxLinear, PARQ, BinaryRelax):
        return Decomposition(True, "B is 1, so P is F itself, a monotone map, and T is the identity", forward, _same)
    at_0 = float(quantizer.B(torch.zeros(1), hardness))
    if kind in _DERIVATIVES:
        if isinstance(quantizer, Steep) and quantizer.unit_slope:
            assert hardness is not None
            rate = float(kind().B(torch.zeros(1), hardness))  # what B has been divided by
            why = "B is the derivative of F divided by its value at 0, so P is a multiple of w and T is F of that"
            return Decomposition(True, why, lambda w: w * rate, lambda p: forward(p / rate))
        return Decomposition(True, "B is the derivative of F, so P is the identity and T is F", _same, forward)
    if kind is Sign:
        return _infinite("F jumps at w = 0, where B is 0", "a positive constant B, as in 'ste_identity'")
    if kind in _REPAIRS:
        repair = f"the forward of {_REPAIRS[kind]!r}, whose derivative this B is"
        why = f"P is a multiple of sign(w), and B is no function of that; repaired by {repair}"
        return Decomposition(False, why, lambda w: hard(w) / at_0, lambda p: p * at_0)
    return None


def _same(x: Tensor) -> Tensor:
    return x


def _infinite(where: str, repair: str) -> Decomposition:
    return Decomposition(False, f"P = ∫dF/B is infinite, because {where}; repaired by {repair}", None, None)


_GAP = 1e-10  # times the limit: two neighbouring nodes this close are the two sides of a jump
_ZERO = 1e-9  # times max|B|: B counts as 0 below
_ROUNDING = 1e-14  # times max|F|: F counts as constant below


@dataclass(frozen=True)
class _Samples:
    """F and B on a grid that has both sides of each jump, and what happens in each of its intervals."""

    w: Tensor
    f: Tensor
    b: Tensor
    mean: Tensor  # of B, per interval
    zero: Tensor  # B vanishes in the whole interval
    gap: Tensor  # the interval is a point at which F, B or the sign of B jumps

    @property
    def rise(self) -> Tensor:
        return self.f.diff()

    @property
    def jump(self) -> Tensor:
        return self.gap & (self.rise.abs() > 1e-6 * self.f.abs().max())


def _sample(quantizer: Quantizer, limit: float) -> _Samples:
    def checked(name: str, f: Map) -> Map:
        def call(w: Tensor) -> Tensor:
            y = f(w).double()
            if y.shape != w.shape:
                raise UsageError(
                    f"{name} must act on each entry: expected shape {tuple(w.shape)}, found {tuple(y.shape)}"
                )
            if not y.isfinite().all():
                raise UsageError(
                    f"{name} must be finite on |w| ≤ {limit:g}, found {y[~y.isfinite()][0]:g} "
                    f"at w = {w[~y.isfinite()][0]:.3g}"
                )
            return y

        return call

    forward = checked("F", quantizer.value)
    backward = checked("B", lambda w: quantizer.B(w, quantizer.hardness))
    # even steps for the shape at large, geometric ones towards 0 for maps as steep as hardness 1e5
    fine = torch.logspace(-6, 0, 800, dtype=torch.float64) * limit
    w = torch.cat([torch.linspace(-limit, limit, 4097, dtype=torch.float64), fine, -fine]).unique()
    size = backward(w).abs().max()
    nothing = _ZERO * size

    def sign(x: Tensor) -> Tensor:
        y = backward(x)
        return (y > nothing).double() - (y < -nothing).double()

    least = [(forward, 1e-6 * float(forward(w).abs().max())), (backward, 1e-6 * float(size)), (sign, 0.5)]
    new = w
    for _ in range(4):  # a grid interval may hold several jumps: each round finds one
        beside = torch.isin(w[:-1], new) | torch.isin(w[1:], new)
        new = torch.cat([_jumps(f, w[:-1][beside], w[1:][beside], jump, _GAP * limit) for f, jump in least])
        if not len(new):
            break
        w = torch.cat([w, new]).unique()
    f, b = forward(w), backward(w)
    middle = backward((w[:-1] + w[1:]) / 2)
    gap = w.diff() <= _GAP * limit
    largest = torch.stack([b[:-1].abs(), middle.abs(), b[1:].abs()]).amax(0)
    simpson = (b[:-1] + 4 * middle + b[1:]) / 6
    mean = torch.where(gap, (b[:-1] + b[1:]) / 2, simpson)
    return _Samples(w, f, b, mean, torch.where(gap, mean.abs(), largest) <= nothing, gap)


def _jumps(f: Map, low: Tensor, high: Tensor, least: float, gap: float) -> Tensor:
    """Return both sides of jumps of ``f`` by more than ``least``, found by bisection inside the intervals given."""
    at_low, at_high = f(low), f(high)
    open_ = high - low > gap
    for step in range(48):
        if step % 6 == 0:  # where f is continuous, its change soon falls below
            kept = open_ & ((at_high - at_low).abs() > least)
            low, high, at_low, at_high = low[kept], high[kept], at_low[kept], at_high[kept]
            open_ = torch.ones_like(low, dtype=torch.bool)
        middle = (low + high) / 2
        y = f(middle)
        left = (y - at_low).abs() >= (at_high - y).abs()
        low, at_low = torch.where(left, low, middle), torch.where(left, at_low, y)
        high, at_high = torch.where(left, middle, high), torch.where(left, y, at_high)
    jump = (at_high - at_low).abs() > least
    return torch.cat([low[jump], high[jump]])


def _integrate(quantizer: Quantizer, limit: float) -> Decomposition:
    s = _sample(quantizer, limit)
    width = s.w.diff()
    determined = ~s.gap & ~s.zero
    density = torch.where(determined, s.rise / (width * s.mean), 0.0)
    positive = density[density > 0]
    usual = float(positive.median()) if len(positive) else 1.0

    # where B is 0, F has to stand still: dF = B dP leaves dP open there, anything else makes it infinite
    moving = s.rise.abs() > 10 * usual * _ZERO * s.b.abs().max() * width + _ROUNDING * s.f.abs().max()
    infinite = s.zero & torch.where(s.gap, s.jump, moving)
    if infinite.any():
        i = int(infinite.nonzero()[0])
        where = f"F {'jumps' if s.jump[i] else 'moves'} at w = {_at(s.w[i])}, where B is 0"
        return _infinite(where, "a positive constant B" if s.jump.any() else "B = F'")

    steps = torch.where(determined, density * width, 0.0)
    steps[s.zero & ~s.gap] = usual * width[s.zero & ~s.gap]  # open: rising P tells as much apart as it can
    steps = torch.where(s.jump, s.rise / s.mean, steps)
    still = s.rise.abs() <= _ROUNDING * s.f.abs().max()
    flat = determined & still
    steps[flat] = 0.0
    falling = (steps < 0) & ~still
    total = torch.cat([torch.zeros(1, dtype=steps.dtype), steps.cumsum(0)])
    center = int((s.w == 0).nonzero())
    left = center - int(s.jump[center - 1])
    total += (s.f[left] + s.f[center]) / 2 - (total[left] + total[center]) / 2
    p = _interpolation(s.w, total, None)
    if falling.any():
        i = int(falling.nonzero()[0])
        repair = "B = F'" if not s.jump.any() else "B = 1" if bool((s.rise >= 0).all()) else "a monotone F with B = 1"
        why = f"P = ∫dF/B falls at w = {_at(s.w[i])}, where F and B have opposite signs of slope and factor"
        return Decomposition(False, f"{why}; repaired by {repair}", p, None)

    rising = (steps > 0).nonzero().flatten()
    nodes = torch.cat([rising, rising[-1:] + 1]) if len(rising) else torch.tensor([center])
    t = _interpolation(total[nodes], s.f[nodes], (s.b[rising], s.b[rising + 1]))
    blurred = _flat_with_two_factors(s, flat)
    if blurred is not None:
        a, b, one, other = blurred
        why = f"B is no function of P: F and P stand still from w = {a} to {b}, where B goes from {one} to {other}"
        return Decomposition(False, f"{why}; repaired by a forward whose derivative is B, or by B = 1", p, t)
    return Decomposition(True, "P = ∫dF/B is monotone, and F and B are functions of it", p, t)


def _flat_with_two_factors(s: _Samples, flat: Tensor) -> tuple[str, str, str, str] | None:
    """Return the first stretch on which P stands still while B does not: from, to, and two values of B."""
    # B may not change across an end of the stretch either, unless P jumps there: T has one slope at that value of P
    members = flat | (s.gap & ~s.jump)
    edges = torch.cat([torch.tensor([False]), members, torch.tensor([False])]).int().diff()
    tolerance = 1e-6 * s.b.abs().max()
    # a forward that saturates little by little stands still for the computer only
    fading = ~flat & ~s.gap & ~s.zero & (s.rise.abs() < 1e-10 * s.f.abs().max())
    for start, stop in zip((edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten(), strict=True):
        i, j = int(start), int(stop)
        b = s.b[i : j + 1]
        if not flat[i:j].any() or b.max() - b.min() <= tolerance:
            continue
        if (i > 0 and fading[i - 1]) or (j < len(fading) and fading[j]):
            continue
        return _at(s.w[i]), _at(s.w[j]), f"{b[0]:.5g}", f"{b[(b - b[0]).abs().argmax()]:.5g}"
    return None


def _at(w: Tensor) -> str:
    return "0" if abs(float(w)) < 1e-9 else f"{float(w):.3g}"


def _interpolation(x: Tensor, y: Tensor, slopes: tuple[Tensor, Tensor] | None) -> Map:
    """Return the map through (x, y), x strictly increasing, continued beyond its ends.

    It is linear between the points, or cubic with the slopes given at the two ends of each interval.
    """
    if len(x) == 1:
        return lambda v: torch.full_like(v, float(y[0]))
    width, rise = x.diff(), y.diff()

    def interpolate(v: Tensor) -> Tensor:
        u = v.double()
        i = torch.searchsorted(x, u, right=True).clamp(1, len(x) - 1) - 1
        share = (u - x[i]) / width[i]
        value = torch.lerp(y[i], y[i + 1], share)
        if slopes is not None:
            before, after = slopes[0][i] * width[i] - rise[i], slopes[1][i] * width[i] - rise[i]
            inside = share.clamp(0, 1)
            value += inside * (1 - inside) * (before * (1 - inside) - after * inside)
            value += torch.where(share < 0, before * share, after * (share - inside))
        return value.to(v.dtype)

    return interpolate
