"""From encoded images to one uint8 tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frostbit.data.sources import RawSplit
from frostbit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F")  # and I;16 in its variants: more than 8 bits, which a conversion to RGB would clip


@dataclass(frozen=True)
class Decoded:
    """Images of one split.

    Args:
        pixels: uint8 arrays, each ``[H, W]`` (grey) or ``[H, W, 3]``, all of one height and width.
        first: where the first image is, for messages.
    """

    pixels: list[NDArray[np.uint8]]
    first: str


def decode(split: RawSplit, rows: Sequence[int], size: int | None) -> Decoded:
    """Decode and resize the chosen rows of a split.

    Args:
        split: encoded images.
        rows: which of them, in this order.
        size: target height and width; ``None`` keeps the size.

    Returns:
        The images, grey ones with one channel.

    Raises:
        UsageError: an image cannot be decoded, has more than 8 bits per channel, or differs in size.
    """
    import numpy as np

    pixels: list[NDArray[np.uint8]] = []
    for row in rows:
        with opened(split, row) as image:
            image.load()
            wanted = "L" if image.mode in GREY_MODES else "RGB"
            final = image if image.mode == wanted else image.convert(wanted)
            if size is not None:
                final = _resize(final, size)
            pixels.append(np.asarray(final))
        if pixels[-1].shape[:2] != pixels[0].shape[:2]:
            raise _unequal(pixels[0], split.where(rows[0]), pixels[-1], split.where(row))
    return Decoded(pixels, split.where(rows[0]) if rows else "")


@contextmanager
def opened(split: RawSplit, row: int) -> Iterator[Image]:
    """Open one image; what goes wrong inside is a fault of that image.

    Raises:
        UsageError: it cannot be decoded, or has more than 8 bits per channel.
    """
    from PIL.Image import DecompressionBombError

    try:
        sample = split.open(row)
        assert not isinstance(sample, str)
        with sample as image:
            if image.mode.startswith(DEEP_MODES):
                raise UsageError(f"expected 8 bits per channel, found mode {image.mode} in {split.where(row)}")
            yield image
    except UsageError:
        raise
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        raise UsageError(f"cannot decode the image in {split.where(row)}: {_reason(error)}") from error


def stack(splits: Sequence[Decoded]) -> list[Tensor]:
    """Make one tensor of each split: with one channel if every image of every split is grey, else RGB.

    Args:
        splits: decoded images; a split may be empty.

    Returns:
        uint8 tensors ``[N, C, H, W]`` of equal C, H and W.

    Raises:
        UsageError: the images of two splits differ in size.
    """
    import numpy as np

    reference = splits[0]
    height, width = reference.pixels[0].shape[:2]
    channels = 1 if all(image.ndim == 2 for split in splits for image in split.pixels) else 3
    tensors = []
    for split in splits:
        if split.pixels and split.pixels[0].shape[:2] != (height, width):
            raise _unequal(reference.pixels[0], reference.first, split.pixels[0], split.first)
        batch = np.empty((len(split.pixels), height, width, channels), np.uint8)
        for target, image in zip(batch, split.pixels, strict=True):
            target[...] = image if image.ndim == 3 else image[:, :, None]
        # a clone: of one channel, torch would leave the strides as they are and take them for channels-last
        tensors.append(torch.from_numpy(batch).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format))
    return tensors


def _resize(image: Image, size: int) -> Image:
    from PIL.Image import Resampling

    width, height = image.size
    if width % size == 0 and height % size == 0:
        # the exact area mean, rounded once, where BOX rounds after the rows and again after the columns
        return image.reduce((width // size, height // size))
    shrinks = min(width, height) >= size
    return image.resize((size, size), Resampling.BOX if shrinks else Resampling.BILINEAR)


def _unequal(a: NDArray[np.uint8], where_a: str, b: NDArray[np.uint8], where_b: str) -> UsageError:
    return UsageError(
        f"images differ in size ({a.shape[1]}x{a.shape[0]} in {where_a}, "
        f"{b.shape[1]}x{b.shape[0]} in {where_b}): give size (--data.size) to resize them all"
    )


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # PIL's own sentence shows the address of a buffer
        return "it is in no known image format"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
