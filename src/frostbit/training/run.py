"""One run, from its recipe to its folder."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from frostbit.analysis.sawtooth import frozen_over_open, sawtooth_amplitude
from frostbit.errors import RunError, UsageError
from frostbit.evaluation import recalibrate_
from frostbit.training.build import Built, build
from frostbit.training.callbacks import TOP5_FROM, AtomicCheckpointIO, Evaluate, Save
from frostbit.training.evaluate import score
from frostbit.training.files import load_tensors, read_json, save_tensors, write_atomically, write_json
from frostbit.training.module import TrainingModule
from frostbit.training.provenance import git_state, hardware, versions
from frostbit.training.recipe import Recipe
from frostbit.training.recipe_file import read_yaml
from frostbit.training.resolve import resolve
from frostbit.training.settings import flatten, to_dict
from frostbit.training.shard import check_sharding

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "64": "64-true",
}


def train(
    recipe: Recipe,
    *,
    arm: str,
    seed: int,
    folder: str | Path,
    resume: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train one arm with one seed and leave a folder that explains itself.

    The folder receives ``config.yaml``, ``metrics.csv``, ``metrics_steps.csv``, ``units.parquet``, ``tb/``,
    ``last.ckpt``, ``final.pt`` and ``result.json``. ``final.pt`` is the network of the reported figure: last epoch,
    batch-norm statistics recalibrated; ``last.ckpt`` keeps the statistics of the training.

    Args:
        recipe: complete, see :func:`frostbit.training.resolve.resolve`.
        arm: name of the arm, written into the result.
        seed: of initial weights, data order and masks.
        folder: the run's folder; made if needed.
        resume: go on from ``last.ckpt`` if there is one.
        progress: show a progress bar.
        callbacks: further ones of Lightning's; at the end of an epoch they run after the evaluation, before the
            checkpoint.

    Returns:
        The content of ``result.json``; an empty mapping on ranks other than 0.

    Raises:
        UsageError: something in the recipe cannot be.
        RunError: a value was not finite, or the disk is full.
    """
    folder = Path(folder)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    built = build(recipe, seed)
    recipe = built.recipe
    checkpoint = folder / "last.ckpt"
    module = TrainingModule(
        built.net,
        recipe,
        built.data,
        seed=seed,
        steps_per_epoch=built.steps_per_epoch,
        progression=built.progression,
        blockade=built.blockade,
        distill=built.distill,
        checkpoint=checkpoint,
    )
    with quiet_lightning():
        trainer = make_trainer(recipe, folder, progress, callbacks)
        if trainer.is_global_zero:
            write_config(folder, recipe, arm, seed, derived(built) | {"classes": list(built.data.classes)})
        try:
            trainer.fit(module, ckpt_path=checkpoint if resume and checkpoint.exists() else None)
        except OSError as error:  # the event files of TensorBoard are not written by us
            raise RunError(f"cannot write in {str(folder)!r}: {error.strerror or error}") from error
    if not trainer.is_global_zero:
        return {}
    if recipe.train.strategy == "fsdp":  # the last checkpoint holds the whole network
        module, built = load_run(folder)
    module.write_record(folder)
    result = finish(module, built, arm, seed, trainer)
    write_json(folder / "result.json", result)
    return result


def make_trainer(recipe: Recipe, folder: Path, progress: bool, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """Return the Lightning trainer of a recipe."""
    config = recipe.train
    strategy: str | Strategy = "auto"
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))  # torchrun's word for the number of machines
    if config.strategy == "fsdp":
        check_sharding(recipe)
        world = config.devices * nodes
        strategy = ModelParallelStrategy(world, tensor_parallel_size=1, save_distributed_checkpoint=False)
    elif config.strategy == "ddp" or config.devices * nodes > 1:
        # what a hard sign without a surrogate blocks leaves the backward pass, so its parameters have no gradient
        strategy = DDPStrategy(find_unused_parameters=recipe.binarize is not None)
    accelerator = config.accelerator
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("train.precision fp16 needs a GPU: use bf16 or 32 here")
    try:
        return L.Trainer(
            max_epochs=config.epochs,
            accelerator=accelerator,
            devices=config.devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=PRECISIONS[config.precision],
            deterministic=config.deterministic,
            gradient_clip_val=config.grad_clip,
            accumulate_grad_batches=config.accumulate,
            logger=TensorBoardLogger(folder, name="tb", version=""),
            callbacks=[Evaluate(), *callbacks, Save(folder), *([RichProgressBar(leave=False)] if progress else [])],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=True,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            log_every_n_steps=10**9,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(
            f"train.accelerator {accelerator} with {config.devices} device(s) is not possible here: {reason}"
        ) from None


def finish(module: TrainingModule, built: Built, arm: str, seed: int, trainer: L.Trainer) -> dict[str, Any]:
    """Score the hardened network raw and recalibrated, write ``final.pt``, and return the result."""
    folder = Path(str(trainer.logger.save_dir)) if trainer.logger else Path()
    # one process scores the whole split, whatever the number of ranks was; Lightning has left the device by now
    module._trainer = None
    module.release_loaders()
    module.to(trainer.strategy.root_device)
    context = trainer.precision_plugin.forward_context
    net = module.net
    test = module.loader(built.data.test)
    _, raw, top5 = score(net, test, hardened=True, context=context)
    recalibrated = raw
    if built.recipe.binarize is not None and built.recipe.train.recalibrate_batches:
        with context():
            recalibrate_(net, recalibration_batches(module))
        _, recalibrated, top5 = score(net, test, hardened=True, context=context)
    save_state(folder / "final.pt", net)
    curve = module.record.curve
    final = {"raw": raw, "recalibrated": recalibrated, "train": curve[-1]["train_acc"]}
    if len(built.data.classes) >= TOP5_FROM:
        final["top5"] = top5
    if built.data.val is not None:  # what choices between runs may look at
        final["val"] = score(net, module.loader(built.data.val), hardened=True, context=context)[1]
    return {
        "recipe": built.recipe.name,
        "arm": arm,
        "seed": seed,
        "resolved": resolved_config(built),
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(module.device),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(module.seconds, 2),
        "seconds_cpu": round(module.seconds_cpu, 2),
        "seconds_evaluating": round(module.seconds_evaluating, 2),
        "binary_macs": binary_mac_share(built),
        "windows": windows(built),
        "sawtooth": sawtooth_amplitude(module.record.steps, windows(built)),
        "frozen_over_open": frozen_over_open(module.record.steps, windows(built)),
        "curve": curve,
        "warnings": [row["text"] for row in module.record.warnings],
        "final": final,
    }


def precision_context(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return what a trainer enters around a forward pass at a recipe's ``train.precision``."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return nullcontext if dtype is None else partial(torch.autocast, device.type, dtype=dtype)


def recalibration_batches(module: TrainingModule) -> Iterator[torch.Tensor]:
    """Yield the training inputs, without augmentation, over which batch-norm statistics are taken anew.

    Full batches only: a ragged one would weigh as much as the others, and one sample has no variance.
    """
    config = module.recipe.train
    batches = module.loader(module.data.train)
    full = len(module.data.train) // config.batch
    return (inputs for inputs, _ in islice(batches, min(config.recalibrate_batches, full)))


def save_state(path: Path, net: torch.nn.Module) -> None:
    """Write a network's state dict, on the CPU, atomically."""
    save_tensors(path, {k: v.detach().cpu() for k, v in net.state_dict().items()})


def windows(built: Built) -> list[tuple[str, int, int]]:
    """Return ``(unit, first step, step after the last)`` of each window, none without a progression."""
    progression = built.progression
    return [] if progression is None else [(w.unit, w.start, w.stop) for w in progression.windows]


def binary_mac_share(built: Built) -> float:
    """Return the share of multiply-accumulates that became binary."""
    share = None if built.report is None else built.report.binary_macs
    return round(share or 0.0, 4)


def resolved_config(built: Built) -> dict[str, Any]:
    """Return the complete configuration as results hold it: nothing in it names the machine."""
    config = to_dict(built.recipe)
    data, arguments, distill = config["data"], config["model"]["args"], config["distill"] or {}
    paths = (
        (data, "path"),
        (config, "init_from"),
        (distill, "teacher"),
        (data, "tokenizer"),
        (arguments, "checkpoint"),
    )
    for holder, key in paths:
        value = holder.get(key)
        if value is not None and (key in ("path", "init_from", "teacher") or Path(value).expanduser().exists()):
            holder[key] = Path(value).name  # what is no file is a name on the hub or of a package
    return config | {"derived": derived(built)}


def derived(built: Built) -> dict[str, int]:
    """Return what follows from the configuration and the data."""
    return {"steps": built.total_steps, "steps_per_epoch": built.steps_per_epoch}


def write_config(folder: Path, recipe: Recipe, arm: str, seed: int, derived: Mapping[str, Any] | None = None) -> None:
    """Write ``config.yaml``: all that is needed to repeat or resume the run, and what followed from it."""
    import yaml

    config = {"arm": arm, "seed": seed, "recipe": to_dict(recipe), "derived": dict(derived or {})}
    write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def read_config(folder: str | Path) -> tuple[Recipe, str, int]:
    """Read a run folder's ``config.yaml``.

    Returns:
        The recipe, the arm and the seed.

    Raises:
        UsageError: no run folder, or a damaged one.
    """
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise UsageError(f"{str(folder)!r} is not a run folder: it has no config.yaml")
    data = read_yaml(path)
    try:
        return resolve(flatten(data["recipe"], str(path))), str(data["arm"]), int(data["seed"])
    except (KeyError, TypeError):
        raise UsageError(f"{str(path)!r} is damaged: it must hold arm, seed and recipe") from None


def resume(folder: str | Path, *, progress: bool = False) -> dict[str, Any]:
    """Go on with an interrupted run from its last checkpoint, or from the start if it has none.

    Args:
        folder: the run's folder.
        progress: show a progress bar.

    Returns:
        The content of ``result.json``; at once if the run had finished.
    """
    recipe, arm, seed = read_config(folder)
    if (Path(folder) / "result.json").exists():
        return read_json(Path(folder) / "result.json")
    return train(recipe, arm=arm, seed=seed, folder=folder, resume=True, progress=progress)


def read_windows(folder: str | Path) -> list[tuple[str, int, int]]:
    """Return the windows that a run's last checkpoint names; none without a checkpoint or a progression."""
    path = Path(folder) / "last.ckpt"
    if not path.exists():
        return []
    progression = load_tensors(path)["frostbit"]["progression"]
    if progression is None:
        return []
    return list((progression.get("pace") or progression["identity"])["windows"])


def load_run(folder: str | Path, data_path: str | None = None) -> tuple[TrainingModule, Built]:
    """Rebuild a run's network as its last checkpoint left it, e.g. to evaluate it.

    Args:
        folder: the run's folder.
        data_path: where its data is now, if not where it was.

    Returns:
        The module, on the CPU and without a trainer, and the parts it was made of.

    Raises:
        UsageError: no run folder, a checkpoint of another network, or data with other classes.
    """
    recipe, _, seed = read_config(folder)
    before = read_yaml(Path(folder) / "config.yaml").get("derived") or {}
    recipe.data.path = data_path or recipe.data.path
    recipe.distill = None  # the teacher has done its work, and may be elsewhere now
    built = build(recipe, seed, before.get("steps_per_epoch"))
    for trained, found in zip(before.get("classes", ()), built.data.classes, strict=False):
        if trained != found:
            raise UsageError(f"{str(folder)!r} was trained on a class {trained!r}, where the data have {found!r}")
    module = TrainingModule(
        built.net,
        built.recipe,
        built.data,
        seed=seed,
        steps_per_epoch=built.steps_per_epoch,
        progression=built.progression,
        blockade=built.blockade,
        distill=built.distill,
        checkpoint=Path(folder) / "last.ckpt",
    )
    checkpoint = load_tensors(Path(folder) / "last.ckpt")
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module, built


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's tips and those of its warnings that do not concern who trains here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for pattern in (".*GPU available but not used.*", ".*Grad strides do not match.*"):
            warnings.filterwarnings("ignore", message=pattern)
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
