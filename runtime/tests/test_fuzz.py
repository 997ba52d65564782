"""Mutated files: no crash, no hang, bounded memory; each one is refused in one sentence, or runs."""

import math
import random
import signal
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

from frostbit_runtime import FileError, InputError, check, read, write
from frostbit_runtime.engine import Network
from mutate import mutate
from programs import all_values, binarynet, random_program, residual_net, token_net

SECONDS = 20  # far above what any file takes, far below a hang
CONSTANT = 40 * 2**20  # what parsing the largest header may take, whatever the file


@contextmanager
def time_limit(seconds):
    def late(*_):
        raise TimeoutError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("valid") / "a.safetensors"
    programs = [binarynet(size=10, width=8), residual_net(size=9), token_net(width=8)]
    programs += [random_program(random.Random(seed), 6) for seed in range(12)]
    found = [write(program, path) or path.read_bytes() for program in programs]
    return [data for data in found if len(data) < 20_000]  # small files are quick, and most of their bytes matter


def work(program):
    """Rough number of scalar operations at batch 1."""
    values = check(program)
    total = sum(math.prod(value.shape) for value in values.values())
    for op in program.ops:
        if "weight" in op.tensors and op.kind != "embedding":
            total += math.prod(values[op.output].shape) * math.prod(program.tensors[op.tensors["weight"]].shape[1:])
        for name in ("kernel", "padding"):
            total += 100 * sum(map(int, np.ravel(op.attrs.get(name, [0])))) ** 2
    return total


def one_sentence(error, path):
    text = str(error)
    assert text.startswith(str(path))
    assert text.isprintable()
    assert len(text) < 2500


def run(program):
    """Run what was accepted; whatever the file says, that may only fail for the input's sake."""
    inputs = [np.zeros([1 if n is None else n for n in item.shape], item.dtype) for item in program.inputs]
    with np.errstate(all="ignore"):
        try:
            values = all_values(program, inputs)
        except InputError:
            with pytest.raises(InputError):
                Network(program)(*inputs)
            return
        found = Network(program)(*inputs)
    if all(np.isfinite(value).all() for value in values.values()):  # random bytes as weights may overflow float32
        for name, array in zip(program.outputs, found if isinstance(found, tuple) else (found,), strict=True):
            np.testing.assert_array_equal(array, values[name])


@contextmanager
def memory_limit(most):
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak < most
    finally:
        tracemalloc.stop()


def fuzz(files, path, seed, count):
    rng, counts = random.Random(seed), {"refused": 0, "accepted": 0, "ran": 0}
    for _ in range(count):
        data = mutate(rng, files)
        path.write_bytes(data)
        with memory_limit(2 * len(data) + CONSTANT), time_limit(SECONDS):
            try:
                program = read(path)
            except FileError as error:
                counts["refused"] += 1
                one_sentence(error, path)
                continue
        counts["accepted"] += 1
        if work(program) < 300_000:
            counts["ran"] += 1
            with time_limit(SECONDS):
                run(program)
    assert min(counts.values()) > count // 100, counts  # the mutations reach every depth


def test_mutated_files(files, tmp_path):
    fuzz(files, tmp_path / "m.safetensors", seed=0, count=3000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_mutated_files(files, tmp_path, seed):
    fuzz(files, tmp_path / "m.safetensors", seed=seed, count=10_000)
