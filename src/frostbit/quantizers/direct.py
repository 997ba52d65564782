"""The direct weight: the parameter itself is ±1, and a flip optimizer moves it."""

from __future__ import annotations

from typing import ClassVar

from frostbit.quantizers.surrogates import STEIdentity


class Direct(STEIdentity):
    """``F = sign``, ``B = 1``, over a parameter that is ±1 itself: its gradient is the evidence for or against a flip.

    A layer that is given it turns its weight into signs, and does so again whenever a ``state_dict`` is loaded.
    Such weights need a flip optimizer (`frostbit.optim`), and flip optimizers need such weights.

    Source: Helwegen et al., Latent Weights Do Not Exist (arXiv 1906.02107).
    """

    direct: ClassVar[bool] = True
