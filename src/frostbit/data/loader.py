"""Batches, from data that lives on the device (images as bytes, texts as token ids) or from streamed images."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from frostbit.data.augment import Augment
from frostbit.data.dataset import Split
from frostbit.data.stream import StreamSplit, draw_boxes
from frostbit.errors import UsageError


class Loader:
    """Iterate over a split in batches ``(inputs, labels)``: normalized, augmented images, or token ids.

    Everything random is a function of ``(seed, epoch, batch index)``: no random state has to be saved, and a
    resumed run sees the batches that the uninterrupted one would have seen.

    With ``world_size`` processes ``batch_size`` is the global batch. Each rank yields its contiguous rows of
    every global batch, augmented with the choices drawn for the whole of it, so the ranks' rows put together
    are the one-process batch. A shuffled loader then drops the last ragged batch and needs ``batch_size`` to
    be a multiple of ``world_size``, so all shards are equal. One that is not shuffled (evaluation) yields
    every sample exactly once; all ranks have equally many batches, which may differ in size and be empty.

    The epoch is read when the first batch is drawn, not when the iterator is made. A pass that comes to its end moves
    on to the next one, so a loop without `set_epoch` has another order in each pass.

    Args:
        split: images or texts in memory, moved to ``device`` once, or streamed images.
        batch_size: samples per global batch, >= 1.
        shuffle: a new order in each epoch.
        augment: what is done to each batch, ``None`` for nothing.
        mean: per channel, in units of 0..1; ``None`` for texts, and for images that are to stay in these units.
        std: per channel, in units of 0..1, > 0; or ``None``.
        seed: of order and augmentation, any integer.
        device: where the data lives and batches are made.
        dtype: floating dtype of batches of images; normalization computes in float32 at least.
        drop_last: leave out the last batch if it is ragged.
        rank: this process, in ``[0, world_size)``.
        world_size: number of processes, >= 1.
        workers: processes that decode streamed images ahead of time; 0 decodes in this one, ``None`` shares the
            machine's cores among the ranks.

    Raises:
        UsageError: a value out of its range, a crop that this kind of split cannot have, or no full batch to yield.
    """

    def __init__(
        self,
        split: Split | StreamSplit,
        batch_size: int,
        *,
        shuffle: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augment: Augment | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size must be >= 1, found {batch_size}")
        if world_size < 1 or not 0 <= rank < world_size:
            raise UsageError(f"rank must be in [0, world_size), found rank {rank} of {world_size}")
        if shuffle and batch_size % world_size:
            raise UsageError(f"batch_size {batch_size} is the global batch and must divide by {world_size} ranks")
        if not dtype.is_floating_point:
            raise UsageError(f"dtype must be a floating point type, found {dtype}")
        drop_last = drop_last or (shuffle and world_size > 1)
        if drop_last and len(split) < batch_size:
            raise UsageError(f"batch_size {batch_size} is larger than the {len(split)} samples of the split")

        if augment is not None and augment.crop_pad and split.streams:
            raise UsageError(
                f"streamed images are cropped as they are decoded: crop_scale, not crop_pad {augment.crop_pad}"
            )
        if augment is not None and augment.crop_scale is not None and not split.streams:
            raise UsageError(f"images in memory are cropped by crop_pad: crop_scale {augment.crop_scale} needs stream")

        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = operator.index(seed)  # generators are seeded by its text, in which numpy's 3 is another than 3
        self.epoch = 0
        self.dtype = dtype
        self.rank = rank
        self.world_size = world_size
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = (max(1, cores // world_size) if workers is None else workers) if split.streams else 0
        self.split = split.to(device)
        self.device = torch.device(device)
        self._total = len(split) // batch_size * batch_size if drop_last else len(split)
        self._first_batch = 0
        self._normalization: tuple[Tensor, Tensor] | None = None
        if len(split.input_shape) == 3:
            zeros, ones = [0.0] * split.input_shape[0], [1.0] * split.input_shape[0]
            self._normalization = self._affine(zeros if mean is None else mean, ones if std is None else std)
        if self._normalization is None and augment is not None and (augment.flip or augment.crop_pad):
            raise UsageError("augment changes images, found texts: leave it out")
        self._order: tuple[int, Tensor] | None = None

    def _affine(self, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the shift and the scale of ``(x / 255 - mean) / std``, one addition and one multiplication."""
        channels = self.split.input_shape[0]
        if len(mean) != channels or len(std) != channels:
            raise UsageError(
                f"mean and std must have one value for each of {channels} channels, found {len(mean)} and {len(std)}"
            )
        work = torch.float64 if self.dtype == torch.float64 else torch.float32
        mean_, std_ = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        return (-mean_ / std_).to(self.device, work), (1 / (255 * std_)).to(self.device, work)

    def __len__(self) -> int:
        """Return the number of batches of one epoch, equal on all ranks."""
        return -(-self._total // self.batch_size)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration yields.

        Args:
            epoch: >= 0.
            first_batch: where the next iteration begins, to resume in the middle of an epoch; those after it
                begin at 0 again, and ``len`` stays the full epoch's.
        """
        self.epoch = epoch
        self._first_batch = first_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels as `batch` returns them."""
        epoch, first = self.epoch, self._first_batch
        self._first_batch = 0
        indices = range(first, len(self))
        for index, raw in zip(indices, self._read(epoch, indices), strict=True):
            yield self._finish(epoch, index, *raw)
        if self.epoch == epoch:  # nobody has chosen another one meanwhile
            self.epoch += 1

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return one batch of one epoch, whatever was drawn before.

        Args:
            epoch: >= 0.
            index: in ``[0, len(self))``.

        Returns:
            Images ``[B, C, H, W]`` of ``dtype`` or token ids int64 ``[B, L]``, and labels int64 ``[B]``, all on the
            device.
        """
        return self._finish(epoch, index, *self.read(epoch, index))

    def read(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return one batch as the split has it, images as uint8 and ids as int32, and labels, where the split lives."""
        size, rows = self._rows(index)
        start = index * self.batch_size
        chosen: slice | Tensor = slice(start + rows.start, start + rows.stop)
        if self.shuffle:
            chosen = self._permutation(epoch)[chosen]
        boxes = None
        if self.augment is not None and self.augment.crop_scale is not None:
            boxes = draw_boxes(size, self.augment.crop_scale, _generator("crop", self.seed, epoch, index))[rows]
        return self.split.take(chosen, boxes)

    def _read(self, epoch: int, indices: range) -> Iterable[tuple[Tensor, Tensor]]:
        if not self.workers:
            return (self.read(epoch, index) for index in indices)
        self._permutation(epoch)  # once, before the workers are forked
        return DataLoader(
            _Epoch(self, epoch),
            batch_size=None,  # an item is a whole batch
            sampler=indices,
            num_workers=self.workers,
            prefetch_factor=4,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # torch's global one belongs to the run
        )

    def _finish(self, epoch: int, index: int, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        inputs, labels = (part.to(self.device, non_blocking=True) for part in (inputs, labels))
        if self._normalization is None:
            return inputs.long(), labels
        shift, scale = self._normalization
        images = torch.addcmul(shift, inputs.to(scale.dtype), scale)
        if self.augment is not None:
            images = self.augment.apply(images, _generator("augment", self.seed, epoch, index), *self._rows(index))
        return images.to(self.dtype), labels

    def _rows(self, index: int) -> tuple[int, slice]:
        """Return the size of a global batch, and which rows of it are this rank's."""
        size = min(self.batch_size, self._total - index * self.batch_size)
        return size, slice(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def _permutation(self, epoch: int) -> Tensor:
        """Return this epoch's order, drawn once per epoch, where the split lives."""
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.split), generator=_generator("order", self.seed, epoch))
            self._order = (epoch, order if self.split.streams else order.to(self.device))
        return self._order[1]


class _Epoch(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """One epoch of a loader, its batches by number: what worker processes are given."""

    def __init__(self, loader: Loader, epoch: int) -> None:
        self.loader = loader
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.loader.read(self.epoch, index)


def _generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator for a key, hashed because torch's CPU generator heeds only 32 bits of a seed."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
