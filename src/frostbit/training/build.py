"""From a recipe and a seed to data, network and progression, ready to train or to evaluate."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frostbit import data as datasets
from frostbit import models
from frostbit.binarize import binarize_
from frostbit.conversion import Report
from frostbit.data import Dataset, Loader
from frostbit.errors import UsageError
from frostbit.progression import ORDERINGS, Anneal, Blockade, Progression, StoMPP, order_by
from frostbit.training.distill import Distill
from frostbit.training.files import load_tensors
from frostbit.training.module import check_keys
from frostbit.training.recipe import Recipe
from frostbit.training.recipe_file import read_yaml
from frostbit.training.resolve import COMMON_FIELDS, PROGRESSION_FIELDS, resolve
from frostbit.training.settings import flatten

#: training samples from which an order of freezing is computed
ORDERING_SAMPLES = 256


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
        blockade: ``None`` for all but experiments with one.
        distill: ``None`` where only labels are learned.
    """

    recipe: Recipe
    data: Dataset
    net: nn.Module
    report: Report | None
    progression: Progression | None
    steps_per_epoch: int
    blockade: Blockade | None = None
    distill: Distill | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.recipe.train.epochs * self.steps_per_epoch


def build(recipe: Recipe, seed: int, steps_per_epoch: int | None = None) -> Built:
    """Load the data, make and convert the network, and set up its progression.

    Args:
        recipe: one arm, see :func:`frostbit.training.resolve.resolve`.
        seed: of the initial weights and the masks; torch's global generator is seeded with it.
        steps_per_epoch: of a run that was trained elsewhere; as many as the training samples give if left out.

    Returns:
        The parts. ``recipe.model.num_classes`` and ``input_size`` are filled in.

    Raises:
        UsageError: something in the recipe cannot be.
    """
    recipe = dataclasses.replace(recipe)
    data = load_data(recipe)
    check_shape(recipe, data.name, data.input_shape[-1], len(data.classes))
    if steps_per_epoch is None:
        batches = len(data.train) // recipe.train.batch
        if not batches:
            found = f"there are only {len(data.train)} training samples"
            raise UsageError(f"train.batch is {recipe.train.batch}, but {found}")
        steps_per_epoch = -(-batches // recipe.train.accumulate)

    random.seed(seed)
    torch.manual_seed(seed)
    example = example_batch(recipe, data, 16)[0]
    net, report = make_net(recipe, example, seed, data.vocabulary)
    steps = recipe.train.epochs * steps_per_epoch
    progression = make_progression(recipe, net, steps, seed, data)
    blockade = make_blockade(recipe, net, steps)
    distill = make_distill(recipe, net, example, seed, data.vocabulary)
    return Built(recipe, data, net, report, progression, steps_per_epoch, blockade, distill)


def example_batch(recipe: Recipe, data: Dataset, few: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a few training images or texts as the network will see them, and their labels."""
    few = min(few, len(data.train))
    return Loader(data.train, few, shuffle=False, mean=data.mean, std=data.std, dtype=dtype_of(recipe)).batch(0, 0)


def dtype_of(recipe: Recipe) -> torch.dtype:
    """Return the dtype of parameters and images."""
    return torch.float64 if recipe.train.precision == "64" else torch.float32


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
        stream=config.stream,
        tokenizer=config.tokenizer or recipe.model.args.get("checkpoint"),
        length=config.length,
    )


def make_net(
    recipe: Recipe, example: torch.Tensor, seed: int = 0, vocabulary: tuple[int, int] | None = None
) -> tuple[nn.Module, Report | None]:
    """Create the network and convert it; what the recipe leaves open stays at the network's own default.

    Args:
        recipe: with ``model.num_classes`` and ``model.input_size`` filled in.
        example: a batch of images ``[N, C, H, W]``, or of token ids ``[N, L]``.
        seed: what ``{seed}`` in ``init_from`` stands for.
        vocabulary: of those ids, see :class:`frostbit.data.Dataset`.

    Returns:
        The network and what its conversion did, ``None`` for a float network.

    Raises:
        UsageError: a network for images and a data set of texts, or the reverse, or two vocabularies.
    """
    config = recipe.model
    chosen = {name: getattr(config, name) for name in ("num_classes", "input_size", "width", "stem", "init")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    reads_images = "in_channels" in models.arguments(config.name)
    if reads_images != (vocabulary is None):
        wants, has = ("images", "texts") if reads_images else ("texts", "images")
        raise UsageError(f"model {config.name!r} reads {wants}, but data set {recipe.data.name!r} holds {has}")
    if vocabulary is None:
        chosen["in_channels"] = example.shape[1]
    try:
        net = models.create(config.name, **chosen, **config.args).to(dtype_of(recipe))
    except UsageError:
        raise
    except (TypeError, ValueError) as error:  # model.args holds whatever a user wrote
        raise UsageError(f"model {config.name!r} cannot be made: {error}") from error
    if vocabulary is not None:
        check_vocabulary(recipe, net, vocabulary)
    if recipe.init_from is not None:
        load_float(net, recipe.init_from.replace("{seed}", str(seed)))
    if recipe.train.channels_last:  # the first convolution hands its kernel's format on to all that follow
        net = nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)
    if recipe.binarize is None:
        return net, None
    settings = {f.name: getattr(recipe.binarize, f.name) for f in dataclasses.fields(recipe.binarize)}
    if settings["keep"] is None:
        del settings["keep"]
    return net, binarize_(net, example_input=example, **settings)


def make_progression(recipe: Recipe, net: nn.Module, total_steps: int, seed: int, data: Dataset) -> Progression | None:
    """Create the recipe's progression over ``net``, or nothing; an order to be computed is so on training samples."""
    config = recipe.progression
    if config is None:
        return None
    chosen = {name: getattr(config, name) for name in (*COMMON_FIELDS, *PROGRESSION_FIELDS[config.kind])}
    if config.seed is None:
        chosen["seed"] = seed
    if config.order in ORDERINGS:
        if config.kind != "stompp":
            raise UsageError(f"progression.order={config.order!r} is computed for stompp, found kind={config.kind!r}")
        inputs, labels = example_batch(recipe, data, ORDERING_SAMPLES)
        freezes: Any = {"soft": config.soft, "targets": config.targets}
        chosen["order"] = order_by(str(config.order), net, inputs, labels, **freezes)
    kind: type[StoMPP] | type[Anneal] = StoMPP if config.kind == "stompp" else Anneal
    return kind(net, total_steps=total_steps, **chosen)


def make_blockade(recipe: Recipe, net: nn.Module, total_steps: int) -> Blockade | None:
    """Create the recipe's blockade over ``net``, or nothing; after its progression."""
    config = recipe.blockade
    if config is None:
        return None
    return Blockade(net, config.unit or "", round(config.start * total_steps), round(config.stop * total_steps))


def make_distill(
    recipe: Recipe,
    student: nn.Module,
    example: torch.Tensor,
    seed: int,
    vocabulary: tuple[int, int] | None = None,
) -> Distill | None:
    """Load the recipe's teacher of a student, or nothing; no random number that the run draws depends on it.

    Raises:
        UsageError: no float network for these inputs and classes.
    """
    config = recipe.distill
    if config is None:
        return None
    source = str(config.teacher).replace("{seed}", str(seed))
    model = recipe.model
    settings = Path(source) / "config.yaml"
    if settings.exists():  # the teacher may be another network than the student
        theirs = resolve(flatten(read_yaml(settings).get("recipe") or {}, str(settings)))
        if theirs.binarize is not None:
            raise UsageError(f"distill.teacher must be a float run, found method {theirs.method!r} in {source!r}")
        model = theirs.model
    if settings.exists() and not any((Path(source) / name).exists() for name in ("final.pt", "last.ckpt")):
        raise UsageError(f"distill.teacher {source!r} has not been trained yet: run the float arm first, by itself")
    sizes = [(m.num_classes, m.input_size) for m in (recipe.model, model)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"distill.teacher must have {sizes[0][0]} classes and inputs of size {sizes[0][1]}, "
            f"found {sizes[1][0]} and {sizes[1][1]} in {source!r}"
        )
    with torch.random.fork_rng():
        teacher, _ = make_net(
            dataclasses.replace(recipe, model=model, binarize=None, init_from=source), example, seed, vocabulary
        )
    return Distill(
        teacher,
        config.temperature,
        config.weight,
        student=student,
        features=config.features,
        feature_weight=config.feature_weight,
        compare=config.compare,
    )


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


def check_vocabulary(recipe: Recipe, net: nn.Module, found: tuple[int, int]) -> None:
    """Refuse texts whose token ids mean something else to the network, as far as numbers can tell."""
    known: tuple[int, int] = vars(net)["vocabulary"]  # a plain attribute of models that read texts
    if found[0] > known[0] or found[1] != known[1]:
        raise UsageError(
            f"the tokenizer has {found[0]} tokens and pads with {found[1]}, but model {recipe.model.name!r} knows "
            f"{known[0]} and pads with {known[1]}: leave out data.tokenizer to use the checkpoint's own"
        )


def check_shape(recipe: Recipe, name: str, size: int, classes: int) -> None:
    """Fill in what the data set ``name`` decides about the network, refusing what contradicts it."""
    model = dataclasses.replace(recipe.model)
    if model.num_classes is not None and model.num_classes < classes:
        raise UsageError(f"model.num_classes is {model.num_classes}, but {name!r} has {classes} classes")
    if model.input_size is not None and model.input_size != size:
        raise UsageError(
            f"model.input_size is {model.input_size}, but the inputs of {name!r} have {size}: leave it out"
        )
    model.num_classes = model.num_classes or classes
    model.input_size = size
    recipe.model = model
