"""Streamed images: what memory need not hold, the same for every number of workers and ranks."""

import numpy as np
import pytest
import torch
from PIL import Image

from frostbit import data
from frostbit.data.stream import CENTRE, box_pixels, draw_boxes
from frostbit.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of JPEGs of several shapes: a dark left and a bright right half, or the reverse."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 5)):
        for label, name in enumerate(("left", "right")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = generator.integers(40, 90, 2)
                picture = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
                half = slice(width // 2, None) if label else slice(0, width // 2)
                picture[:, half] += 180
                Image.fromarray(picture).save(root / split / name / f"{number}.jpg", quality=95)
    return root


def loader(found, **options):
    options = {"shuffle": True, "augment": data.Augment(crop_scale=0.2), "workers": 0, **options}
    return data.Loader(found.train, 4, mean=found.mean, std=found.std, **options)


def test_streamed_and_held_images_tell_the_same(folder):
    streamed = data.load("folder", folder, size=16, stream=True)
    held = data.load("folder", folder, size=16)
    assert streamed.input_shape == held.input_shape == (3, 16, 16)
    assert torch.equal(streamed.train.labels, held.train.labels)
    pixels, labels = streamed.train.take(slice(0, 22))
    assert pixels.dtype == torch.uint8
    assert torch.equal(labels, held.train.labels)
    # a central square against the squeezed whole: the bright half is on the same side
    for images in (pixels, held.train.inputs):
        brighter_right = images[..., 9:].float().mean((1, 2, 3)) > images[..., :7].float().mean((1, 2, 3))
        assert torch.equal(brighter_right.long(), labels)
    assert streamed.mean == pytest.approx(held.mean, abs=0.03)


def test_batches_do_not_depend_on_workers_and_leave_the_global_generator_alone(folder):
    found = data.load("folder", folder, size=16, stream=True)
    alone = list(loader(found))
    before = torch.get_rng_state()
    helped = list(loader(found, workers=2))
    assert torch.equal(before, torch.get_rng_state())
    assert len(alone) == len(helped) == 6
    for (a, x), (b, y) in zip(alone, helped, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    again = loader(found)
    again.set_epoch(0, first_batch=3)
    assert torch.equal(next(iter(again))[0], alone[3][0])
    again.set_epoch(1)
    assert not torch.equal(next(iter(again))[0], alone[0][0])


def test_ranks_together_have_the_batch_of_one_process(folder):
    found = data.load("folder", folder, size=16, stream=True)
    whole = loader(found).batch(2, 1)
    parts = [loader(found, rank=rank, world_size=2).batch(2, 1) for rank in range(2)]
    for position in range(2):
        assert torch.equal(torch.cat([part[position] for part in parts]), whole[position])


def test_random_crops_lie_inside_and_keep_their_promise():
    boxes = draw_boxes(2000, 0.08, torch.Generator().manual_seed(0))
    assert boxes[:, 0].min() < 0.1 < 0.95 < boxes[:, 0].max()
    assert boxes[:, 1].log().mean().abs() < 0.02
    for width, height in ((64, 64), (200, 30), (31, 90)):
        for box in boxes[:200].tolist():
            left, upper, right, lower = box_pixels(width, height, box)
            assert 0 <= left < right <= width + 1e-9
            assert 0 <= upper < lower <= height + 1e-9
            share = (right - left) * (lower - upper) / (width * height)
            assert share <= box[0] + 1e-9
    assert box_pixels(100, 60, None) == pytest.approx(
        (50 - 30 * CENTRE, 30 - 30 * CENTRE, 50 + 30 * CENTRE, 60 * 0.9375)
    )


def test_a_jpeg_decoded_small_is_the_image(tmp_path):
    """The decoder's own shrinking may blur, but moves nothing."""
    y, x = np.mgrid[0:512, 0:768]
    picture = np.stack([x / 3, y / 2, (x + y) / 5], -1).astype(np.uint8)
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / split / "a" / "0.jpg", quality=98)
        Image.fromarray(picture).save(tmp_path / split / "a" / "1.png")
    split = data.load("folder", tmp_path, size=32, stream=True).train
    boxes = draw_boxes(1, 0.3, torch.Generator().manual_seed(3)).expand(2, -1)
    for crop in (None, boxes):
        small, exact = split.take(slice(0, 2), crop)[0].float()
        assert (small - exact).abs().max() < 6


@pytest.mark.parametrize(
    ("stream", "augment", "sentence"),
    [
        (True, data.Augment(crop_pad=2), "crop_scale, not crop_pad 2"),
        (False, data.Augment(crop_scale=0.5), "crop_scale 0.5 needs stream"),
    ],
)
def test_each_kind_of_split_has_its_own_crop(folder, stream, augment, sentence):
    found = data.load("folder", folder, size=16, stream=stream)
    with pytest.raises(UsageError, match=sentence):
        loader(found, augment=augment)


def test_what_cannot_be_streamed(folder, tmp_path):
    with pytest.raises(UsageError, match="need a size"):
        data.load("folder", folder, stream=True)
    with pytest.raises(UsageError, match=r"crop_scale must be in \(0, 1\]"):
        data.Augment(crop_scale=0)
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"cannot decode the image in .*0\.jpg"):
        data.load("folder", tmp_path, size=8, stream=True)
