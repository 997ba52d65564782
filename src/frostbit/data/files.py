"""Reading a data set from parquet tables or from class folders."""

from __future__ import annotations

import io
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from frostbit.data.sources import RawSplit, Source
from frostbit.errors import UsageError
from frostbit.registry import nearest

TEST_NAMES = ("test", "validation", "val")
TEST_SPLITS = (*TEST_NAMES, "valid")  # tiny-imagenet's word
IMAGE_COLUMNS = ("img", "image")
TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_folder(path: Path, classes: tuple[str, ...] | None, test: str | None = None, texts: bool = False) -> Source:
    """Find the splits of a folder, parquet files first, class folders (images only) second.

    Args:
        path: an existing folder.
        classes: the names of the classes if they are known beforehand.
        test: which split is the test split; the first of ``TEST_NAMES`` that is there if left out.
        texts: whether its tables hold texts instead of images.

    Returns:
        The source.

    Raises:
        UsageError: a split is missing, or one of its files cannot be used.
    """
    if list(path.glob("train*.parquet")):
        names = {"train": ("train",), "test": (test,) if test else TEST_NAMES}
        return read_tables({kind: _parquet_parts(path, names[kind]) for kind in names}, classes, texts)
    if (path / "train").is_dir() and not texts:
        return _read_class_folders(path)
    also = "" if texts else " or class folders train/<class>/"
    raise UsageError(f"expected train*.parquet{also} in {path}, found {_listing(path)}")


@dataclass(frozen=True, eq=False)
class Part:
    """One table of a split.

    Args:
        where: what it is, for messages: a file, or a hub name and split.
        table: a ``pyarrow.Table``.
        class_names: names of the classes by label column, where the table comes with them.
    """

    where: str
    table: Any
    class_names: Mapping[str, tuple[str, ...]]


def read_tables(splits: Mapping[str, Sequence[Part]], classes: tuple[str, ...] | None, texts: bool = False) -> Source:
    """Make a source of tables with a column of encoded images, or of texts, and a column of labels.

    Args:
        splits: the parts of ``"train"`` and of ``"test"``.
        classes: names of the classes for tables that come without; ``None`` numbers them.
        texts: whether they hold texts.

    Returns:
        The source.

    Raises:
        UsageError: a column is missing or of a wrong type, or labels are not 0..K-1.
    """
    train, test = splits["train"], splits["test"]
    named = train[0].class_names.get(_find_column(train[0], "label", LABEL_COLUMNS))
    if classes and named and len(classes) != len(named):
        raise UsageError(f"expected {len(classes)} classes, found {len(named)} in {train[0].where}")
    classes = named or classes
    raw_train, raw_test = _read_parts(train, texts), _read_parts(test, texts)
    if classes is None:
        found = sorted(set(raw_train.labels.tolist()))
        if found != list(range(len(found))):
            raise UsageError(
                f"expected labels 0..K-1 without gaps, found {len(found)} values "
                f"from {found[0]} to {found[-1]} in {train[0].where}"
            )
        classes = tuple(map(str, found))
    for raw in (raw_train, raw_test):
        wrong = ((raw.labels < 0) | (raw.labels >= len(classes))).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            raise UsageError(f"expected labels 0..{len(classes) - 1}, found {int(raw.labels[row])} in {raw.where(row)}")
    return Source(raw_train, raw_test, classes, texts)


def _parquet_parts(path: Path, prefixes: Sequence[str]) -> list[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = (sorted(path.glob(f"{prefix}*.parquet")) for prefix in prefixes)
    files = next(filter(None, found), None)
    if files is None:
        patterns = " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
        raise UsageError(f"expected {patterns} in {path}, found {_listing(path)}")
    parts = []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                schema = parquet.schema_arrow
                wanted = [name for name in schema.names if name in IMAGE_COLUMNS + TEXT_COLUMNS + LABEL_COLUMNS]
                # a table without a wanted column is kept whole: the message about it lists what is there
                table = parquet.read(columns=wanted if len(wanted) > 1 else None)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"cannot read {file}: truncated, or no parquet file ({reason})") from error
        parts.append(Part(str(file), table, _class_names(schema.metadata)))
    return parts


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Return the class names by column that Hugging Face ``datasets`` writes into a parquet's metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: tuple(entry["names"]) for name, entry in features.items() if entry.get("names")}
    except (KeyError, ValueError, TypeError, AttributeError):  # absent, or written by something else
        return {}


def _find_column(part: Part, kind: str, names: Sequence[str]) -> str:
    columns = part.table.column_names
    for name in names:
        if name in columns:
            return name
    raise UsageError(
        f"expected a column of {kind}s, one of {', '.join(names)}, in {part.where}, found columns {', '.join(columns)}"
    )


def _images(part: Part) -> Any:
    """Return the column of encoded images."""
    import pyarrow as pa

    images = part.table.column(_find_column(part, "image", IMAGE_COLUMNS))
    if pa.types.is_struct(images.type) and "bytes" in {field.name for field in images.type}:
        images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks], pa.binary())
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise UsageError(f"expected encoded images (bytes) in {part.where}, found {images.type}")
    return images


def _texts(part: Part) -> Any:
    """Return the column of texts."""
    import pyarrow as pa

    texts = part.table.column(_find_column(part, "text", TEXT_COLUMNS))
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise UsageError(f"expected texts in {part.where}, found {texts.type}")
    return texts


def _read_parts(parts: Sequence[Part], texts: bool) -> RawSplit:
    import pyarrow as pa
    from PIL import Image

    samples: list[Any] = []  # columns, whose bytes may lie on disk: a row is read when it is opened
    labels: list[int] = []
    for part in parts:
        inputs = _texts(part) if texts else _images(part)
        name = _find_column(part, "label", LABEL_COLUMNS)
        values = part.table.column(name)
        if not pa.types.is_integer(values.type):
            raise UsageError(f"expected integers 0..K-1 in column {name} of {part.where}, found {values.type}")
        for column, what in ((inputs, "a text" if texts else "an image"), (values, "a label")):
            if column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise UsageError(f"expected {what} in every row, found none in {part.where}, row {row}")
        samples.append(inputs)
        labels += values.to_pylist()
    if not labels:
        raise UsageError(f"expected {'texts' if texts else 'images'} in {parts[0].where}, found an empty table")

    starts = [0, *accumulate(part.table.num_rows for part in parts)]

    def place(row: int) -> tuple[int, int]:
        part = bisect_right(starts, row) - 1
        return part, row - starts[part]

    def open_row(row: int) -> Image.Image | str:
        part, inside = place(row)
        sample = samples[part][inside].as_py()
        return sample if texts else Image.open(io.BytesIO(sample))

    def where(row: int) -> str:
        part, inside = place(row)
        return f"{parts[part].where}, row {inside}"

    return RawSplit(open_row, torch.tensor(labels), where)


def _read_class_folders(path: Path) -> Source:
    test = next((path / name for name in TEST_NAMES if (path / name).is_dir()), None)
    if test is None:
        raise UsageError(f"expected a folder {' or '.join(TEST_NAMES)} in {path}, found {_listing(path)}")
    classes = _subfolders(path / "train")
    unknown = sorted(set(_subfolders(test)) - set(classes))
    if unknown:
        raise UsageError(f"{test} has class {unknown[0]!r}, which train has not: {nearest(unknown[0], classes)}")
    return Source(_read_classes(path / "train", classes), _read_classes(test, classes), tuple(classes))


def _read_classes(path: Path, classes: Sequence[str]) -> RawSplit:
    from PIL import Image

    found: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        entries = sorted((path / name).iterdir()) if (path / name).is_dir() else []
        images = [file for file in entries if file.suffix.lower() in IMAGE_SUFFIXES]
        found += images
        labels += [label] * len(images)
    if not found:
        raise UsageError(f"expected images ({', '.join(IMAGE_SUFFIXES)}) in class folders of {path}, found none")
    return RawSplit(lambda row: Image.open(found[row]), torch.tensor(labels), lambda row: str(found[row]))


def _subfolders(path: Path) -> list[str]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise UsageError(f"expected class folders in {path}, found {_listing(path)}")
    return names


def _listing(path: Path, most: int = 5) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    tail = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + tail if names else "nothing"
