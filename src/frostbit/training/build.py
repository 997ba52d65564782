"""From a recipe and a seed to data, network and progression, ready to train or to evaluate."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from frostbit import data as datasets
from frostbit import models
from frostbit.binarize import Report, binarize_
from frostbit.data import Dataset, Loader
from frostbit.errors import UsageError
from frostbit.progression import Anneal, Progression, StoMPP
from frostbit.training.files import load_tensors
from frostbit.training.module import check_keys
from frostbit.training.recipe import Recipe
from frostbit.training.resolve import COMMON_FIELDS, PROGRESSION_FIELDS


@dataclasses.dataclass
class Built:
    """Everything a run consists of.

    Args:
        recipe: complete, with what the data set decided filled in.
        data: the data set.
        net: the network, converted.
        report: what the conversion did; ``None`` for a float network.
        progression: ``None`` for methods without.
        steps_per_epoch: optimizer steps in one epoch.
    """

    recipe: Recipe
    data: Dataset
    net: nn.Module
    report: Report | None
    progression: Progression | None
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.recipe.train.epochs * self.steps_per_epoch


def build(recipe: Recipe, seed: int) -> Built:
    """Load the data, make and convert the network, and set up its progression.

    Args:
        recipe: one arm, see :func:`frostbit.training.resolve.resolve`.
        seed: of the initial weights and the masks; torch's global generator is seeded with it.

    Returns:
        The parts. ``recipe.model.num_classes`` and ``input_size`` are filled in.

    Raises:
        UsageError: something in the recipe cannot be.
    """
    with one_sentence():
        return _build(dataclasses.replace(recipe), seed)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn the core's complaints about names and values into the user's kind of error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from error


def _build(recipe: Recipe, seed: int) -> Built:
    data = load_data(recipe)
    check_shape(recipe, data.name, data.image_shape[1], len(data.classes))
    batches = len(data.train) // recipe.train.batch
    if not batches:
        raise UsageError(f"train.batch is {recipe.train.batch}, but there are only {len(data.train)} training images")
    steps_per_epoch = -(-batches // recipe.train.accumulate)

    random.seed(seed)
    torch.manual_seed(seed)
    net, report = make_net(recipe, example_images(recipe, data), seed)
    progression = make_progression(recipe, net, recipe.train.epochs * steps_per_epoch, seed)
    return Built(recipe, data, net, report, progression, steps_per_epoch)


def example_images(recipe: Recipe, data: Dataset) -> torch.Tensor:
    """Return a few training images as the network will see them."""
    dtype = torch.float64 if recipe.train.precision == "64" else torch.float32
    few = min(16, len(data.train))
    return Loader(data.train, few, shuffle=False, mean=data.mean, std=data.std, dtype=dtype).batch(0, 0)[0]


def load_data(recipe: Recipe) -> Dataset:
    """Load the recipe's data set."""
    config = recipe.data
    return datasets.load(
        config.name,
        path=config.path,
        size=config.size,
        limit_train=config.limit_train,
        limit_test=config.limit_test,
        val_fraction=config.val_fraction,
    )


def make_net(recipe: Recipe, example: torch.Tensor, seed: int = 0) -> tuple[nn.Module, Report | None]:
    """Create the network and convert it; what the recipe leaves open stays at the network's own default.

    Args:
        recipe: with ``model.num_classes`` and ``model.input_size`` filled in.
        example: a batch of images ``[N, C, H, W]``.
        seed: what ``{seed}`` in ``init_from`` stands for.

    Returns:
        The network and what its conversion did, ``None`` for a float network.
    """
    config = recipe.model
    chosen = {name: getattr(config, name) for name in ("num_classes", "input_size", "width", "stem", "init")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    net = models.create(config.name, in_channels=example.shape[1], **chosen, **config.args).to(example.dtype)
    if recipe.init_from is not None:
        load_float(net, recipe.init_from.replace("{seed}", str(seed)))
    if recipe.train.channels_last:  # the first convolution hands its kernel's format on to all that follow
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
    if recipe.binarize is None:
        return net, None
    settings = {f.name: getattr(recipe.binarize, f.name) for f in dataclasses.fields(recipe.binarize)}
    if settings["keep"] is None:
        del settings["keep"]
    return net, binarize_(net, example_input=example, **settings)


def make_progression(recipe: Recipe, net: nn.Module, total_steps: int, seed: int) -> Progression | None:
    """Create the recipe's progression over ``net``, or nothing."""
    config = recipe.progression
    if config is None:
        return None
    chosen = {name: getattr(config, name) for name in (*COMMON_FIELDS, *PROGRESSION_FIELDS[config.kind])}
    if config.seed is None:
        chosen["seed"] = seed
    kind: type[StoMPP] | type[Anneal] = StoMPP if config.kind == "stompp" else Anneal
    return kind(net, total_steps=total_steps, **chosen)


def load_float(net: nn.Module, source: str) -> None:
    """Load the weights of a float run strictly.

    Args:
        net: the float network.
        source: a run folder, a checkpoint of a run, or a file with a plain state dict.

    Raises:
        UsageError: no such file, or weights of another network.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "final.pt"
    state = load_tensors(path)
    if isinstance(state.get("state_dict"), dict):
        state = {key.removeprefix("net."): value for key, value in state["state_dict"].items()}
    check_keys(net.state_dict(), state, source)
    net.load_state_dict(state)


def check_shape(recipe: Recipe, name: str, size: int, classes: int) -> None:
    """Fill in what the data set ``name`` decides about the network, refusing what contradicts it."""
    model = dataclasses.replace(recipe.model)
    if model.num_classes is not None and model.num_classes < classes:
        raise UsageError(f"model.num_classes is {model.num_classes}, but {name!r} has {classes} classes")
    if model.input_size is not None and model.input_size != size:
        raise UsageError(f"model.input_size is {model.input_size}, but images are {size} wide: leave it out")
    model.num_classes = model.num_classes or classes
    model.input_size = size
    recipe.model = model
