"""Loading: what comes out of each kind of source, limits and splits, and one sentence for each bad input."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from frostbit import data
from frostbit.errors import UsageError


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def pictures(count: int, shape: tuple[int, ...] = (6, 6, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_parquet(file: Path, pixels: Any, labels: list[Any], **names: str) -> None:
    """Write images (arrays, encoded bytes or None) and labels as the hub's parquet files hold them."""
    rows = [p if p is None or isinstance(p, bytes) else encode(p) for p in pixels]
    column = pa.array(
        [{"bytes": row, "path": None} for row in rows], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    table = pa.table({names.get("image", "img"): column, names.get("label", "label"): pa.array(labels)})
    pq.write_table(table, file)


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """Two training shards of 8 images, one test file of 4; 6x6 RGB, 4 classes."""
    images = pictures(20)
    for shard in (0, 1):
        rows = slice(8 * shard, 8 * shard + 8)
        write_parquet(tmp_path / f"train-{shard}.parquet", images[rows], [0, 1, 2, 3] * 2)
    write_parquet(tmp_path / "test.parquet", images[16:], [3, 2, 1, 0])
    return tmp_path


def as_chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_digits_are_fixed_stratified_and_scaled_to_bytes() -> None:
    digits = data.load("digits")
    assert digits.train.inputs.shape == (1437, 1, 8, 8)
    assert digits.test.inputs.shape == (360, 1, 8, 8)
    assert digits.input_shape == (1, 8, 8)
    assert digits.train.inputs.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert digits.classes == tuple("0123456789")
    assert digits.val is None
    assert {0, 255} <= set(digits.train.inputs.unique().tolist())
    assert len(digits.train.inputs.unique()) == 17
    counts = digits.test.labels.bincount()
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert torch.equal(data.load("digits").test.inputs, digits.test.inputs)


def test_a_data_set_is_printed_by_its_sizes() -> None:
    digits = data.load("digits", limit_train=50)
    assert repr(digits.train) == "Split(50 samples of (1, 8, 8))"
    assert len(repr(digits)) < 400


def test_mean_and_std_are_those_of_the_training_images_in_use() -> None:
    digits = data.load("digits", limit_train=300, val_fraction=0.2)
    unit = digits.train.inputs.double() / 255
    assert digits.mean == pytest.approx([unit.mean().item()])
    assert digits.std == pytest.approx([unit.std(correction=0).item()])


def test_a_constant_channel_has_a_standard_deviation_to_divide_by(tmp_path: Path) -> None:
    images = pictures(4)
    images[..., 1] = 7
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", images, [0, 1, 0, 1])
    assert data.load("folder", tmp_path).std[1] == 1 / 255


def test_parquet_shards_are_read_in_order_and_without_change(parquet_folder: Path) -> None:
    images = as_chw(pictures(20))
    found = data.load("folder", parquet_folder)
    assert torch.equal(found.train.inputs, images[:16])
    assert torch.equal(found.test.inputs, images[16:])
    assert found.train.labels.tolist() == [0, 1, 2, 3] * 4
    assert found.test.labels.tolist() == [3, 2, 1, 0]
    assert found.classes == ("0", "1", "2", "3")
    assert found.train.inputs.is_contiguous()
    assert found.name == "folder"


@pytest.mark.parametrize("test_name", ["test-00000-of-00001", "validation", "val"])
@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels"), ("img", "fine_label")])
def test_split_and_column_names_in_use_on_the_hub(tmp_path: Path, test_name: str, image: str, label: str) -> None:
    for name in ("train", test_name):
        write_parquet(tmp_path / f"{name}.parquet", pictures(2), [1, 0], image=image, label=label)
    assert data.load("folder", tmp_path).test.labels.tolist() == [1, 0]


def test_plain_byte_columns_and_class_names_from_metadata(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [encode(p) for p in pictures(2)], "label": [1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for name in ("train", "test"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found = data.load("folder", tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [1, 1]


def test_cifar10_from_a_folder_has_its_names_and_wants_ten_classes(parquet_folder: Path) -> None:
    found = data.load("cifar10", parquet_folder)
    assert found.name == "cifar10"
    assert len(found.classes) == 10
    assert found.classes[3] == "cat"
    write_parquet(parquet_folder / "train-1.parquet", pictures(3), [0, 9, 10])
    with pytest.raises(UsageError, match=r"expected labels 0..9, found 10 in .*train-1.parquet, row 2"):
        data.load("cifar10", parquet_folder)


@pytest.mark.parametrize(("name", "label", "classes"), [("cifar10", "label", 10), ("cifar100", "fine_label", 100)])
def test_the_hub_is_asked_for_its_own_copy(
    monkeypatch: pytest.MonkeyPatch, name: str, label: str, classes: int
) -> None:
    import datasets

    images = pictures(3)
    features = datasets.Features(
        {"img": datasets.Image(), label: datasets.ClassLabel(names=[f"class {k}" for k in range(classes)])}
    )
    columns = {"img": [{"bytes": encode(p), "path": None} for p in images], label: [classes - 1, 0, 1]}
    table = datasets.Dataset.from_dict(columns, features=features)
    asked: list[str] = []

    def load_dataset(hub_name: str) -> object:
        asked.append(hub_name)
        return {"train": table, "test": table}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = data.load(name)
    assert asked == [f"uoft-cs/{name}"]
    assert torch.equal(found.test.inputs, as_chw(images))
    assert found.test.labels.tolist() == [classes - 1, 0, 1]
    assert found.classes[-1] == f"class {classes - 1}"

    def unreachable(hub_name: str) -> object:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UsageError, match=rf"cannot load 'uoft-cs/{name}' .*\(no route\): give a folder as path"):
        data.load(name)


def class_folders(root: Path, splits: dict[str, dict[str, list[np.ndarray]]]) -> Path:
    for split, classes in splits.items():
        for name, images in classes.items():
            (root / split / name).mkdir(parents=True)
            for index, pixels in enumerate(images):
                (root / split / name / f"{index}.png").write_bytes(encode(pixels))
    return root


def test_class_folders_are_read_in_sorted_order(tmp_path: Path) -> None:
    a, b, c, d, e = pictures(5)
    class_folders(tmp_path, {"train": {"dog": [a, b], "cat": [c], ".trash": [a]}, "test": {"dog": [d, e]}})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    found = data.load("folder", tmp_path)
    assert found.classes == ("cat", "dog")
    assert torch.equal(found.train.inputs, as_chw(np.stack([c, a, b])))
    assert found.train.labels.tolist() == [0, 1, 1]
    assert found.test.labels.tolist() == [1, 1]


def test_grey_images_keep_one_channel_unless_colour_is_among_them(tmp_path: Path) -> None:
    grey, colour = pictures(2, (6, 6)), pictures(2)
    class_folders(tmp_path, {"train": {"a": [*grey]}, "test": {"a": [grey[0]]}})
    assert torch.equal(data.load("folder", tmp_path).train.inputs[:, 0], torch.from_numpy(grey))
    (tmp_path / "test" / "a" / "1.png").write_bytes(encode(colour[0]))
    mixed = data.load("folder", tmp_path)
    assert torch.equal(mixed.train.inputs, torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(mixed.test.inputs[1], as_chw(colour)[0])


def test_other_image_modes_become_rgb_or_grey(tmp_path: Path) -> None:
    grey, colour = Image.fromarray(pictures(1, (6, 6))[0]), Image.fromarray(pictures(1)[0])
    modes = {"bilevel": grey.convert("1"), "alpha": colour.convert("RGBA"), "palette": colour.convert("P")}
    for index, image in enumerate(modes.values()):
        for split in ("train", "test"):
            (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / split / "a" / f"{index}.png")
    found = data.load("folder", tmp_path).train.inputs
    expected = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in modes.values()]
    assert torch.equal(found, torch.stack(expected))


def test_shrinking_averages_areas(parquet_folder: Path) -> None:
    small = data.load("folder", parquet_folder, size=3).train.inputs
    blocks = as_chw(pictures(20))[:16].double().unflatten(2, (3, 2)).unflatten(4, (3, 2))
    assert (small - blocks.mean((3, 5))).abs().max() <= 0.5 + 1e-9


def test_enlarging_interpolates_and_sizes_may_then_differ(tmp_path: Path) -> None:
    steps = np.array([[0, 100]] * 2, np.uint8)
    class_folders(tmp_path, {"train": {"a": [steps, pictures(1, (9, 5))[0]]}, "test": {"a": [steps]}})
    row = data.load("folder", tmp_path, size=8).train.inputs[0, 0, 0].tolist()
    assert row == sorted(row)
    assert len(set(row)) > 2


def test_limits_are_nested_and_the_same_in_every_run(parquet_folder: Path) -> None:
    def rows(**limits: int) -> list[int]:
        everything = as_chw(pictures(20))
        found = data.load("folder", parquet_folder, **limits).train.inputs
        return [int((everything == image).all((1, 2, 3)).nonzero()) for image in found]

    five, nine = rows(limit_train=5), rows(limit_train=9)
    assert rows(limit_train=5) == five
    assert len(set(five)) == 5
    assert set(five) < set(nine)
    assert nine == sorted(nine)
    assert nine != list(range(9))
    assert rows(limit_train=9, seed=1) != nine


def test_validation_images_come_from_the_training_images_only() -> None:
    whole = data.load("digits", limit_train=200)
    parts = data.load("digits", limit_train=200, val_fraction=0.25, limit_test=50)
    assert parts.val is not None
    assert (len(parts.train), len(parts.val), len(parts.test)) == (150, 50, 50)

    def keys(*splits: data.Split) -> list[bytes]:
        return sorted(
            image.numpy().tobytes() + bytes([label])
            for split in splits
            for image, label in zip(split.inputs, split.labels.tolist(), strict=True)
        )

    assert keys(parts.train, parts.val) == keys(whole.train)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def overwrite_pages(file: Path) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[:4] + b"\xff" * 200 + raw[204:])


BAD_FOLDERS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "no train",
        lambda p: [f.unlink() for f in p.glob("train*")],
        r"expected train\*.parquet or class folders .* found test.parquet",
    ),
    ("empty", lambda p: [f.unlink() for f in p.iterdir()], r"expected train\*.parquet .* found nothing"),
    (
        "no test",
        lambda p: (p / "test.parquet").unlink(),
        r"expected test\*.parquet or validation.* found train-0",
    ),
    ("truncated", lambda p: truncate(p / "train-1.parquet"), r"cannot read .*train-1.parquet: truncated"),
    ("empty file", lambda p: (p / "test.parquet").write_bytes(b""), r"cannot read .*test.parquet: truncated"),
    ("pages", lambda p: overwrite_pages(p / "train-0.parquet"), r"cannot read .*train-0.parquet: truncated"),
    (
        "no label",
        lambda p: write_parquet(p / "train-1.parquet", pictures(2), [0, 1], label="lable"),
        r"expected a column of labels, one of label, labels, .* in .*-1.parquet, found columns img, lable",
    ),
    (
        "no image",
        lambda p: write_parquet(p / "train-1.parquet", pictures(2), [0, 1], image="photo"),
        r"expected a column of images, one of img, image, in .*train-1.parquet, found columns photo, label",
    ),
    (
        "image path only",
        lambda p: pq.write_table(pa.table({"img": ["a.png"], "label": [0]}), p / "train-1.parquet"),
        r"expected encoded images \(bytes\) in .*train-1.parquet, found string",
    ),
    (
        "no bytes",
        lambda p: write_parquet(p / "train-1.parquet", [pictures(1)[0], None], [0, 1]),
        r"expected an image in every row, found none in .*train-1.parquet, row 1",
    ),
    (
        "null label",
        lambda p: write_parquet(p / "train-1.parquet", pictures(3), [0, 1, None]),
        r"expected a label in every row, found none in .*train-1.parquet, row 2",
    ),
    (
        "text label",
        lambda p: write_parquet(p / "train-1.parquet", pictures(1), ["cat"]),
        r"expected integers 0..K-1 in column label of .*train-1.parquet, found string",
    ),
    (
        "label gap",
        lambda p: write_parquet(p / "train-1.parquet", pictures(1), [5]),
        r"expected labels 0..K-1 without gaps, found 5 values from 0 to 5 in .*train-0.parquet",
    ),
    (
        "unlabelled test",
        lambda p: write_parquet(p / "test.parquet", pictures(2), [1, -1]),
        r"expected labels 0..3, found -1 in .*test.parquet, row 1",
    ),
    (
        "no rows",
        lambda p: pq.write_table(pq.read_table(p / "test.parquet")[:0], p / "test.parquet"),
        r"expected images in .*test.parquet, found an empty table",
    ),
    (
        "not an image",
        lambda p: write_parquet(p / "train-1.parquet", [pictures(1)[0], b"hello"], [0, 1]),
        r"cannot decode the image in .*train-1.parquet, row 1: it is in no known image format",
    ),
    (
        "half an image",
        lambda p: write_parquet(p / "test.parquet", [encode(pictures(1)[0])[:60]], [0]),
        r"cannot decode the image in .*test.parquet, row 0: ",
    ),
    (
        "sizes within",
        lambda p: write_parquet(p / "train-1.parquet", [pictures(1, (6, 5, 3))[0]], [0]),
        r"differ in size \(6x6 in .*train-0.parquet, row 0, 5x6 in .*train-1.parquet, row 0\): give size",
    ),
    (
        "sizes between",
        lambda p: write_parquet(p / "test.parquet", pictures(1, (4, 6, 3)), [0]),
        r"differ in size \(6x6 in .*train-0.parquet, row 0, 6x4 in .*test.parquet, row 0\): give size",
    ),
    (
        "16 bits",
        lambda p: write_parquet(p / "test.parquet", [np.zeros((6, 6), np.uint16)], [0]),
        r"expected 8 bits per channel, found mode I;16 in .*test.parquet, row 0",
    ),
]


@pytest.mark.parametrize(("spoil", "said"), [case[1:] for case in BAD_FOLDERS], ids=[c[0] for c in BAD_FOLDERS])
def test_a_bad_folder_gets_one_sentence(parquet_folder: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(parquet_folder)
    with pytest.raises(UsageError, match=said) as caught:
        data.load("folder", parquet_folder)
    assert "\n" not in str(caught.value)


def test_bad_class_folders_get_one_sentence(tmp_path: Path) -> None:
    image = pictures(1)[0]
    (tmp_path / "train").mkdir()
    steps: list[tuple[Callable[[], object], str]] = [
        (lambda: None, r"expected a folder test or validation or val in .*, found train"),
        (lambda: (tmp_path / "val").mkdir(), r"expected class folders in .*train, found nothing"),
        (
            lambda: class_folders(tmp_path, {"train": {"cat": []}, "val": {"cta": []}}),
            r"'cta', which train has not: did you mean 'cat'\?",
        ),
        (
            lambda: (tmp_path / "val" / "cta").rename(tmp_path / "val" / "cat"),
            r"expected images .* of .*train, found none",
        ),
        (
            lambda: (tmp_path / "train/cat/a.PNG").write_bytes(encode(image)),
            r"expected images .* of .*val, found none",
        ),
        (
            lambda: (tmp_path / "val/cat/b.jpg").write_bytes(b"text"),
            r"cannot decode the image in .*b.jpg: it is in no",
        ),
    ]
    for prepare, said in steps:
        prepare()
        with pytest.raises(UsageError, match=said):
            data.load("folder", tmp_path)
    (tmp_path / "val/cat/b.jpg").write_bytes(encode(image, "JPEG"))
    assert len(data.load("folder", tmp_path).test) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cifar"}, "unknown data set 'cifar': did you mean 'cifar10'?"),
        ({"name": "folder"}, "data set 'folder' needs a path"),
        (
            {"name": "folder", "path": "no/such/place"},
            "expected a folder of images at no/such/place, found nothing",
        ),
        ({"name": "cifar10", "path": __file__}, "found a file"),
        ({"name": "digits", "path": "."}, "takes no path"),
        ({"size": 0}, "size must be >= 1, found 0"),
        ({"limit_train": 1438}, "limit_train must be in [1, 1437], the number of samples, found 1438"),
        ({"limit_test": 0}, "limit_test must be in [1, 360], the number of samples, found 0"),
        ({"val_fraction": 1.0}, "val_fraction must be in [0, 1), found 1.0"),
        ({"val_fraction": 0.9, "limit_train": 1}, "val_fraction 0.9 leaves none of 1 samples to train on"),
    ],
)
def test_a_bad_option_gets_one_sentence(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        data.load(**options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"'digits' needs the package 'PIL': run pip install 'frostbit\[data\]'"):
        data.load("digits")


@pytest.mark.shared_data
@pytest.mark.skipif("FROSTBIT_TEST_DATA" not in os.environ, reason="FROSTBIT_TEST_DATA names no folder")
def test_cifar10_from_real_files_quickly() -> None:
    folder = os.environ["FROSTBIT_TEST_DATA"]
    data.load("cifar10", folder, limit_train=10, limit_test=10)
    start = time.perf_counter()
    found = data.load("cifar10", folder, size=16, limit_train=10_240)
    assert time.perf_counter() - start < 5
    assert found.train.inputs.shape == (10_240, 3, 16, 16)
    assert len(found.test) == 10_000
    assert torch.equal(found.test.labels.bincount(), torch.full((10,), 1000))
    assert found.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.01)


def test_images_of_one_channel_have_the_strides_of_a_plain_tensor():
    """torch takes others for channels-last, and its kernels for narrow layers in that layout corrupt memory."""
    split = data.load("digits").train
    assert split.inputs.stride() == torch.empty(split.inputs.shape, device="meta").stride()
