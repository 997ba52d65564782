"""The direct weight: the parameter itself is ±1, and a flip optimizer moves it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from frostbit.errors import UsageError
from frostbit.quantizers.surrogates import STEIdentity


class Direct(STEIdentity):
    """``F = sign``, ``B = 1``, over a parameter that is ±1 itself: its gradient is the evidence for or against a flip.

    A layer that is given it turns its weight into signs, and does so again whenever a ``state_dict`` is loaded.
    Such weights need a flip optimizer (`frostbit.optim`), and flip optimizers need such weights. Whatever else has
    written one (an average such as EMA, weight decay, Adam) is found out in evaluation mode, where each write costs
    one look at the weight.

    Source: Helwegen et al., Latent Weights Do Not Exist (arXiv 1906.02107).
    """

    direct: ClassVar[bool] = True
    _looked_at: tuple[int, int] | None = None

    def value(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the sign, which is ``x`` itself.

        Raises:
            UsageError: in evaluation mode, ``x`` holds other values than ±1 (a NaN is left to propagate).
        """
        if not (self.training or x.is_meta or torch.compiler.is_compiling()):
            self._look_at(x)
        return super().value(x, scale)

    def _look_at(self, x: Tensor) -> None:
        here = (x.data_ptr(), 0 if x.is_inference() else x._version)
        if here == self._looked_at:
            return
        odd = x.detach()[(x.abs() != 1) & ~x.isnan()]
        if odd.numel():
            raise UsageError(
                f"a direct weight is always -1 or +1, found {odd[0].item():.6g} in one of shape {tuple(x.shape)}: an "
                "average (EMA), weight decay or an optimizer that is no flip optimizer has written it"
            )
        self._looked_at = here
