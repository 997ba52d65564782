"""FSDP2 by its recipe name: two processes, stopped and resumed, against one; and what is refused."""

import os
import subprocess
import sys

import pytest
import torch

from frostbit.errors import UsageError
from frostbit.training.files import load_tensors, read_json
from frostbit.training.resolve import resolve
from frostbit.training.run import train
from frostbit.training.settings import flatten

SETTINGS = {
    "method": "stompp",
    "model": {"name": "vit_tiny", "width": 16, "args": {"depth": 2, "heads": 2}},
    "progression.refresh": 3,
    "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.05},
    "schedule.name": "cosine",
    "train": {"epochs": 2, "batch": 128, "record_every": 2, "accelerator": "cpu", "threads": 1},
}
SHARDED = {**SETTINGS, "train": {**SETTINGS["train"], "devices": 2, "strategy": "fsdp"}}

# Lightning starts the second process with the same command
SCRIPT = f"""
import sys
from lightning.pytorch.callbacks import Callback
from frostbit.training.resolve import resolve
from frostbit.training.run import train
from frostbit.training.settings import flatten

class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            raise RuntimeError("stopped here")

resume = sys.argv[2] == "resume"
recipe = resolve(flatten({SHARDED!r}))
train(recipe, arm="a", seed=0, folder=sys.argv[1], resume=resume, callbacks=[] if resume else [Stop()])
"""


@pytest.mark.slow
def test_two_sharded_processes_stopped_and_resumed_equal_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for how, code, said in (("stop", 1, "stopped here"), ("resume", 0, "")):
        command = [sys.executable, "script.py", "two", how]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
    one = train(resolve(flatten(SETTINGS)), arm="a", seed=0, folder=tmp_path / "one")
    two = read_json(tmp_path / "two" / "result.json")
    assert len(two["curve"]) == 2
    for mine, theirs in zip(one["curve"], two["curve"], strict=True):
        assert theirs["train_loss"] == pytest.approx(mine["train_loss"], abs=1e-4)
    assert two["windows"] == [list(window) for window in one["windows"]]
    steps = [(tmp_path / folder / "metrics_steps.csv").read_text().splitlines() for folder in ("one", "two")]
    shares = [[line.split(",")[3:] for line in lines] for lines in steps]
    assert shares[0] == shares[1]
    weights, sharded = (load_tensors(tmp_path / folder / "final.pt") for folder in ("one", "two"))
    assert weights.keys() == sharded.keys()
    for name, value in weights.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=2e-3, msg=name)


REFUSED = {
    "flips": ({"method": "bop"}, "shards latent weights under sgd, adam, adamw: method 'bop'"),
    "steps from the quantized weight": ({"method": "pq"}, "method 'pq' moves them by a rule of its own, use ddp"),
    "one device": ({"train.devices": 1}, "fsdp needs train.devices of at least 2, found 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sharded_is_refused(case, tmp_path):
    settings, message = REFUSED[case]
    small = {"model": {"name": "mlp"}, "train": {"devices": 2, "strategy": "fsdp", "accelerator": "cpu"}}
    with pytest.raises(UsageError, match=message):
        train(resolve(flatten(small) | settings), arm="a", seed=0, folder=tmp_path)
