"""Images too many for memory: decoded, cropped and resized when a batch asks for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from frostbit.data.decode import opened
from frostbit.data.sources import RawSplit

CENTRE = 0.875
"""Share of the shorter side that an evaluation crop spans: 224 of 256 pixels."""
_RATIO = math.log(4 / 3)


def draw_boxes(count: int, scale: float, generator: torch.Generator) -> Tensor:
    """Draw random crops: area uniform in ``[scale, 1]``, aspect ratio log-uniform in ``[3/4, 4/3]``, any place.

    Args:
        count: how many.
        scale: smallest share of an image's area, in (0, 1].
        generator: a CPU generator.

    Returns:
        float64 ``[count, 4]``: area share, aspect ratio, and the place along height and width, both in ``[0, 1)``.
    """
    draws = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    draws[:, 0] = scale + (1 - scale) * draws[:, 0]
    draws[:, 1] = ((2 * draws[:, 1] - 1) * _RATIO).exp()
    return draws


def box_pixels(width: int, height: int, box: Sequence[float] | None) -> tuple[float, float, float, float]:
    """Return a crop as ``(left, upper, right, lower)`` in pixels of an image.

    Args:
        width: of the image.
        height: of the image.
        box: a row of `draw_boxes`, whose sides are cut where they exceed the image's; ``None`` for the central
            square that spans ``CENTRE`` of the shorter side.
    """
    if box is None:
        across = down = CENTRE * min(width, height)
        y = x = 0.5
    else:
        area, ratio, y, x = box
        across = min(math.sqrt(area * ratio * width * height), width)
        down = min(math.sqrt(area / ratio * width * height), height)
    left, upper = x * (width - across), y * (height - down)
    return left, upper, left + across, upper + down


@dataclass(frozen=True, eq=False, repr=False)
class StreamSplit:
    """Images that stay encoded until a batch needs them, and their labels.

    Args:
        raw: the encoded images.
        rows: which of them, in this order.
        size: height and width of the decoded images.
    """

    raw: RawSplit
    rows: Sequence[int]
    size: int
    streams: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"StreamSplit({len(self)} samples of {self.input_shape})"

    @property
    def labels(self) -> Tensor:
        """Labels int64 ``[N]``."""
        return self.raw.labels[torch.as_tensor(self.rows)]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(3, size, size)``."""
        return 3, self.size, self.size

    def to(self, device: torch.device | str) -> StreamSplit:
        """Return the split itself: images are decoded on the CPU."""
        return self

    def take(self, chosen: slice | Tensor, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decode some images.

        A JPEG is decoded at the smallest of its sizes (full, half, quarter, eighth) that the crop can be cut from.

        Args:
            chosen: positions in the split.
            boxes: one crop of `draw_boxes` for each, ``None`` for the centre.

        Returns:
            Images uint8 ``[B, 3, size, size]`` and labels int64 ``[B]``, on the CPU.

        Raises:
            UsageError: an image cannot be decoded.
        """
        import numpy as np
        from PIL.Image import Resampling

        positions = torch.arange(len(self))[chosen].tolist()
        pixels = np.empty((len(positions), self.size, self.size, 3), np.uint8)
        for number, position in enumerate(positions):
            with opened(self.raw, self.rows[position]) as image:
                box = box_pixels(*image.size, None if boxes is None else boxes[number].tolist())
                full = image.size
                shrink = min(box[2] - box[0], box[3] - box[1]) / self.size
                image.draft("RGB", (int(full[0] / shrink), int(full[1] / shrink)) if shrink > 1 else full)
                across, down = image.size[0] / full[0], image.size[1] / full[1]
                box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
                colour = image if image.mode == "RGB" else image.convert("RGB")
                small = colour.resize((self.size, self.size), Resampling.BILINEAR, box=box, reducing_gap=2.0)
                pixels[number] = np.asarray(small)
        labels = self.raw.labels[[self.rows[position] for position in positions]]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels
