"""From a data set's name to decoded splits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from frostbit.data.decode import decode, stack
from frostbit.data.sources import SOURCES
from frostbit.data.stream import StreamSplit
from frostbit.data.tokens import load_tokenizer, tokenize
from frostbit.errors import UsageError

STREAMED = ("imagenet",)
"""Data sets too large to be held in memory."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """What a network reads, in memory, and the labels.

    Args:
        inputs: images, uint8 ``[N, C, H, W]``, C = 1 (grey) or 3 (RGB); or the token ids of texts, int32 ``[N, L]``.
        labels: int64 ``[N]`` in ``[0, number of classes)``.
    """

    inputs: Tensor
    labels: Tensor
    streams: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} samples of {self.input_shape})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of every image, or ``(L,)``, the number of tokens of every text."""
        return tuple(self.inputs.shape[1:])

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        return Split(self.inputs.to(device), self.labels.to(device))

    def take(self, chosen: slice | Tensor, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return some samples and their labels, on the split's device.

        Args:
            chosen: positions in the split.
            boxes: must be ``None``: images in memory are cropped by ``crop_pad``.
        """
        assert boxes is None
        return self.inputs[chosen], self.labels[chosen]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, in memory or streamed.

    Args:
        name: what it was loaded as.
        train: the training samples that are used.
        test: the test samples that are used.
        val: validation samples split off the training ones, or ``None``.
        classes: names of the classes; the label is the position.
        mean: per-channel mean of the images in ``train`` (of 1024 of them if streamed), in units of 0..1; ``None`` for
            texts.
        std: per-channel standard deviation of the same, in units of 0..1, at least 1/255; ``None`` for texts.
        vocabulary: of texts, ``(number of token ids, id of the padding)``; ``None`` for images.
    """

    name: str
    train: Split | StreamSplit
    test: Split | StreamSplit
    val: Split | StreamSplit | None
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    vocabulary: tuple[int, int] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of every image, or ``(L,)``, the number of tokens of every text."""
        return self.train.input_shape


def load(
    name: str = "digits",
    path: str | Path | None = None,
    size: int | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
    seed: int = 0,
    stream: bool | None = None,
    tokenizer: str | None = None,
    length: int | None = None,
) -> Dataset:
    """Load a labelled data set of images or texts.

    Args:
        name: ``"digits"`` (scikit-learn's 8x8 digits, no download), ``"cifar10"``, ``"cifar100"``,
            ``"tiny-imagenet"``, ``"imagenet"``, ``"sst2"`` (from the hub, or from ``path``) or ``"folder"`` (images,
            from ``path``).
        path: a folder with ``train*.parquet`` and ``test*.parquet``, or with class folders
            ``train/<class>/*.png|jpg`` and ``test/<class>/…``. Where there is no ``test``, ``validation`` or
            ``val`` is the test split.
        size: resize every image to ``size x size``, >= 1, whatever its aspect ratio: a box filter when both
            sides shrink (exact area means where ``size`` divides them), else bilinear.
        limit_train: use that many training samples, >= 1: the first of a permutation drawn from ``seed``, so
            that smaller limits are subsets of larger ones. Validation samples are taken from among them.
        limit_test: the same for the test samples.
        val_fraction: share of the used training samples that becomes ``val``, in ``[0, 1)``.
        seed: of the choice of samples for the limits and the validation split. It belongs to the data, not to
            the run: leave it alone, and runs with different seeds use the same samples.
        stream: decode images when a batch asks for them instead of all at once; they are cropped to squares of
            ``size``, the centre where nothing is random. ``None`` streams ``"imagenet"`` alone.
        tokenizer: what makes token ids of texts: a vocabulary file or a checkpoint, see
            `frostbit.data.tokens.load_tokenizer`.
        length: tokens to which each text is cut or padded; those of the longest one in use if left out.

    Returns:
        The data set.

    Raises:
        UsageError: unknown name; a value out of range; a folder, file, column, label or image that cannot be used; or a
            package that is not installed.
    """
    if size is not None and size < 1:
        raise UsageError(f"size must be >= 1, found {size}")
    if not 0 <= val_fraction < 1:
        raise UsageError(f"val_fraction must be in [0, 1), found {val_fraction}")
    read = SOURCES.get(name)
    try:
        source = read(None if path is None else Path(path).expanduser())
        train_rows = _choose("limit_train", limit_train, len(source.train.labels), seed)
        test_rows = _choose("limit_test", limit_test, len(source.test.labels), seed)
        n_val = max(1, round(val_fraction * len(train_rows))) if val_fraction else 0
        if n_val >= len(train_rows):
            raise UsageError(f"val_fraction {val_fraction} leaves none of {len(train_rows)} samples to train on")
        val_rows, train_rows = train_rows[:n_val], train_rows[n_val:]
        # rows are read in stored order, whatever order they were chosen in
        rows = [sorted(chosen) for chosen in (train_rows, val_rows, test_rows)]
        raw = [source.train, source.train, source.test]
        if source.texts:
            if stream:
                raise UsageError(f"data set {name!r} holds texts, which lie in memory: leave out stream")
            if tokenizer is None:
                raise UsageError(f"data set {name!r} holds texts and needs a tokenizer: a vocabulary or a checkpoint")
            loaded = load_tokenizer(tokenizer)
            inputs = tokenize(list(zip(raw, rows, strict=True)), loaded, length)
        elif name in STREAMED if stream is None else stream:
            if size is None:
                raise UsageError("streamed images need a size to be decoded to, found none")
            splits = [StreamSplit(split, chosen, size) for split, chosen in zip(raw, rows, strict=True)]
            some = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(seed))[:1024]
            mean, std = _channel_statistics(splits[0].take(some)[0])
            return Dataset(name, splits[0], splits[2], splits[1] if n_val else None, source.classes, mean, std)
        else:
            inputs = stack([decode(split, chosen, size) for split, chosen in zip(raw, rows, strict=True)])
    except ModuleNotFoundError as error:
        raise UsageError(
            f"data set {name!r} needs the package {error.name!r}: run pip install 'frostbit[data]'"
        ) from error
    train, val, test = (
        Split(values, split.labels[chosen]) for values, split, chosen in zip(inputs, raw, rows, strict=True)
    )
    if source.texts:
        vocabulary = (len(loaded), int(loaded.pad_token_id))
        return Dataset(name, train, test, val if n_val else None, source.classes, None, None, vocabulary)
    mean, std = _channel_statistics(train.inputs)
    return Dataset(name, train, test, val if n_val else None, source.classes, mean, std)


def _choose(option: str, limit: int | None, available: int, seed: int) -> Sequence[int]:
    """Return the first ``limit`` of a permutation of ``available`` rows."""
    if limit is not None and not 1 <= limit <= available:
        raise UsageError(f"{option} must be in [1, {available}], the number of samples, found {limit}")
    order: list[int] = torch.randperm(available, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:limit]


def _channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, in units of 0..1, exact through byte histograms."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = share.dot(values)
        means.append(mean.item())
        # a constant channel would divide by zero
        stds.append(max(share.dot((values - mean).square()).sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds)
