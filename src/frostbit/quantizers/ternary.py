"""Three values instead of two: the other extreme quantizer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frostbit.errors import UsageError
from frostbit.quantizers.base import Quantizer, hard, pass_inside


class Ternary(Quantizer):
    """``F = sign(x) · 1{|x| > Δ}``, ``B = 1{|x| ≤ 1}``: values in {−1, 0, +1}.

    Under StoMPP, entries freeze to these values. A ternary value takes two bits, so such layers count as real
    multiply-accumulates and a network with one of them is not packed.

    Args:
        threshold: Δ ≥ 0, or its multiple of the mean magnitude. At 0 only zeros become 0.
        relative: whether Δ is ``threshold · mean|x|`` over the whole tensor, as weights need, whose size is their
            layer's own. An input's mean is that of the batch, so inputs want a fixed Δ.

    Raises:
        UsageError: a negative or infinite threshold.

    Source: Li, Liu, Ternary weight networks (arXiv 1605.04711), where ``Δ = 0.7 · mean|w|``.
    """

    def __init__(self, threshold: float = 0.5, relative: bool = False) -> None:
        super().__init__()
        if not 0 <= threshold < math.inf:
            raise UsageError(f"threshold of a ternary quantizer must be at least 0 and finite, found {threshold}")
        self.threshold, self.relative = threshold, relative

    @property
    def binary(self) -> bool:
        """No: three values."""
        return False

    def extreme(self, x: Tensor) -> Tensor:
        """Return −1, 0 or +1 for every entry; NaN stays NaN."""
        magnitude = x.detach().abs()
        limit = self.threshold * magnitude.mean() if self.relative else self.threshold
        return hard(x) * (magnitude > limit) + 0.0  # no -0 among the zeros

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return 1 for ``|x| ≤ 1``, else 0."""
        return pass_inside(torch.ones_like(x), x)

    def pull(self, grad: Tensor, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return ``grad`` where ``|x| ≤ 1``."""
        return pass_inside(grad, x.to(grad.dtype))

    def extra_repr(self) -> str:
        """Show the threshold."""
        return f"threshold={self.threshold}{' · mean|x|' if self.relative else ''}"
