"""Flips and crops against loops that say what they mean, and the odds of each choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostbit.data import Augment, random_crop, random_flip
from frostbit.data.augment import crop, flip
from frostbit.errors import UsageError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(image: torch.Tensor, dy: int, dx: int, pad: int) -> torch.Tensor:
    """The image whose pixel (y, x) is the old (y + dy - pad, x + dx - pad), or 0 outside."""
    out = torch.zeros_like(image)
    height, width = image.shape[-2:]
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy - pad < height and 0 <= x + dx - pad < width:
                out[:, y, x] = image[:, y + dy - pad, x + dx - pad]
    return out


def test_flip_mirrors_the_chosen_images_left_to_right() -> None:
    x = torch.arange(12.0).view(2, 1, 2, 3)
    out = flip(x, torch.tensor([True, False]))
    assert out[0, 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert torch.equal(out[1], x[1])


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pad=st.integers(0, 6),
    one=st.booleans(),
    seed=st.integers(0, 99),
)
def test_crop_moves_each_image_by_its_own_offset(
    batch: int, channels: int, size: tuple[int, int], pad: int, one: bool, seed: int
) -> None:
    g = generator(seed)
    x = torch.randn(batch, channels, *size, generator=g)
    offsets = torch.randint(2 * pad + 1, (1 if one else batch, 2), generator=g)
    out = crop(x, offsets, pad)
    pairs = offsets.expand(batch, 2).tolist()
    assert torch.equal(out, torch.stack([shifted(i, dy, dx, pad) for i, (dy, dx) in zip(x, pairs, strict=True)]))
    assert out.is_contiguous()


def test_random_flip_takes_about_half_and_repeats_with_its_generator() -> None:
    x = torch.arange(2.0).view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    share = (random_flip(x, generator())[:, 0, 0, 0] == 1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.04)
    assert torch.equal(random_flip(x, generator(5)), random_flip(x, generator(5)))


def test_random_crop_draws_every_offset_equally_often() -> None:
    x = torch.zeros(9000, 1, 3, 3)
    x[:, 0, 1, 1] = 1
    moved = random_crop(x, 1, generator()).flatten(1).argmax(1).bincount(minlength=9)
    assert (moved / 9000).tolist() == pytest.approx([1 / 9] * 9, abs=0.02)
    together = random_crop(x, 1, generator(), per="batch")
    assert torch.equal(together, together[:1].expand_as(together))


@pytest.mark.parametrize("per", ["image", "batch"])
def test_parts_of_a_batch_take_the_choices_of_the_whole(per: str) -> None:
    augment = Augment(crop_pad=2, crop_per=per)
    x = torch.randn(7, 3, 5, 5)
    whole = augment.apply(x, generator(), 7, slice(0, 7))
    for rows in (slice(0, 3), slice(3, 7), slice(4, 4)):
        assert torch.equal(augment.apply(x[rows], generator(), 7, rows), whole[rows])
    assert not torch.equal(whole, x)


def test_augment_switches() -> None:
    x = torch.randn(16, 1, 4, 4)
    assert torch.equal(Augment(flip=False).apply(x, generator(), 16, slice(0, 16)), x)
    only_flip = Augment().apply(x, generator(), 16, slice(0, 16))
    assert torch.equal(only_flip, random_flip(x, generator()))
    only_crop = Augment(flip=False, crop_pad=1).apply(x, generator(), 16, slice(0, 16))
    assert torch.equal(only_crop, random_crop(x, 1, generator()))


def test_augment_refuses_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="crop_pad must be an integer >= 0, found -1"):
        Augment(crop_pad=-1)
    with pytest.raises(ValueError, match="unknown crop_per 'imgae': did you mean 'image'"):
        Augment(crop_per="imgae")
    with pytest.raises(ValueError, match="unknown crop_per"):
        random_crop(torch.zeros(1, 1, 2, 2), 1, generator(), per="row")
