"""The masked quantizer: a stochastic mask decides which entries are already ±1 (StoMPP)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from frostbit.quantizers.base import Quantizer, hard

Stage = Literal["soft", "mixed", "hard"]


class Masked(Quantizer):
    """``F = M ⊙ sign(x) + (1 − M) ⊙ F_soft(x)``; the gradient is the soft one's where M = 0.

    Where M = 1 the gradient is 0 (STE-free) or that of the surrogate ``ste``. The mask belongs to a progression,
    which sets ``mask`` and ``stage``; both are plain attributes, so a ``state_dict`` does not hold them.

    `set_strength` weakens the surrogate: frozen entries then get that share of its gradient.

    Args:
        soft: the smooth member for entries that are not frozen.
        ste: the surrogate for frozen entries; ``None`` for STE-free training.
        drop_frozen: whether a fully frozen, STE-free quantizer leaves the backward pass (its output then carries
            no autograd history). ``False`` keeps one graph for a whole run, for compilers.
        frozen: the quantizer whose extreme frozen entries take in the sign's place, e.g. `Ternary`; ``None`` for the
            sign.

    Source: Smith & Islam, Layerwise Progressive Freezing (arXiv 2601.22660), the masked forward.
    """

    smooth = True

    def __init__(
        self, soft: Quantizer, ste: Quantizer | None = None, drop_frozen: bool = True, frozen: Quantizer | None = None
    ) -> None:
        super().__init__()
        self.soft = soft
        self.ste = ste
        self.drop_frozen = drop_frozen
        self.frozen = frozen
        self.stage: Stage = "soft"
        self.mask: Tensor | None = None  # bool, broadcast against x: True where frozen
        self._strength: Tensor | None = None  # a tensor, so that its changes recompile no graph; None for 1
        self._silent = False  # whether the strength is 0

    def extreme(self, x: Tensor) -> Tensor:
        """Return what frozen entries become."""
        return hard(x) if self.frozen is None else self.frozen.extreme(x)

    @property
    def binary(self) -> bool:
        """Whether frozen entries are signs."""
        return self.frozen is None or self.frozen.binary

    @property
    def is_sign(self) -> bool:
        """Whether every entry is frozen to its sign."""
        return self.binary and not self.bypassed and (self._hardened or self.stage == "hard")

    @property
    def blocks(self) -> bool:
        """Whether everything is frozen and nothing passes a gradient there."""
        return (
            self._hardened
            or self.shut
            or (self.stage == "hard" and (self.ste is None or self._silent) and self.drop_frozen)
        )

    def set_strength(self, strength: float) -> None:
        """Multiply the surrogate's gradient by ``strength``, at least 0; at 0 the quantizer is STE-free."""
        self._strength = torch.tensor(1.0) if self._strength is None else self._strength
        self._strength.fill_(strength)
        self._silent = strength == 0

    @property
    def frozen_share(self) -> float:
        """Share of frozen entries: 0 before the unit's window, the mask's density in it, 1 after."""
        if self.stage == "mixed" and self.mask is not None:
            return self.mask.float().mean().item()
        return 1.0 if self.stage == "hard" else 0.0

    @property
    def moment(self) -> object:
        """Stage and mask, and what the members say of themselves; see `Quantizer.moment`."""
        mask = None if self.mask is None else (id(self.mask), self.mask._version)
        strength = None if self._strength is None else self._strength._version
        surrogate = None if self.ste is None else (self.ste.moment, strength)
        return self.stage, mask, self._hardened, self.soft.moment, surrogate

    def _mask_for(self, x: Tensor) -> Tensor:
        mask = self.mask
        if mask is None:
            raise RuntimeError("a masked quantizer in transition has no mask: its progression has not set one")
        tail = x.shape[x.dim() - mask.dim() :]
        # not `m not in (1, n)`: a compiler's symbolic sizes do not answer to `in`
        if mask.dim() > x.dim() or any(m != 1 and m != n for m, n in zip(mask.shape, tail, strict=False)):
            raise ValueError(
                f"the mask was drawn for features of shape {tuple(mask.shape)}, found an input of shape "
                f"{tuple(x.shape)}: for inputs of varying size use mask='channel'"
            )
        return mask.to(x.device, x.dtype)

    def value(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the mixture of hard and soft entries; see `Quantizer.value`."""
        if self.stage == "hard" or self._hardened:
            y = self.extreme(x)
            return y if scale is None else y * scale
        soft = self.soft.value(x, scale)  # clip leaves latents their magnitude, others bring them to the scale
        if self.stage == "soft":
            return soft
        # Products with 0 and 1 are exact, so frozen entries are exactly ±1 (a difference hard − soft is not).
        mask = self._mask_for(x)
        frozen = self.extreme(x) if scale is None else self.extreme(x) * scale
        return torch.addcmul(soft * (1 - mask), frozen, mask)

    def pull(self, grad: Tensor, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return the gradient of soft entries, and of frozen ones through ``ste`` if there is one."""
        if self.stage == "hard":
            return self._pull_frozen(grad, x, overwrite)
        if self.stage == "soft":
            return self.soft.pull(grad, x, overwrite)
        mask = self._mask_for(x)
        open_part = self.soft.pull(grad * (1 - mask), x, overwrite=True)
        return open_part if self.ste is None else open_part.add_(self._pull_frozen(grad * mask, x, overwrite=True))

    def _pull_frozen(self, grad: Tensor, x: Tensor, overwrite: bool) -> Tensor:
        if self.ste is None:
            return torch.zeros_like(grad)
        passed = self.ste.pull(grad, x, overwrite)
        return passed if self._strength is None else passed * self._strength

    def scale_of_gradient(self, scale: Tensor) -> Tensor | None:
        """Return the soft member's share where it is in charge, the surrogate's elsewhere."""
        soft = None if self.stage == "hard" else self.soft.scale_of_gradient(scale)
        frozen = None if self.stage == "soft" or self.ste is None else self.ste.scale_of_gradient(scale)
        if self.stage != "mixed" or (soft is None and frozen is None):
            return frozen if self.stage == "hard" else soft
        assert self.mask is not None
        one = torch.ones_like(scale)
        return torch.where(self.mask.to(scale.device), one if frozen is None else frozen, one if soft is None else soft)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the member in charge returns: see `Quantizer.encode`."""
        if self.stage == "hard" and (self.ste is None or self.ste.smooth or not self.binary):
            value = self.extreme(x)  # whatever the surrogate's own forward is
            return value, value.to(torch.int8) if self.ste is None else x
        if self.stage == "hard" and self.ste is not None:
            return self.ste.encode(x)
        return self.soft.encode(x) if self.stage == "soft" else (self.value(x), x)

    def extra_repr(self) -> str:
        """Show the stage and whether frozen entries leave the backward pass."""
        return f"stage={self.stage!r}, drop_frozen={self.drop_frozen}"
