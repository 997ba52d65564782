"""Where images and texts come from: a table from data set names to functions that find them.

A source decodes nothing: it returns labels, and a way to open each sample, so that only the rows in use are
decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frostbit.errors import UsageError
from frostbit.registry import Registry

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


@dataclass(frozen=True, eq=False)
class RawSplit:
    """Images that are still encoded, or texts, and their labels.

    Args:
        open: returns what is in a row: an image, as PIL opens it, or a text.
        labels: int64 ``[N]``.
        where: names a row's place for a message, e.g. ``"train.parquet, row 17"``.
    """

    open: Callable[[int], PILImage | str]
    labels: Tensor
    where: Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set before decoding.

    Args:
        train: training images or texts.
        test: test images or texts.
        classes: names of the classes; every label is a position in it.
        texts: whether these are texts.
    """

    train: RawSplit
    test: RawSplit
    classes: tuple[str, ...]
    texts: bool = False


SOURCES: Registry[Source] = Registry("data set")
"""Functions ``(path: Path | None) -> Source`` by name."""

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def list_sources(pattern: str = "*") -> list[str]:
    """Return the sorted names of the data sets that match a glob.

    Args:
        pattern: a shell-style pattern such as ``"cifar*"``.

    Returns:
        The names that `frostbit.data.load` accepts.
    """
    return SOURCES.list(pattern)


@SOURCES.register("digits")
def digits(path: Path | None = None) -> Source:
    """Return scikit-learn's handwritten digits, 8x8 grey: 1437 to train, 360 to test, the same at every call.

    Args:
        path: must be ``None``; the images come with scikit-learn.

    Returns:
        The source; the 17 grey levels are scaled to 0..255.

    Raises:
        UsageError: a path was given.
    """
    if path is not None:
        raise UsageError(f"data set 'digits' comes with scikit-learn and takes no path, found {path}")
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    table = load_digits()
    pixels = np.rint(table.images * (255 / 16)).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        pixels, table.target, test_size=360, stratify=table.target, random_state=0
    )

    def split(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> RawSplit:
        return RawSplit(
            lambda row: Image.fromarray(images[row]),
            torch.from_numpy(labels).long(),
            lambda row: f"digit {row}",
        )

    classes = tuple(str(digit) for digit in range(10))
    return Source(split(train_images, train_labels), split(test_images, test_labels), classes)


@SOURCES.register("cifar10")
def cifar10(path: Path | None = None) -> Source:
    """Return CIFAR-10, 32x32 RGB, from the Hugging Face hub or from a folder.

    Args:
        path: a folder as for `folder`; ``None`` loads ``uoft-cs/cifar10`` into the hub's own cache.

    Returns:
        The source.

    Raises:
        UsageError: the hub cannot be reached, or the folder is not such a data set.
    """
    return _hub("uoft-cs/cifar10") if path is None else _from_folder(path, CIFAR10_CLASSES)


@SOURCES.register("cifar100")
def cifar100(path: Path | None = None) -> Source:
    """Return CIFAR-100 with its fine labels, 32x32 RGB, from the Hugging Face hub or from a folder.

    Args:
        path: a folder as for `folder`; ``None`` loads ``uoft-cs/cifar100`` into the hub's own cache.

    Returns:
        The source.

    Raises:
        UsageError: the hub cannot be reached, or the folder is not such a data set.
    """
    return _hub("uoft-cs/cifar100") if path is None else _from_folder(path, tuple(map(str, range(100))))


@SOURCES.register("tiny-imagenet")
def tiny_imagenet(path: Path | None = None) -> Source:
    """Return Tiny ImageNet, 64x64 RGB, 200 classes, from the Hugging Face hub or from a folder.

    Args:
        path: a folder as for `folder`; ``None`` loads ``zh-plus/tiny-imagenet`` into the hub's own cache.

    Returns:
        The source.

    Raises:
        UsageError: the hub cannot be reached, or the folder is not such a data set.
    """
    return _hub("zh-plus/tiny-imagenet") if path is None else _from_folder(path, None)


@SOURCES.register("imagenet")
def imagenet(path: Path | None = None) -> Source:
    """Return ImageNet (ILSVRC 2012), 1000 classes, from the Hugging Face hub or from a folder.

    Args:
        path: a folder as for `folder`; ``None`` loads ``ILSVRC/imagenet-1k`` into the hub's own cache (the hub
            asks for an account that has accepted its terms).

    Returns:
        The source. Its images are streamed.

    Raises:
        UsageError: the hub cannot be reached, or the folder is not such a data set.
    """
    # its own test images have no labels: what everybody reports is the validation split
    return _hub("ILSVRC/imagenet-1k", "validation") if path is None else _from_folder(path, None)


@SOURCES.register("folder")
def folder(path: Path | None = None) -> Source:
    """Return the images of a folder of parquet files or of class folders.

    Args:
        path: the folder, laid out as `frostbit.data.load` says.

    Returns:
        The source. Class names are the parquet's own or the class folders'; else the label's number.

    Raises:
        UsageError: no path, no such folder, or it is not such a data set.
    """
    if path is None:
        raise UsageError("data set 'folder' needs a path")
    return _from_folder(path, None)


@SOURCES.register("sst2")
def sst2(path: Path | None = None) -> Source:
    """Return the sentences and phrases of SST-2, from the Hugging Face hub or from a folder.

    Its published test sentences have no labels, so its validation sentences are the test split, as in the literature.

    Args:
        path: a folder with ``train*.parquet`` and ``validation*.parquet``; ``None`` loads ``stanfordnlp/sst2`` into
            the hub's own cache.

    Returns:
        The source.

    Raises:
        UsageError: the hub cannot be reached, or the folder is not such a data set.
    """
    classes = ("negative", "positive")
    if path is None:
        return _hub("stanfordnlp/sst2", "validation", classes, texts=True)
    return _from_folder(path, classes, "validation", texts=True)


def _from_folder(path: Path, classes: tuple[str, ...] | None, test: str | None = None, texts: bool = False) -> Source:
    from frostbit.data import files

    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise UsageError(f"expected a folder of {'texts' if texts else 'images'} at {path}, found {found}")
    return files.read_folder(path, classes, test, texts)


def _hub(name: str, test: str | None = None, classes: tuple[str, ...] | None = None, texts: bool = False) -> Source:
    from datasets import load_dataset

    from frostbit.data import files

    try:
        tables = load_dataset(name)
    except Exception as error:  # the hub's client raises a dozen unrelated types for "not reachable"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"cannot load {name!r} from the Hugging Face hub ({reason}): give a folder as path (--data.path)"
        ) from error
    test = test or next(n for n in files.TEST_SPLITS if n in tables)
    parts = {}
    for part, split in (("train", "train"), ("test", test)):
        features = tables[split].features
        names = {column: tuple(kind.names) for column, kind in features.items() if hasattr(kind, "names")}
        parts[part] = [files.Part(f"{name}, {split}", tables[split].with_format("arrow")[:], names)]
    return files.read_tables(parts, classes, texts)
