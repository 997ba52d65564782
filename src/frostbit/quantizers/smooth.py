"""Smooth members: F is continuous and B is its exact derivative; a progression makes them hard."""

from __future__ import annotations

import torch
from torch import Tensor

from frostbit.quantizers.base import Quantizer, pass_inside


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

    def pull(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return ``grad`` where ``|x| ≤ 1``."""
        return pass_inside(grad, x)
