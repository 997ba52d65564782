"""Batches: normalization, order, repeatability, resuming, and several processes against one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostbit.data import Augment, Loader, Split
from frostbit.errors import UsageError

MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
AUGMENT = Augment(crop_pad=1)


def numbered(count: int) -> Split:
    """Images whose label is their position."""
    images = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Split(images, torch.arange(count))


def make(count: int = 22, batch_size: int = 8, *, shuffle: bool = True, **options: object) -> Loader:
    return Loader(numbered(count), batch_size, shuffle=shuffle, mean=MEAN, std=STD, **options)


def order(loader: Loader) -> list[int]:
    return [label for _, labels in loader for label in labels.tolist()]


def equal(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
)
def test_batches_are_normalized_per_channel(dtype: torch.dtype, tolerance: float) -> None:
    split = numbered(5)
    ((images, labels),) = list(make(5, 8, shuffle=False, dtype=dtype))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    assert images.dtype == dtype
    torch.testing.assert_close(images.double(), (split.inputs / 255.0 - mean) / std, rtol=tolerance, atol=3e-7)
    assert torch.equal(labels, split.labels)


def test_a_crop_moves_in_the_mean_colour() -> None:
    images = make(64, 64, augment=Augment(flip=False, crop_pad=4, crop_per="image")).batch(0, 0)[0]
    corners = images[:, :, 0, 0]
    assert (corners == 0).all(1).float().mean() > 0.3


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"),
    [(22, False, [8, 8, 6]), (22, True, [8, 8]), (16, False, [8, 8]), (16, True, [8, 8]), (3, False, [3])],
)
def test_the_length_and_the_last_batch(count: int, drop_last: bool, sizes: list[int]) -> None:
    loader = make(count, drop_last=drop_last)
    assert len(loader) == len(sizes)
    assert [len(labels) for _, labels in loader] == sizes


def test_shuffling_is_a_new_permutation_each_epoch_and_the_same_again() -> None:
    loader = make()
    first = order(loader)
    assert sorted(first) == list(range(22))
    assert first != list(range(22))
    second = order(loader)  # a loop that chooses no epoch has a new order too
    loader.set_epoch(1)
    assert order(loader) == second
    assert sorted(second) == list(range(22))
    assert second != first
    loader.set_epoch(0)
    assert order(loader) == first
    assert order(make(seed=1)) != first
    assert order(make(shuffle=False)) == list(range(22))


def test_a_pass_moves_on_only_from_its_end_and_only_where_no_epoch_was_chosen() -> None:
    loader = make()
    next(iter(loader))
    assert loader.epoch == 0
    for _ in loader:
        loader.set_epoch(5)
    assert loader.epoch == 5


def test_a_seed_of_numpy_is_the_same_seed() -> None:
    assert order(make(seed=np.int64(3))) == order(make(seed=3))


def test_batches_do_not_depend_on_history_or_on_the_global_generator() -> None:
    straight = make(augment=AUGMENT)
    batches = []
    for epoch in range(3):
        straight.set_epoch(epoch)
        batches.append(list(straight))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    resumed = make(augment=AUGMENT)
    assert equal(resumed.batch(2, 1), batches[2][1])
    resumed.set_epoch(1, first_batch=1)
    again = list(resumed)
    assert len(again) == 2
    assert all(equal(a, b) for a, b in zip(again, batches[1][1:], strict=True))
    assert len(list(resumed)) == len(resumed) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_differs_between_epochs_batches_and_seeds() -> None:
    def first_choice(epoch: int, index: int, seed: int) -> torch.Tensor:
        loader = Loader(
            Split(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(64, -1, -1, -1), torch.zeros(64)),
            32,
            shuffle=False,
            augment=Augment(crop_pad=3),
            mean=(0.5,),
            std=(0.5,),
            seed=seed,
        )
        return loader.batch(epoch, index)[0]

    seen = [first_choice(*key) for key in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 2**32)]]
    for i, a in enumerate(seen):
        assert not any(torch.equal(a, b) for b in seen[i + 1 :])


def test_the_epoch_is_read_when_the_first_batch_is_drawn() -> None:
    loader = make()
    iterator = iter(loader)
    loader.set_epoch(3)
    assert equal(next(iterator), loader.batch(3, 0))


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(12, 40),
    per_rank=st.integers(1, 4),
    world_size=st.integers(1, 4),
    shuffle=st.booleans(),
    per=st.sampled_from(["image", "batch"]),
    epoch=st.integers(0, 3),
)
def test_the_ranks_together_are_the_one_process_batch(
    count: int, per_rank: int, world_size: int, shuffle: bool, per: str, epoch: int
) -> None:
    batch_size = min(per_rank * world_size, 12 // world_size * world_size)
    augment = Augment(crop_pad=1, crop_per=per)
    options = {"shuffle": shuffle, "augment": augment, "drop_last": shuffle}
    one = make(count, batch_size, **options)
    ranks = [make(count, batch_size, rank=r, world_size=world_size, **options) for r in range(world_size)]
    assert {len(loader) for loader in ranks} == {len(one)}
    for index in range(len(one)):
        parts = [loader.batch(epoch, index) for loader in ranks]
        joined = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        assert equal(joined, one.batch(epoch, index))
        if shuffle:
            assert {len(labels) for _, labels in parts} == {batch_size // world_size}


def test_a_shuffled_loader_of_several_ranks_drops_the_ragged_batch_by_itself() -> None:
    assert [len(labels) for _, labels in make(22, 8, rank=1, world_size=2)] == [4, 4]


def test_evaluation_ranks_may_be_ragged_but_miss_nothing() -> None:
    loaders = [make(9, 8, shuffle=False, rank=rank, world_size=2) for rank in range(2)]
    assert [[len(labels) for _, labels in loader] for loader in loaders] == [[4, 0], [4, 1]]
    assert loaders[0].batch(0, 1)[0].shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, found 0"),
        ({"batch_size": 23, "drop_last": True}, "batch_size 23 is larger than the 22 samples of the split"),
        ({"batch_size": 24, "world_size": 2}, "batch_size 24 is larger than the 22 samples"),
        ({"batch_size": 9, "world_size": 2}, "batch_size 9 is the global batch and must divide by 2 ranks"),
        ({"rank": 2, "world_size": 2}, "found rank 2 of 2"),
        ({"world_size": 0}, "found rank 0 of 0"),
        ({"mean": (0.5,)}, "one value for each of 3 channels, found 1 and 3"),
        ({"dtype": torch.int64}, "dtype must be a floating point type, found torch.int64"),
    ],
)
def test_impossible_options_get_one_sentence(options: dict[str, object], said: str) -> None:
    arguments = {"batch_size": 8, "shuffle": True, "mean": MEAN, "std": STD} | options
    with pytest.raises(UsageError) as caught:
        Loader(numbered(22), **arguments)
    assert said in str(caught.value)


def test_images_without_statistics_come_in_units_of_0_to_1():
    images = torch.arange(0, 48, dtype=torch.uint8).view(4, 1, 3, 4) * 5
    split = Split(images, torch.zeros(4, dtype=torch.int64))
    ((found, _),) = Loader(split, 4, shuffle=False, mean=None, std=None)
    torch.testing.assert_close(found, images / 255)
