"""What an experiment is: one typed object, written in YAML or given on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Spec = str | dict[str, Any]
"""A quantizer in a recipe: its name, or ``{name: …, option: …}``."""


def _option(default: Any, help: str) -> Any:
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _section(kind: type, help: str) -> Any:
    return field(default_factory=kind, metadata={"help": help})


@dataclass
class ModelConfig:
    """In which network: what ``frostbit.models.create`` receives."""

    name: str = _option("resnet8", "network; `frostbit summary --help` lists them")
    num_classes: int | None = _option(None, "classes; from the data set if left out")
    input_size: int | None = _option(None, "image height and width; from the data set if left out")
    width: int | None = _option(None, "channels of the first stage; the network's own if left out")
    stem: str | None = _option(None, "first layers, 'cifar' or 'imagenet'; by image size if left out")
    init: str | None = _option(None, "distribution of the initial weights; the network's own if left out")
    args: dict[str, Any] = _option({}, "further arguments of the network")


@dataclass
class BinarizeConfig:
    """How a value becomes binary: what ``frostbit.binarize_`` receives."""

    weight: Spec | None = _option(None, "quantizer of the weights; null keeps them real")
    input: Spec | None = _option(None, "quantizer of the layers' inputs; null keeps them real")
    placement: Literal["input", "activation"] = _option("input", "where input quantizers sit")
    keep: str | list[str] | None = _option(None, "layers kept real: a rule, names or globs")
    overrides: dict[str, dict[str, Any]] | None = _option(None, "{glob of layer names: other choices}")
    weight_scale: str | None = _option(None, "scaling of binary weights, e.g. mean_abs")
    pad_value: float = _option(0.0, "value of the padding around binary inputs")
    latent_clip: float | None = _option(None, "clip latent weights to [-c, c] after each step")
    min_binary_macs: float = _option(0.8, "smallest accepted share of binary multiply-accumulates")


@dataclass
class ProgressionConfig:
    """Where and when binary values are enforced: ``frostbit.StoMPP`` or ``frostbit.Anneal``."""

    kind: Literal["stompp", "anneal"] = _option("stompp", "stochastic freezing, or annealing of a quantity")
    order: str | list[str] | None = _option(None, "forward, reverse, global, or a list of unit names")
    steps_per_unit: list[int] | None = _option(None, "window lengths; equal shares if left out")
    tail: int | float = _option(0, "steps, or share of the run, after the last window")
    seed: int | None = _option(None, "seed of the masks; the run's own if left out")
    schedule: str | None = _option("cubic", "frozen share of a unit over its window")
    refresh: float | None = _option(100.0, "steps in which a mask is drawn anew once; null for never")
    refresh_rule: str | None = _option("uniform", "uniform (persistent field) or resample (of the mask itself)")
    soft: Spec | None = _option("clip", "what unfrozen entries pass through")
    soft_hardness: tuple[float, float] | None = _option(None, "hardness of soft inside a window, first and last")
    ste: Spec | None = _option(None, "surrogate gradient of frozen entries; null lets none pass")
    targets: list[str] | None = _option(["weight", "input"], "what is frozen: weight, input or both")
    mask: str | None = _option("element", "one mask entry per element or per channel")
    drop_frozen: bool | None = _option(True, "frozen units leave the backward pass")
    quantity: str | None = _option("hardness", "anneal: which quantity of the quantizers moves")
    start: float | None = _option(5.0, "anneal: its first value")
    end: float | None = _option(500.0, "anneal: its last value")
    shape: str | None = _option("geometric", "anneal: the curve between them")


@dataclass
class OptimizerConfig:
    """How weights move."""

    name: str = _option("sgd", "sgd, adam or adamw")
    lr: float = _option(0.1, "learning rate")
    momentum: float | None = _option(0.9, "sgd: momentum")
    nesterov: bool | None = _option(False, "sgd: Nesterov momentum")
    betas: tuple[float, float] | None = _option((0.9, 0.999), "adam, adamw: decay rates of the averages")
    weight_decay: float = _option(0.0, "weight decay")


@dataclass
class ScheduleConfig:
    """Learning rate over the run, as a multiple of ``optimizer.lr``; moves at every optimizer step."""

    name: str = _option("constant", "constant, cosine, step or linear")
    warmup_epochs: float = _option(0.0, "epochs of linear rise from zero")
    milestones: list[int] | None = _option(None, "step: epochs at which the rate is multiplied by gamma")
    gamma: float | None = _option(0.1, "step: that factor")
    final_lr: float | None = _option(0.0, "cosine, linear: rate at the end of the run")


@dataclass
class AugmentConfig:
    """Changes to the training images."""

    flip: bool = _option(False, "mirror half of the images")
    crop_pad: int = _option(0, "pixels of padding before a random crop")
    crop_per: Literal["image", "batch"] = _option("image", "one crop offset per image or per batch")


@dataclass
class DataConfig:
    """What is learned."""

    name: str = _option("digits", "data set: digits, cifar10, cifar100, or any name with a path")
    path: str | None = _option(None, "folder of parquet files or class folders")
    size: int | None = _option(None, "resize images to this height and width")
    limit_train: int | None = _option(None, "use this many training images")
    limit_test: int | None = _option(None, "use this many test images")
    val_fraction: float = _option(0.0, "share of the training images held out for validation")
    augment: AugmentConfig = _section(AugmentConfig, "changes to the training images")


@dataclass
class TrainConfig:
    """The loop."""

    epochs: int = _option(20, "passes over the training images")
    batch: int = _option(128, "images per step, over all devices")
    precision: Literal["32", "bf16", "fp16", "64"] = _option("32", "number format of the computation")
    eval_every: int = _option(1, "epochs between evaluations; the last epoch is always evaluated")
    record_every: int = _option(10, "steps between records of training loss and frozen shares")
    accelerator: str = _option("auto", "auto, cpu, gpu, mps")
    devices: int = _option(1, "how many of them")
    strategy: str = _option("auto", "auto or ddp; several devices mean ddp")
    threads: int = _option(0, "CPU threads; 0 leaves torch's own choice")
    channels_last: bool = _option(False, "keep images and kernels channels-last in memory: often faster")
    deterministic: bool = _option(False, "deterministic algorithms only")
    checkpoint_every: int = _option(1, "epochs between checkpoints")
    recalibrate_batches: int = _option(100, "training batches for the final batch-norm statistics")
    grad_clip: float | None = _option(None, "largest norm of the gradient")
    accumulate: int = _option(1, "batches per optimizer step")


@dataclass
class PaperConfig:
    """Which published figure a recipe answers to."""

    figure: str | None = _option(None, "figure or table")
    standing: str | None = _option(None, "how well that figure is known: V, S, R or D")
    source: str | None = _option(None, "where it was published")


@dataclass
class Recipe:
    """One experiment: what is trained, how, and the arms that are compared."""

    name: str = _option("run", "name of the experiment and of its folder")
    method: str = _option("stompp", "preset of binarize and progression; explicit settings win")
    model: ModelConfig = _section(ModelConfig, "the network")
    binarize: BinarizeConfig | None = _section(BinarizeConfig, "how values become binary")
    progression: ProgressionConfig | None = _section(ProgressionConfig, "where and when")
    optimizer: OptimizerConfig = _section(OptimizerConfig, "how weights move")
    schedule: ScheduleConfig = _section(ScheduleConfig, "learning rate over the run")
    data: DataConfig = _section(DataConfig, "what is learned")
    train: TrainConfig = _section(TrainConfig, "the loop")
    init_from: str | None = _option(None, "checkpoint of a float run to start from")
    seeds: list[int] = _option([0], "seeds of initial weights, data order and masks")
    arms: dict[str, dict[str, Any] | None] = _option({}, "{arm: settings that differ}")
    paper: PaperConfig | None = _section(PaperConfig, "the published figure it answers to")
