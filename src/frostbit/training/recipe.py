"""What an experiment is: one typed object, written in YAML or given on the command line.

The words beside each field are its documentation and its ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

Spec = str | dict[str, Any]
"""A quantizer in a recipe: its name, or ``{name: …, option: …}``."""
Place = Literal["quantized", "latent"]
"""One of the two weights that there are: what the network computes with, or the parameter."""


@dataclass
class ModelConfig:
    """In which network: what ``frostbit.models.create`` receives."""

    name: Annotated[str, "network; `frostbit summary --help` lists them"] = "resnet8"
    num_classes: Annotated[int | None, "classes; from the data set if left out"] = None
    input_size: Annotated[int | None, "image height and width, or tokens of a text; from the data set if left out"] = (
        None
    )
    width: Annotated[int | None, "channels of the first stage; the network's own if left out"] = None
    stem: Annotated[str | None, "first layers, 'cifar' or 'imagenet'; by image size if left out"] = None
    init: Annotated[str | None, "distribution of the initial weights; the network's own if left out"] = None
    args: Annotated[dict[str, Any], "further arguments of the network"] = field(default_factory=dict)


@dataclass
class BinarizeConfig:
    """How a value becomes binary: what ``frostbit.binarize_`` receives."""

    weight: Annotated[Spec | None, "quantizer of the weights; null keeps them real"] = None
    input: Annotated[Spec | None, "quantizer of the layers' inputs; null keeps them real"] = None
    placement: Annotated[Literal["input", "activation"], "where input quantizers sit"] = "input"
    keep: Annotated[str | list[str] | None, "layers kept real: a rule, names or globs"] = None
    overrides: Annotated[dict[str, dict[str, Any]] | None, "{glob of layer names: other choices}"] = None
    weight_scale: Annotated[str | None, "scaling of binary weights, e.g. mean_abs"] = None
    pad_value: Annotated[float, "value of the padding around binary inputs"] = 0.0
    latent_clip: Annotated[float | None, "clip latent weights to [-c, c] after each step"] = None
    accumulator_bits: Annotated[int | None, "bits of the sums of ±1 products; unlimited if left out"] = None
    min_binary_macs: Annotated[float, "smallest accepted share of binary multiply-accumulates"] = 0.8


@dataclass
class ProgressionConfig:
    """Where and when binary values are enforced: ``frostbit.StoMPP`` or ``frostbit.Anneal``."""

    kind: Annotated[Literal["stompp", "anneal"], "stochastic freezing, or annealing of a quantity"] = "stompp"
    order: Annotated[str | list[str] | None, "forward, reverse, global, damage, gradient, or unit names"] = None
    steps_per_unit: Annotated[list[int] | None, "window lengths; equal shares if left out"] = None
    pace: Annotated[str | None, "window lengths: equal, or by a measured signal: gradient, flips, recovery"] = "equal"
    tail: Annotated[int | float, "steps, or share of the run, after the last window"] = 0
    seed: Annotated[int | None, "seed of the masks; the run's own if left out"] = None
    schedule: Annotated[str | None, "frozen share of a unit over its window"] = "cubic"
    refresh: Annotated[float | None, "steps in which a mask is drawn anew once; null for never"] = 100.0
    refresh_rule: Annotated[str | None, "uniform (persistent field) or resample (of the mask itself)"] = "uniform"
    soft: Annotated[Spec | None, "what unfrozen entries pass through"] = "clip"
    soft_hardness: Annotated[tuple[float, float] | None, "hardness of soft inside a window, first and last"] = None
    ste: Annotated[Spec | None, "surrogate gradient of frozen entries; null lets none pass"] = None
    ste_strength: Annotated[tuple[float, float] | None, "factor on that gradient, first and last"] = None
    ste_span: Annotated[str | None, "what the factor moves over: each unit's window, or the run"] = "window"
    targets: Annotated[list[str] | None, "what is frozen: weight, input or both"] = field(
        default_factory=lambda: ["weight", "input"]
    )
    mask: Annotated[str | None, "one mask entry per element or per channel"] = "element"
    drop_frozen: Annotated[bool | None, "frozen units leave the backward pass"] = True
    quantity: Annotated[str | None, "anneal: which quantity of the quantizers moves"] = "hardness"
    start: Annotated[float | None, "anneal: its first value"] = 5.0
    end: Annotated[float | None, "anneal: its last value"] = 500.0
    shape: Annotated[str | None, "anneal: geometric, linear or sigmoid between them; sum_lr"] = "geometric"


@dataclass
class OptimizerConfig:
    """How weights move."""

    name: Annotated[str, "sgd, adam, adamw; muon; for direct weights bop, bop2ndorder, cema, sgdat"] = "sgd"
    lr: Annotated[float, "learning rate; of the real parameters alone under muon and where weights flip"] = 0.1
    momentum: Annotated[float | None, "sgd: momentum"] = 0.9
    nesterov: Annotated[bool | None, "sgd: Nesterov momentum"] = False
    betas: Annotated[tuple[float, float] | None, "adam, adamw: decay rates of the averages"] = (0.9, 0.999)
    weight_decay: Annotated[float, "weight decay; of the real kernels alone under muon and where weights flip"] = 0.0
    weight_decay_end: Annotated[float | None, "weight decay at the end of the run; constant if left out"] = None
    moments: Annotated[str | None, "moments of weights that freeze: keep, reset, or rescale the second ones"] = "keep"
    moments_at: Annotated[str | None, "when: at the start of a unit's window, its end, or both"] = "start"
    grad_at: Annotated[Place | None, "latent weights: where their gradient is taken"] = "quantized"
    step_from: Annotated[Place | None, "latent weights: where their step starts"] = "latent"
    rest: Annotated[str | None, "muon, flip rules: what moves the real parameters: sgd, adam or adamw"] = "adam"
    threshold: Annotated[float | None, "bop, bop2ndorder, sgdat: threshold; the rule's own if left out"] = None
    gamma: Annotated[float | None, "bop, bop2ndorder, cema: rate of the gradient's average"] = None
    sigma: Annotated[float | None, "bop2ndorder: rate of the squared gradient's average"] = None
    bias_correction: Annotated[str | None, "bop2ndorder: none, paper or adam"] = None
    latent_lr: Annotated[float | None, "muon: learning rate of the latent weights, the size of an entry's step"] = None
    flip_lr: Annotated[float | None, "cema: rate of the second average; sgdat: learning rate"] = None
    threshold_end: Annotated[float | None, "threshold at the end of the run; constant if left out"] = None
    gamma_end: Annotated[float | None, "gamma at the end of the run; constant if left out"] = None
    sigma_end: Annotated[float | None, "sigma at the end of the run; constant if left out"] = None
    hyper_shape: Annotated[str | None, "the way there: linear, exponential, cosine or staircase"] = "linear"
    stairs: Annotated[int | None, "number of stairs of a staircase"] = 5


@dataclass
class ScheduleConfig:
    """Learning rate over the run, as a multiple of ``optimizer.lr``; moves at every optimizer step."""

    name: Annotated[str, "constant, cosine, step or linear"] = "constant"
    warmup_epochs: Annotated[float, "epochs of linear rise from zero"] = 0.0
    milestones: Annotated[list[int] | None, "step: epochs at which the rate is multiplied by gamma"] = None
    gamma: Annotated[float | None, "step: that factor"] = 0.1
    final_lr: Annotated[float | None, "cosine, linear: rate at the end of the run"] = 0.0


@dataclass
class AugmentConfig:
    """Changes to training images; texts have none."""

    flip: Annotated[bool, "mirror half of the images"] = False
    crop_pad: Annotated[int, "pixels of padding before a random crop"] = 0
    crop_per: Annotated[Literal["image", "batch"], "one crop offset per image or per batch"] = "image"
    crop_scale: Annotated[float | None, "streamed images: smallest share of the area that a random crop spans"] = None


@dataclass
class DataConfig:
    """What is learned."""

    name: Annotated[
        str, "data set: digits, cifar10, cifar100, tiny-imagenet, imagenet, sst2, or folder with a path"
    ] = "digits"
    path: Annotated[str | None, "folder of parquet files or class folders"] = None
    size: Annotated[int | None, "resize images to this height and width"] = None
    limit_train: Annotated[int | None, "use this many training samples"] = None
    limit_test: Annotated[int | None, "use this many test samples"] = None
    val_fraction: Annotated[float, "share of the training samples held out for validation"] = 0.0
    stream: Annotated[bool | None, "decode images when they are needed; if left out, for imagenet alone"] = None
    workers: Annotated[int | None, "processes that decode streamed images; one for each core if left out"] = None
    tokenizer: Annotated[str | None, "texts: vocabulary or checkpoint; the model's if left out"] = None
    length: Annotated[int | None, "texts: tokens to cut or pad each to; the longest's if left out"] = None
    augment: Annotated[AugmentConfig, "changes to the training images"] = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig:
    """The loop."""

    epochs: Annotated[int, "passes over the training samples"] = 20
    batch: Annotated[int, "samples per step, over all devices"] = 128
    precision: Annotated[Literal["32", "bf16", "fp16", "64"], "number format of the computation"] = "32"
    eval_every: Annotated[int, "epochs between evaluations; the last epoch is always evaluated"] = 1
    record_every: Annotated[int, "steps between records of training loss, frozen shares and what units do"] = 10
    record_units: Annotated[bool, "record gradient norm, flips, dead channels and more of each unit"] = True
    accelerator: Annotated[str, "auto, cpu, gpu, mps"] = "auto"
    devices: Annotated[int, "how many of them"] = 1
    strategy: Annotated[str, "auto, ddp, or fsdp to shard parameters; several devices mean ddp"] = "auto"
    threads: Annotated[int, "CPU threads; 0 leaves torch's own choice"] = 0
    channels_last: Annotated[bool, "keep images and kernels channels-last in memory: often faster"] = False
    deterministic: Annotated[bool, "deterministic algorithms only"] = False
    checkpoint_every: Annotated[int, "epochs between checkpoints"] = 1
    recalibrate_batches: Annotated[int, "training batches for the final batch-norm statistics"] = 100
    record_moments: Annotated[bool, "also record the optimizer's steps on frozen and unfrozen weights"] = False
    grad_clip: Annotated[float | None, "largest norm of the gradient"] = None
    accumulate: Annotated[int, "batches per optimizer step"] = 1


@dataclass
class BlockadeConfig:
    """A blockade of the gradient at one unit's input, for an experiment: ``frostbit.Blockade``."""

    unit: Annotated[str | None, "name of the unit"] = None
    start: Annotated[float, "share of the run after which it begins"] = 0.0
    stop: Annotated[float, "share of the run after which it ends"] = 1.0


@dataclass
class DistillConfig:
    """Distillation from a float network."""

    teacher: Annotated[str | None, "float run or checkpoint to learn from; {seed} in it is the run's"] = None
    temperature: Annotated[float, "softens both answers"] = 4.0
    weight: Annotated[float, "share of the loss that is the teacher's"] = 0.5
    features: Annotated[list[str], "globs of modules of both networks whose inputs are compared as well"] = field(
        default_factory=list
    )
    feature_weight: Annotated[float, "factor on the sum of their distances"] = 1.0
    compare: Annotated[str, "of a feature: attention (where it is large), or direction (itself)"] = "attention"


@dataclass
class PaperConfig:
    """Which published figure a recipe answers to."""

    figure: Annotated[str | None, "figure or table"] = None
    standing: Annotated[str | None, "how well that figure is known: V, S, R or D"] = None
    source: Annotated[str | None, "where it was published"] = None
    values: Annotated[dict[str, float], "{arm: published accuracy, percent}"] = field(default_factory=dict)
    verdict: Annotated[dict[str, str], "{scale: what our results say to it, without figures}"] = field(
        default_factory=dict
    )


@dataclass
class Recipe:
    """One experiment: what is trained, how, and the arms that are compared."""

    name: Annotated[str, "name of the experiment and of its folder"] = "run"
    imports: Annotated[list[str], "Python files that register quantizers or models of one's own"] = field(
        default_factory=list
    )
    method: Annotated[str, "preset of binarize and progression; explicit settings win"] = "stompp"
    model: Annotated[ModelConfig, "the network"] = field(default_factory=ModelConfig)
    binarize: Annotated[BinarizeConfig | None, "how values become binary"] = field(default_factory=BinarizeConfig)
    progression: Annotated[ProgressionConfig | None, "where and when"] = field(default_factory=ProgressionConfig)
    optimizer: Annotated[OptimizerConfig, "how weights move"] = field(default_factory=OptimizerConfig)
    schedule: Annotated[ScheduleConfig, "learning rate over the run"] = field(default_factory=ScheduleConfig)
    data: Annotated[DataConfig, "what is learned"] = field(default_factory=DataConfig)
    train: Annotated[TrainConfig, "the loop"] = field(default_factory=TrainConfig)
    init_from: Annotated[str | None, "float run or checkpoint to start from; {seed} in it is the run's"] = None
    distill: Annotated[DistillConfig | None, "learning from a float network"] = field(default_factory=DistillConfig)
    blockade: Annotated[BlockadeConfig | None, "a blockade of the gradient"] = field(default_factory=BlockadeConfig)
    seeds: Annotated[list[int], "seeds of initial weights, data order and masks"] = field(default_factory=lambda: [0])
    arms: Annotated[dict[str, dict[str, Any] | None], "{arm: settings that differ}"] = field(default_factory=dict)
    scales: Annotated[dict[str, dict[str, Any] | None], "{smaller scale: settings, arms and seeds that differ}"] = (
        field(default_factory=dict)
    )
    scale: Annotated[str, "full, or which of the scales this is"] = "full"
    paper: Annotated[PaperConfig | None, "the published figure it answers to"] = field(default_factory=PaperConfig)
