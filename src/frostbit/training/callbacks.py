"""What happens at the end of an epoch: evaluation, then a checkpoint."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from frostbit.errors import RunError
from frostbit.evaluation import hardening_distance, is_hard
from frostbit.training.evaluate import score
from frostbit.training.files import load_tensors, save_tensors
from frostbit.training.health import first_not_finite_state
from frostbit.training.module import TrainingModule

TOP5_FROM = 100
"""Number of classes from which top-5 accuracy says something."""


class Evaluate(Callback):
    """Adds a row to the curve every ``train.eval_every`` epochs and after the last one."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate if it is due."""
        assert isinstance(pl_module, TrainingModule)
        config = pl_module.recipe.train
        epoch = trainer.current_epoch + 1
        pl_module.check_losses()
        if epoch % config.eval_every and epoch != config.epochs:
            return
        culprit = first_not_finite_state(pl_module.net)
        if culprit:
            raise pl_module.failure("a value", trainer.global_step, None)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for buffer in pl_module.net.buffers():  # every rank scores the network of the first one
                torch.distributed.broadcast(buffer, 0)
        began = time.perf_counter()
        row = evaluate_row(pl_module)
        pl_module.seconds_evaluating += time.perf_counter() - began
        pl_module.record.curve.append({"epoch": epoch, "step": trainer.global_step, **row})
        pl_module.log("accuracy", row["acc_hardened"], prog_bar=True, logger=False, rank_zero_only=True)
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"eval/{k}": v for k, v in row.items()}, trainer.global_step)


def evaluate_row(module: TrainingModule) -> dict[str, float]:
    """Return one row of the curve: training figures since the last row, test and validation figures now.

    Accuracies are in percent. ``acc_hardened`` repeats ``acc_as_is`` where the network is binary already. ``distance``
    is that of `frostbit.hardening_distance` on the first test batch.
    """
    loss, accuracy = module.record.since_evaluation.means(module.sum_over_ranks)
    module.record.since_evaluation.values = None
    row = {"train_loss": loss, "train_acc": accuracy}
    context = module.trainer.precision_plugin.forward_context
    splits = {"": module.data.test}
    if module.data.val is not None:
        splits["val_"] = module.data.val
    for prefix, split in splits.items():
        for name, hardened in (("as_is", False), ("hardened", True)):
            if hardened and is_hard(module.net):
                row.update({key.replace("as_is", name): row[key] for key in list(row) if key.endswith("as_is")})
                continue
            loss, accuracy, top5 = score(
                module.net,
                module.loader(split),
                hardened=hardened,
                context=context,
                reduce=module.sum_over_ranks,
            )
            row[f"{prefix}acc_{name}"] = accuracy
            if len(module.data.classes) >= TOP5_FROM:
                row[f"{prefix}top5_{name}"] = top5
            if not hardened:
                row[f"{prefix}loss"] = loss
    if module.recipe.binarize is not None:
        inputs, _ = next(iter(module.loader(module.data.test)))
        with context():
            row["distance"] = round(hardening_distance(module.net, inputs), 6)
    return row


class Save(Checkpoint):
    """Writes the checkpoint and the metrics; being a ``Checkpoint``, it runs after the evaluation.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if it is due."""
        assert isinstance(pl_module, TrainingModule)
        config = pl_module.recipe.train
        epoch = trainer.current_epoch + 1
        if epoch % config.checkpoint_every == 0 or epoch == config.epochs:
            self.save(trainer, pl_module)

    def save(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Write metrics, then the checkpoint that holds them too."""
        if trainer.is_global_zero:
            module.write_record(self.folder)
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the rows of a run that has to stop."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.is_global_zero and pl_module.record.steps:
            with contextlib.suppress(RunError):  # a full disk is reported already
                pl_module.write_record(self.folder)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: all state is the module's."""
        return {}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the disk, with atomic writes and loading that executes nothing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; see `save_tensors`."""
        save_tensors(path, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; see `load_tensors`."""
        return load_tensors(path)
