"""The one LightningModule: a step, an optimizer, and what a checkpoint has to hold."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from frostbit.analysis import Recorder
from frostbit.data import Augment, Dataset, Loader, Split, StreamSplit
from frostbit.errors import RunError, UsageError
from frostbit.evaluation import clip_latents_
from frostbit.progression import Blockade, Moments, Progression, step_sizes
from frostbit.training.distill import Distill
from frostbit.training.files import write_atomically
from frostbit.training.flips import FlipWatch
from frostbit.training.health import first_not_finite
from frostbit.training.optimizers import lr_factor, make_hyper_schedule, make_optimizer
from frostbit.training.recipe import Recipe
from frostbit.training.record import Record
from frostbit.training.shard import shard_
from frostbit.units import frozen_fraction


class TrainingModule(L.LightningModule):
    """Trains one network as its recipe says.

    Args:
        net: the network, converted already.
        recipe: complete, see :func:`frostbit.training.resolve.resolve`.
        data: the data set.
        seed: of the data order and the augmentation.
        steps_per_epoch: optimizer steps in one epoch.
        progression: what freezes or anneals ``net``, or ``None``; attached to the optimizer here.
        blockade: of an experiment, or ``None``; attached like the progression.
        distill: what mixes a teacher's answers into the loss, or ``None``.
        checkpoint: where the run's checkpoint is, for the message of a run that has to stop.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        data: Dataset,
        *,
        seed: int,
        steps_per_epoch: int,
        progression: Progression | None = None,
        blockade: Blockade | None = None,
        distill: Distill | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.recipe = recipe
        self.data = data
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.progression = progression
        self.blockade = blockade
        self.distill = distill
        self.checkpoint = checkpoint
        self.record = Record()
        self.flips: FlipWatch | None = None
        #: of each unit; ``None`` for a float network or if the recipe says so
        self.recorder: Recorder | None = None
        if recipe.binarize is not None and recipe.train.record_units:
            self.recorder = Recorder(net, every=recipe.train.record_every)
        self.seconds_before = self.seconds_cpu_before = 0.0
        self.seconds_evaluating = 0.0
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._unchecked: list[Tensor] = []
        self._train_loader: Loader | None = None
        self._test_loaders: dict[int, Loader] = {}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.recipe.train.epochs * self.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Seconds of work so far, including those before a resume."""
        return self.seconds_before + time.perf_counter() - self._started

    @property
    def seconds_cpu(self) -> float:
        """Seconds of processor time so far, over all threads: what the run costs however busy the machine is."""
        return self.seconds_cpu_before + time.process_time() - self._cpu_started

    def loader(self, split: Split | StreamSplit, *, train: bool = False) -> Loader:
        """Return this rank's batches of a split on the module's device, shuffled and augmented for training.

        Those that are not for training are kept: their data is on the device then.
        """
        if not train and id(split) in self._test_loaders:
            return self._test_loaders[id(split)]
        config = self.recipe
        attached = self._trainer is not None
        loader = Loader(
            split,
            config.train.batch,
            shuffle=train,
            drop_last=train,
            augment=Augment(**dataclasses.asdict(config.data.augment)) if train else None,
            mean=self.data.mean,
            std=self.data.std,
            seed=self.seed,
            device=self.device,
            dtype=torch.float64 if config.train.precision == "64" else torch.float32,
            rank=self.global_rank if attached else 0,
            world_size=self.trainer.world_size if attached else 1,
            workers=config.data.workers,
        )
        if not train and split is not self.data.train:
            self._test_loaders[id(split)] = loader
        return loader

    def release_loaders(self) -> None:
        """Forget the kept loaders, whose shards belong to the number of ranks that they were made for."""
        self._test_loaders.clear()

    def train_dataloader(self) -> Loader:
        """Return the training batches."""
        self._train_loader = self.loader(self.data.train, train=True)
        return self._train_loader

    def on_train_start(self) -> None:
        """Look at whether the flip rule's memory fits the run."""
        if self.flips is not None:
            self.flips.check_memory(self.total_steps, self.recipe.optimizer.gamma_end, tell=self.global_rank == 0)

    def on_train_epoch_end(self) -> None:
        """Look for layers whose weights flip too rarely or too often; runs before the checkpoint is written."""
        if self.flips is not None:
            self.flips.check_epoch(self.current_epoch + 1, tell=self.global_rank == 0)

    def on_train_epoch_start(self) -> None:
        """Choose the epoch's order of samples."""
        assert self._train_loader is not None
        self._train_loader.set_epoch(self.current_epoch)

    def configure_model(self) -> None:
        """Shard the network, where the strategy is to; Lightning has set up the processes by now."""
        if self.recipe.train.strategy == "fsdp":
            assert self.device_mesh is not None
            shard_(self.net, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer, put the progression's clock and the latents' clip behind its steps."""
        config = self.recipe
        optimizer = make_optimizer(config.optimizer, self.net, fused=config.train.precision in ("32", "64"))
        if self.progression is not None:
            self.progression.attach(optimizer)
            if config.optimizer.moments not in (None, "keep"):
                Moments(self.progression, optimizer, config.optimizer.moments, config.optimizer.moments_at or "start")
        if self.blockade is not None:
            self.blockade.attach(optimizer)
        if any(getattr(layer, "latent_clip", None) is not None for layer in self.net.modules()):
            optimizer.register_step_post_hook(lambda *_: clip_latents_(self.net))
        if self.recorder is not None:
            self.recorder.attach(optimizer, getattr(self.trainer.precision_plugin, "scaler", None))
        self.flips = FlipWatch.over(self.net, optimizer, self.record)
        total = self.total_steps

        def factor(step: int) -> float:
            return lr_factor(config.schedule, config.optimizer.lr, step, self.steps_per_epoch, total)

        schedules: list[LRScheduler] = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]
        hyper = make_hyper_schedule(config.optimizer, optimizer, total)
        if hyper is not None:
            schedules.append(hyper)
        each_step: list[Any] = [{"scheduler": schedule, "interval": "step"} for schedule in schedules]
        return [optimizer], each_step

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch and count its hits."""
        inputs, labels = batch
        logits = self.net(inputs)
        loss = F.cross_entropy(logits, labels)
        if self.distill is not None:
            loss = self.distill(loss, logits, inputs)
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise self.failure("the loss", self.global_step, inputs)
        self._unchecked.append(loss.detach())
        if self.progression is not None:
            self.progression.observe(loss)
        self.record.add(loss, (logits.detach().argmax(1) == labels).sum(), len(labels))
        # with everything frozen no gradient is left; the step and the clock still have to happen
        return loss if loss.requires_grad else loss.detach().requires_grad_()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write a row of the saw-tooth every ``train.record_every`` steps, and one after the last."""
        step = self.global_step
        last = self.record.steps[-1]["step"] if self.record.steps else 0
        if step == last or (step % self.recipe.train.record_every and step != self.total_steps):
            return
        self.check_losses()
        loss, accuracy = self.record.since_row.means(self.sum_over_ranks)
        self.record.since_row.values = None
        shares = {} if self.recipe.binarize is None else frozen_fraction(self.net)
        shares = {name: round(share, 4) for name, share in shares.items()}
        flips = {} if self.flips is None else self.flips.row()
        if self.recipe.train.record_moments and self.progression is not None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            flips |= {name: float(f"{size:.4g}") for name, size in step_sizes(self.progression, optimizer).items()}
        self.record.steps.append({"step": step, "loss": loss, "train_acc": accuracy, **shares, **flips})
        self.log("loss", loss, prog_bar=True, logger=False)
        if self.logger is not None:
            self.logger.log_metrics({"train/loss": loss, "train/accuracy": accuracy, **flips}, step)

    def write_record(self, folder: Path) -> None:
        """Rewrite the files of the record, each atomically: both CSVs, and ``units.parquet`` if units are recorded."""
        self.record.write(folder)
        if self.recorder is not None and len(self.recorder):
            write_atomically(folder / "units.parquet", self.recorder.to_parquet())

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes."""
        total = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def check_losses(self) -> None:
        """Stop if a loss since the last check was not finite; waits for the device once, not at each step."""
        losses, self._unchecked = self._unchecked, []
        if losses and losses[0].device.type != "cpu":
            bad = (~torch.stack(losses).isfinite()).nonzero()
            if len(bad):
                raise self.failure("the loss", self.global_step - len(losses) + int(bad[0]), None)

    def failure(self, what: str, step: int, inputs: Tensor | None) -> RunError:
        """Describe a value that is not finite: step, unit, last good checkpoint."""
        culprit = first_not_finite(self.net, inputs)
        where = f", first in {culprit}" if culprit else ""
        kept = self.checkpoint is not None and self.checkpoint.exists()
        last = f"the last good checkpoint is {self.checkpoint}" if kept else "there is no checkpoint yet"
        return RunError(f"{what} is not finite at step {step}{where}; {last}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the progression, the rows written so far and the random state."""
        checkpoint["frostbit"] = {
            "progression": None if self.progression is None else self.progression.state_dict(),
            "blockade": None if self.blockade is None else self.blockade.state_dict(),
            "record": self.record.state_dict(),
            "units": None if self.recorder is None else self.recorder.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "seconds": (self.seconds, self.seconds_cpu, self.seconds_evaluating),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` added, after a look at whether it is this network's."""
        source = str(self.checkpoint)
        if "frostbit" not in checkpoint:
            raise UsageError(f"{source!r} is no checkpoint of a run: it holds nothing of frostbit")
        if "state_dict" in checkpoint:  # a sharded network has been loaded already
            check_keys(self.state_dict(), checkpoint["state_dict"], source)
        state = checkpoint["frostbit"]
        if (state["progression"] is None) != (self.progression is None):
            expected = "without" if self.progression is None else "with"
            raise UsageError(f"{source!r} belongs to another method: expected one {expected} a progression")
        if self.progression is not None:
            self.progression.load_state_dict(state["progression"])
        if self.blockade is not None:
            self.blockade.load_state_dict(state["blockade"])
        self.record.load_state_dict(state["record"])
        if self.recorder is not None and state.get("units") is not None:  # older checkpoints have none
            self.recorder.load_state_dict(state["units"])
        self.seconds_before, self.seconds_cpu_before, self.seconds_evaluating = state["seconds"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])


def check_keys(expected: dict[str, Any], found: dict[str, Any], source: str) -> None:
    """Compare two state dicts by name and shape.

    Args:
        expected: the network's own.
        found: the one that is to be loaded.
        source: the file, for the message.

    Raises:
        UsageError: the first name that is missing, superfluous or of another shape.
    """
    for key, value in expected.items():
        if key not in found:
            raise UsageError(f"{source!r} belongs to another network: it has no {key!r}")
        have, want = tuple(found[key].shape), tuple(value.shape)
        if have != want:
            raise UsageError(f"{source!r} belongs to another network: {key!r} is {have} there, {want} here")
    for key in found:
        if key not in expected:
            raise UsageError(f"{source!r} belongs to another network: this one has no {key!r}")
