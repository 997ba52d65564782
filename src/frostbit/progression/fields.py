"""Mask fields: which entries are frozen, drawn by logical index from (seed, unit, role, draw)."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import torch
from torch import Tensor

RefreshRule = Literal["uniform", "resample"]


class Field:
    """A persistent random field and the mask made of it, for one tensor in transition.

    ``uniform``: a field U of uniform numbers, ``M = (U < p)``; each step a random 1/refresh of U is drawn again, so
    the density is p at every step. ``resample``: each step a random 1/refresh of M itself is drawn again with
    probability p, which lags behind p.

    All numbers come from a CPU generator seeded by (seed, unit, role, draw): the same on every rank and device, and
    independent of what else draws. A step costs O(entries / refresh) random numbers and one comparison.

    Args:
        key: (seed, unit name, role); together with the draw's number it seeds each draw.
        shape: shape of the mask.
        refresh: steps in which the whole field is drawn again once on average; ``None`` never draws again.
        rule: ``"uniform"`` or ``"resample"``.
        device: where the mask lives.
    """

    def __init__(
        self,
        key: tuple[int, str, str],
        shape: tuple[int, ...],
        refresh: float | None,
        rule: RefreshRule,
        device: torch.device,
    ) -> None:
        self.key = key
        self.refresh = refresh
        self.rule = rule
        self.draws = 0
        self.uniform = _rand(shape, self._generator(0)).to(device)
        self.mask = torch.zeros(shape, dtype=torch.bool, device=device)

    def _generator(self, draw: int) -> torch.Generator:
        digest = hashlib.blake2b(repr((*self.key, draw)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def advance(self, p: float) -> None:
        """Draw a share of the field again (not at the first call) and set the mask for probability ``p``.

        Args:
            p: the share of frozen entries wanted, in [0, 1].
        """
        entries = self.uniform.numel()
        again: Tensor | None = None
        if self.draws and self.refresh is not None:
            # whole numbers whose running sum follows draws · entries / refresh, so that small tensors turn over too
            rate = entries / self.refresh
            count = math.floor(self.draws * rate) - math.floor((self.draws - 1) * rate)
            if count:
                generator = self._generator(self.draws)
                again = torch.randint(entries, (count,), generator=generator, device="cpu")
                fresh = _rand((count,), generator)
                # an entry may be drawn twice; which write comes last is up to the threads unless it is the only one
                number = torch.arange(count, dtype=torch.int32, device="cpu")
                latest = torch.empty(entries, dtype=torch.int32, device="cpu")
                latest.scatter_reduce_(0, again, number, "amax", include_self=False)
                last = (latest.gather(0, again) == number).nonzero().view(-1)
                again = again.index_select(0, last).to(self.uniform.device)
                fresh = fresh.index_select(0, last).to(self.uniform.device)
                self.uniform.view(-1)[again] = fresh
        if self.rule == "uniform" or self.draws == 0:
            torch.lt(self.uniform, p, out=self.mask)
        elif again is not None:
            self.mask.view(-1)[again] = self.uniform.view(-1)[again] < p
        self.draws += 1

    def to(self, device: torch.device) -> None:
        """Move to ``device``, if it is elsewhere."""
        if self.mask.device != device:
            self.uniform, self.mask = self.uniform.to(device), self.mask.to(device)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Return the field, the mask and the number of draws, on the CPU."""
        return {"uniform": self.uniform.cpu().clone(), "mask": self.mask.cpu().clone(), "draws": self.draws}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Take over what `state_dict` gave."""
        uniform, mask, draws = state["uniform"], state["mask"], state["draws"]
        assert isinstance(uniform, Tensor)
        assert isinstance(mask, Tensor)
        self.uniform.copy_(uniform)
        self.mask.copy_(mask)
        self.draws = int(draws)


def _rand(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return uniform numbers that are the same whatever torch's default device and dtype are."""
    return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32)
