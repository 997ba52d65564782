"""Random flips and crops of whole batches.

Drawing the choices and applying them are separate functions, so that each of several processes can draw the
choices of the whole global batch and apply those of its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from frostbit.errors import UsageError
from frostbit.registry import check_choice

CropPer = Literal["image", "batch"]


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    Args:
        images: ``[B, C, H, W]``, any dtype.
        chosen: bool ``[B]``, on the device of ``images``.

    Returns:
        ``[B, C, H, W]``.
    """
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def crop(images: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Shift images inside a frame of zeros: ``out[b, :, y, x] = padded[b, :, y + dy_b, x + dx_b]``.

    After normalization zero is the data set's mean colour, so do this last.

    Args:
        images: ``[B, C, H, W]``.
        offsets: int64 ``[B, 2]`` (dy, dx) or ``[1, 2]`` for one shift of all, in ``[0, 2 * pad]``, on
            the CPU; ``pad`` leaves an image where it is.
        pad: width of the frame, >= 0.

    Returns:
        ``[B, C, H, W]``, contiguous.
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (pad, pad, pad, pad))
    if len(offsets) == 1:
        dy, dx = offsets[0].tolist()
        return padded[..., dy : dy + height, dx : dx + width].contiguous()
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view [B, C, 2 pad + 1, 2 pad + 1, H, W]
    offsets = offsets.to(images.device, non_blocking=True)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, offsets[:, 0], offsets[:, 1]]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: ``[B, C, H, W]``.
        generator: a CPU generator.

    Returns:
        ``[B, C, H, W]``.
    """
    return flip(images, _draw_flips(len(images), generator).to(images.device))


def random_crop(images: Tensor, pad: int, generator: torch.Generator, per: CropPer = "image") -> Tensor:
    """Shift images by up to ``pad`` pixels in each direction, uniformly, zeros moving in.

    Args:
        images: ``[B, C, H, W]``, normalized.
        pad: largest shift, >= 0.
        generator: a CPU generator.
        per: ``"image"`` draws a shift for each image, ``"batch"`` one for all.

    Returns:
        ``[B, C, H, W]``.

    Raises:
        UsageError: unknown ``per``.
    """
    return crop(images, _draw_offsets(len(images), pad, generator, per), pad)


def _draw_flips(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator, dtype=torch.bool)


def _draw_offsets(count: int, pad: int, generator: torch.Generator, per: CropPer) -> Tensor:
    check_choice("crop_per", per, ("image", "batch"))
    return torch.randint(2 * pad + 1, (count if per == "image" else 1, 2), generator=generator)


@dataclass(frozen=True)
class Augment:
    """What is done to training images.

    Args:
        flip: mirror each image left to right with probability 1/2.
        crop_pad: largest random shift in pixels, >= 0; 0 for none.
        crop_per: one shift per ``"image"``, or one per ``"batch"`` (cheaper, weaker).
        crop_scale: streamed images alone: smallest share of the area that a random crop is cut from, in (0, 1];
            ``None`` cuts the centre. See `frostbit.data.stream.draw_boxes`.

    Raises:
        UsageError: ``crop_pad`` is negative or no integer, ``crop_scale`` out of its range, ``crop_per`` unknown.
    """

    flip: bool = True
    crop_pad: int = 0
    crop_per: CropPer = "image"
    crop_scale: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.crop_pad, int) or self.crop_pad < 0:
            raise UsageError(f"crop_pad must be an integer >= 0, found {self.crop_pad!r}")
        check_choice("crop_per", self.crop_per, ("image", "batch"))
        if self.crop_scale is not None and not 0 < self.crop_scale <= 1:
            raise UsageError(f"crop_scale must be in (0, 1], found {self.crop_scale!r}")

    def apply(self, images: Tensor, generator: torch.Generator, batch: int, rows: slice) -> Tensor:
        """Augment some rows of a batch with the choices drawn for all of it.

        Args:
            images: those rows, ``[len(rows), C, H, W]``, normalized.
            generator: a CPU generator.
            batch: size of the whole batch.
            rows: which rows of it ``images`` are.

        Returns:
            ``[len(rows), C, H, W]``, equal to the same rows of the whole batch augmented at once.
        """
        if self.flip:
            chosen = _draw_flips(batch, generator)[rows]
            images = flip(images, chosen.to(images.device, non_blocking=True))
        if self.crop_pad:
            offsets = _draw_offsets(batch, self.crop_pad, generator, self.crop_per)
            images = crop(images, offsets[rows] if self.crop_per == "image" else offsets, self.crop_pad)
        return images
