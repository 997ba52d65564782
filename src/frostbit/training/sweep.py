"""A worker of a sweep: takes trials from a shared Optuna study, each an ordinary run in a folder of its own."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback
from optuna.exceptions import ExperimentalWarning, TrialPruned
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from frostbit.errors import RunError, UsageError
from frostbit.training.files import read_json
from frostbit.training.module import TrainingModule
from frostbit.training.recipe import Recipe
from frostbit.training.resolve import resolve
from frostbit.training.run import read_config, train
from frostbit.training.settings import Flat, changed, flatten, to_dict
from frostbit.training.space import Dimension

#: seconds between a worker's signs of life; a trial without one for three times as long is taken over
HEARTBEAT = 10
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
Say = Callable[[FrozenTrial], None]


@dataclass(frozen=True)
class Sweep:
    """What all workers of a study agree on, and where this one writes.

    Args:
        layers: settings of the recipe, its arm and the command line, weakest first.
        base: the recipe that they make.
        space: what is varied.
        arm: name of the arm, written into each result.
        seed: of every run, and of the choice of settings.
        out: folder of the run folders.
        prune: stop trials that are worse than the median of the others at the same epoch.
    """

    layers: tuple[Flat, ...]
    base: Recipe
    space: tuple[Dimension, ...]
    arm: str
    seed: int
    out: Path
    prune: bool = True


def open_study(sweep: Sweep, name: str, url: str) -> optuna.Study:
    """Open a study, or make it.

    Args:
        sweep: what it is about.
        name: its name.
        url: a database, as SQLAlchemy names it.

    Returns:
        The study.

    Raises:
        UsageError: no such database, or a study of that name about something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says is said here, in the user's terms
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=sweep.base.train.epochs // 5)
    study = optuna.create_study(
        study_name=name,
        storage=_storage(url),
        direction="maximize",
        load_if_exists=True,
        pruner=pruner if sweep.prune else optuna.pruners.NopPruner(),
    )
    about = {"recipe": to_dict(sweep.base), "seed": sweep.seed, "over": {d.name: repr(d) for d in sweep.space}}
    found: dict[str, Any] = study.user_attrs.get("about", {})
    if not found:
        study.set_user_attr("about", about)
        return study
    old = resolve(flatten(found["recipe"], f"study {name!r}"))
    different: dict[str, tuple[Any, Any]] = changed(old, sweep.base)
    different |= {key: (found[key], about[key]) for key in ("seed", "over") if found[key] != about[key]}
    for setting, (before, now) in different.items():
        raise UsageError(
            f"study {name!r} is about something else ({setting} is {before} there, {now} here): choose another --study"
        )
    return study


def _storage(url: str) -> RDBStorage:
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for attempt in range(5):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=3 * HEARTBEAT,
                    heartbeat_stale_trial_callback=_queue_again,
                )
        except (ArgumentError, ImportError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"--storage must be a database such as sqlite:///sweep.db: {reason}") from None
        except SQLAlchemyError as error:  # another worker is making the same tables, or nobody can
            reason = str(error).partition("\n")[0]
            time.sleep(0.5 * (attempt + 1))
    raise UsageError(f"--storage {url!r} cannot be used: {reason}")


def plan(study: optuna.Study, sweep: Sweep, trials: int) -> int:
    """Queue every combination of choices if there are no ranges and no more combinations than trials.

    Args:
        study: from `open_study`.
        sweep: what it is about.
        trials: how many trials are wanted.

    Returns:
        How many make sense: ``trials``, or the number of combinations if that is smaller.
    """
    combinations = math.prod(len(dimension.choices) for dimension in sweep.space)
    if not 0 < combinations <= trials:
        return trials
    names = [dimension.name for dimension in sweep.space]
    for values in itertools.product(*(dimension.choices for dimension in sweep.space)):
        study.enqueue_trial(dict(zip(names, values, strict=True)), skip_if_exists=True)
    return combinations


def work(study: optuna.Study, sweep: Sweep, trials: int, say: Say) -> None:
    """Run trials until the study has as many as wanted; other workers may do so at the same time.

    A trial that a worker left behind (it was killed, or its machine was) goes on from its last checkpoint. Two workers
    that take the last trial in the same moment leave one more than wanted.

    Args:
        study: from `open_study`.
        sweep: what it is about.
        trials: how many finished trials, pruned ones included, the study is to have.
        say: is called with each finished trial.

    Raises:
        UsageError: the first trial cannot run as the recipe has it.
    """
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(study)
        states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
        done = sum(states[state] for state in FINISHED)
        if states[TrialState.WAITING] or done + states[TrialState.RUNNING] < trials:
            study.optimize(lambda trial: _objective(trial, sweep), n_trials=1)
            say(max((t for t in study.get_trials(deepcopy=False) if t.datetime_complete), key=_when))
        elif done >= trials:
            return
        else:  # the last ones run elsewhere; should a worker die, its trial comes back to this one
            time.sleep(min(1.0, HEARTBEAT / 2))


def _when(trial: FrozenTrial) -> float:
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0


def settings_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return ``{setting: value}`` as the run of a trial had them."""
    return dict(trial.user_attrs.get("settings", trial.params))


def _objective(trial: optuna.Trial, sweep: Sweep) -> float:
    study = trial.study
    # a draw depends on the trial's number and on what is known by then, not on which worker it is
    study.sampler = optuna.samplers.TPESampler(seed=1000 * sweep.seed + trial.number)
    settings = {dimension.name: dimension.suggest(trial) for dimension in sweep.space}
    trial.set_user_attr("settings", settings)
    # a trial that was taken over keeps its attributes, and with them the folder of its first attempt
    folder = trial.user_attrs.get("folder", f"trial-{trial.number:04d}")
    trial.set_user_attr("folder", folder)
    for other in study.get_trials(deepcopy=False, states=FINISHED):
        if settings_of(other) == settings:  # a run is a function of its settings
            trial.set_user_attr("same_as", other.number)
            if other.state == TrialState.PRUNED or other.value is None:
                raise TrialPruned
            return other.value
    try:
        final = _run(trial, resolve(*sweep.layers, settings), sweep.out / folder, sweep)
    except (RunError, UsageError) as error:
        if isinstance(error, UsageError) and not study.get_trials(deepcopy=False, states=FINISHED):
            raise  # most likely none can run
        trial.set_user_attr("stopped", str(error))
        raise TrialPruned from None
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        _queue_again(study, study.get_trials(deepcopy=False)[trial.number])
        raise KeyboardInterrupt from None
    return float(final["val"])


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, trial)


def _run(trial: optuna.Trial, recipe: Recipe, folder: Path, sweep: Sweep) -> Mapping[str, float]:
    if (folder / "config.yaml").exists():
        found = changed(read_config(folder)[0], recipe)
        if found:
            name, (old, new) = next(iter(found.items()))
            raise UsageError(
                f"{str(folder)!r} holds a run with other settings ({name} is {old} there, {new} here): "
                "choose another --out"
            )
    if (folder / "result.json").exists():
        result = read_json(folder / "result.json")
    else:
        prune = Prune(trial)
        result = train(recipe, arm=sweep.arm, seed=sweep.seed, folder=folder, resume=True, callbacks=[prune])
    final: Mapping[str, float] = result["final"]
    return final


class Prune(Callback):
    """Reports each evaluation's validation accuracy, of the network as it is, and stops a hopeless trial.

    Args:
        trial: whose run it is.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report if this epoch was evaluated."""
        assert isinstance(pl_module, TrainingModule)
        row = pl_module.record.curve[-1] if pl_module.record.curve else {"epoch": 0}
        if row["epoch"] != trainer.current_epoch + 1:
            return
        with warnings.catch_warnings():
            # an epoch that was run twice, before and after an interruption, gave the same accuracy twice
            warnings.filterwarnings("ignore", message=".*already reported.*")
            self.trial.report(row["val_acc_as_is"], row["epoch"])
        if row["epoch"] < pl_module.recipe.train.epochs and self.trial.should_prune():
            raise TrialPruned


def best_trials(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the completed trials, best first, each combination of settings once."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE and "same_as" not in t.user_attrs]
    return sorted(complete, key=lambda t: (-(t.value or 0.0), t.number))
