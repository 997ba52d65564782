"""Narrow accumulators by fake quantization: sums of ±1 products as few bits would hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from frostbit.errors import UsageError


@dataclass(frozen=True)
class Accumulator:
    """Rounds an integer sum to multiples of a step s and saturates it to ``bits`` signed bits.

    The step follows from the number of products alone, so nothing is stored: s is the smallest power of two, at least
    1, with ``(2^(bits−1) − 1)·s ≥ 4√K``. A sum of K random signs has standard deviation √K, so that few saturate; with
    8 bits s is 1, and nothing is rounded, up to K = 1008.

    The sum itself is exact, then rounded (halves upwards, an addition and a shift) and saturated once. The gradient
    passes within the range and stops where it saturates.

    Args:
        bits: width of the result in two's complement, from 2 to 32.
        fan_in: number of products in a sum, K.

    Source: setting BWAA of Lu et al., ProxConnect++ (arXiv 2402.17710); the rule is ours.
    """

    bits: int
    fan_in: int

    @property
    def step(self) -> int:
        """The step s."""
        step = 1
        while (2 ** (self.bits - 1) - 1) * step < 4 * math.sqrt(self.fan_in):
            step *= 2
        return step

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest value."""
        top: int = 2 ** (self.bits - 1)
        return -top * self.step, (top - 1) * self.step

    def hold(self, sums: Tensor) -> Tensor:
        """Return integer-valued ``sums``, of any shape and floating dtype, as the accumulator holds them."""
        step = self.step
        rounded = sums if step == 1 else (sums / step + 0.5).floor() * step
        return rounded.clamp(*self.limits)

    def inside(self, sums: Tensor) -> Tensor:
        """Return where ``sums`` lie within the range, as bool."""
        low, high = self.limits
        return (sums >= low) & (sums <= high)


def check_bits(bits: int | None) -> int | None:
    """Return ``bits`` if an accumulator can have that many, or ``None``.

    Raises:
        UsageError: no integer from 2 to 32.
    """
    if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 32):
        raise UsageError(f"accumulator_bits must be a whole number from 2 to 32, found {bits!r}")
    return bits
