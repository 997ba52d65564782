"""A run that is killed and resumed ends exactly like one that was left alone."""

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from frostbit.training import files, run
from frostbit.training.module import TrainingModule
from frostbit.training.resolve import resolve
from frostbit.training.run import resume, train
from frostbit.training.settings import flatten

from .conftest import TINY

fork = multiprocessing.get_context("fork")
KEPT = ("state_dict", "optimizer_states", "lr_schedulers", "frostbit")
ARM = {"arm": "a", "seed": 3}


def same(a, b):
    if isinstance(a, torch.Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return torch.equal(*(each.contiguous().view(-1).view(torch.uint8) for each in (a, b)))  # NaN included
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def traces(folder):
    """Everything that must agree bit for bit, and nothing that tells the time."""
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    checkpoint["frostbit"].pop("seconds")
    result = json.loads((folder / "result.json").read_text())
    return {
        "checkpoint": {k: checkpoint[k] for k in KEPT},
        "final": torch.load(folder / "final.pt", weights_only=True),
        "metrics": (folder / "metrics.csv").read_bytes(),
        "steps": (folder / "metrics_steps.csv").read_bytes(),
        "units": (folder / "units.parquet").read_bytes(),
        "result": {k: v for k, v in result.items() if not k.startswith("seconds")},
    }


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(owner, name, number):
    """Replace a method by one that kills the process when it is called for the n-th time."""
    original, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            kill_myself()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def run_and_die(recipe, folder, owner, name, number):
    def child():
        before_call(owner, name, number)
        train(recipe, folder=folder, **ARM)

    process = fork.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def reference(tiny, tmp_path):
    recipe = tiny()
    train(recipe, folder=tmp_path / "whole", **ARM)
    return recipe, traces(tmp_path / "whole")


MOMENTS = {
    "before any checkpoint": (TrainingModule, "training_step", 3),
    "in the middle of an epoch": (TrainingModule, "training_step", 13),
    "between the last step of an epoch and its evaluation": (TrainingModule, "check_losses", 5),
    "while the first checkpoint is written": (files.os, "replace", 5),
    "while a later checkpoint is written": (files.os, "replace", 13),
    "while the metrics are written": (files.os, "replace", 10),
    "after the last epoch": (run, "finish", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_uninterrupted(moment, reference, tmp_path):
    recipe, expected = reference
    folder = tmp_path / "killed"
    run_and_die(recipe, folder, *MOMENTS[moment])
    assert not (folder / "result.json").exists()
    resume(folder)
    found = traces(folder)
    for part, value in expected.items():
        assert same(found[part], value), part


def test_moments_cover_both_sides_of_a_checkpoint(reference, tmp_path):
    recipe, _ = reference
    run_and_die(recipe, tmp_path / "a", *MOMENTS["while the first checkpoint is written"])
    assert not (tmp_path / "a" / "last.ckpt").exists()
    run_and_die(recipe, tmp_path / "b", *MOMENTS["while a later checkpoint is written"])
    assert (tmp_path / "b" / "last.ckpt").exists()


def test_resume_of_a_finished_run_changes_nothing(reference, tmp_path):
    _, expected = reference
    result = resume(tmp_path / "whole")
    assert result["final"] == expected["result"]["final"]
    assert same(traces(tmp_path / "whole"), expected)


@pytest.fixture(scope="module")
def long_reference(tmp_path_factory):
    """A longer run and the seconds it takes, once the imports of a first one are paid."""
    recipe = resolve(flatten(TINY), {"method": "stompp", "train.epochs": 30})
    folder = tmp_path_factory.mktemp("long")
    train(recipe, folder=folder / "warm-up", **ARM)
    began = time.perf_counter()
    train(recipe, folder=folder / "whole", **ARM)
    return recipe, time.perf_counter() - began, traces(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_random_moments(seed, long_reference, tmp_path):
    recipe, seconds, expected = long_reference
    folder = tmp_path / "killed"
    process = fork.Process(target=train, args=(recipe,), kwargs={"folder": folder, **ARM})
    process.start()
    time.sleep(random.Random(seed).uniform(0, 0.9 * seconds))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if (folder / "config.yaml").exists():
        resume(folder)
    else:
        train(recipe, folder=folder, **ARM)
    assert same(traces(folder), expected)
