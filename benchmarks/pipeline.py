"""Images per second that one core decodes, crops and resizes to 224 x 224: `python benchmarks/pipeline.py`.

Beside the plain loop: decode the whole JPEG with PIL, cut the crop, resize it. The images are made here (500 x 375,
smooth shapes with a little noise, about 60 kB each: what ImageNet's photographs weigh at their usual size).
"""

from __future__ import annotations

import argparse
import io

import numpy as np
import torch
from harness import alternate, report
from PIL import Image

from frostbit.data import StreamSplit
from frostbit.data.sources import RawSplit
from frostbit.data.stream import box_pixels, draw_boxes


def photographs(count: int) -> list[bytes]:
    """Return encoded images."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:375, 0:500]
    encoded = []
    for _ in range(count):
        waves = [np.sin(x * a + y * b + c) for a, b, c in generator.normal(0, 0.05, (6, 3))]
        shapes = np.stack([sum(waves[i : i + 3]) for i in (0, 1, 2)], -1)
        picture = (127 + 35 * shapes + generator.normal(0, 9, shapes.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=88)
        encoded.append(buffer.getvalue())
    return encoded


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument(
        "--gpu", type=float, default=6000, help="images per second that a GPU trains: an assumption, not measured here"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoded = photographs(options.images)
    print(f"{options.images} images of {sum(map(len, encoded)) / len(encoded) / 1e3:.0f} kB")
    raw = RawSplit(lambda row: Image.open(io.BytesIO(encoded[row])), torch.zeros(options.images, dtype=torch.long), str)
    split = StreamSplit(raw, range(options.images), 224)
    boxes = draw_boxes(options.images, 0.08, torch.Generator().manual_seed(0))

    def plain() -> None:
        for data, box in zip(encoded, boxes.tolist(), strict=True):
            with Image.open(io.BytesIO(data)) as image:
                crop = image.convert("RGB").crop(tuple(map(round, box_pixels(*image.size, box))))
                torch.from_numpy(np.asarray(crop.resize((224, 224), Image.Resampling.BILINEAR)).copy())

    seconds = alternate(
        {
            "PIL, plain loop": plain,
            "frostbit, random crops": lambda: split.take(slice(0, options.images), boxes),
            "frostbit, centre crops": lambda: split.take(slice(0, options.images)),
        },
        options.rounds,
    )
    rows = [
        {
            "pipeline": name,
            "images/s per core": options.images / time,
            "x plain": seconds["PIL, plain loop"] / time,
            f"cores for {options.gpu:.0f} images/s": options.gpu * time / options.images,
        }
        for name, time in seconds.items()
    ]
    report("pipeline", rows)


if __name__ == "__main__":
    main()
