"""Files are whole or untouched; what is read executes nothing."""

import errno
import os
import pickle

import pytest
import torch

from frostbit.errors import RunError, UsageError
from frostbit.training import files
from frostbit.training.files import load_tensors, read_json, save_tensors, write_atomically, write_csv
from frostbit.training.run import train


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that takes no more from the n-th file on."""

    def fill(after=0):
        calls = [0]
        real = os.fsync

        def fsync(fd):
            calls[0] += 1
            if calls[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(fd)

        monkeypatch.setattr(files.os, "fsync", fsync)

    return fill


def test_a_full_disk_keeps_the_older_version(tmp_path, full_disk):
    path = tmp_path / "x"
    write_atomically(path, "old")
    full_disk()
    with pytest.raises(RunError, match="No space left on device; the older version is kept"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_while_saving_keeps_checkpoint_and_metrics(tiny, tmp_path, full_disk):
    full_disk(after=8)  # config; three files and a checkpoint for epoch 1; three files for epoch 2
    with pytest.raises(RunError, match=r"last\.ckpt.*No space left on device; the older version is kept"):
        train(tiny(), arm="a", seed=0, folder=tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert not list(tmp_path.glob(".*"))


def test_csv_keeps_columns_in_order_of_appearance(tmp_path):
    write_csv(tmp_path / "x.csv", [{"b": 1, "a": 2}, {"b": 3, "c": 4}])
    assert (tmp_path / "x.csv").read_text() == "b,a,c\n1,2,\n3,,4\n"


class Malicious:
    def __reduce__(self):
        return (os.system, ("true",))


@pytest.mark.parametrize("content", ["absent", "text", "truncated", "malicious", "a list"])
def test_damaged_checkpoints_are_refused(content, tmp_path):
    path = tmp_path / "x.ckpt"
    if content == "text":
        path.write_text("hello")
    elif content == "truncated":
        save_tensors(path, {"a": torch.zeros(1000)})
        path.write_bytes(path.read_bytes()[:1500])
    elif content == "malicious":
        path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    elif content == "a list":
        torch.save([1], path)
    with pytest.raises(UsageError, match=r"x\.ckpt"):
        load_tensors(path)


def test_json_that_is_none(tmp_path):
    (tmp_path / "x").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        read_json(tmp_path / "x")
    with pytest.raises(UsageError, match="No such file"):
        read_json(tmp_path / "y")
