"""The runtime by itself: what it imports, and a virtual environment that has nothing else."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import frostbit_runtime
from frostbit_runtime import interpret, write
from programs import binarynet

RUNTIME = Path(__file__).resolve().parent.parent


def python(executable, code, *arguments, **environment):
    done = subprocess.run(
        [executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_reading_needs_no_compiler():
    """Programs are built, read and interpreted without numba; it comes with the first network."""
    code = "import frostbit_runtime, sys; print([m for m in ('torch', 'numba', 'llvmlite') if m in sys.modules])"
    assert python(sys.executable, code) == "[]"


def test_one_version():
    own = tomllib.loads((RUNTIME / "pyproject.toml").read_text())["project"]
    whole = tomllib.loads((RUNTIME.parent / "pyproject.toml").read_text())["project"]
    assert own["version"] == whole["version"] == frostbit_runtime.__version__
    assert f"frostbit_runtime=={own['version']}" in whole["optional-dependencies"]["deploy"]


PREDICT = """
import sys, numpy as np, frostbit_runtime
net = frostbit_runtime.load(sys.argv[1])
net.warm_up()
np.save(sys.argv[3], net(np.load(sys.argv[2])))
print([m for m in ("torch", "frostbit", "numba") if m in sys.modules], net.labels[:2])
"""


@pytest.mark.slow
def test_a_venv_without_torch_loads_and_predicts(tmp_path):
    """Installs numpy, numba and safetensors from the package index."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binary = tmp_path / "venv" / "bin" / "python"
    install = [binary, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    source = tmp_path / "runtime"  # a copy: building leaves files behind
    shutil.copytree(RUNTIME, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests"))
    subprocess.run([*install, "-c", RUNTIME.parent / "constraints.txt", source], check=True)
    program, x = binarynet(), np.random.default_rng(0).standard_normal((7, 3, 14, 14)).astype(np.float32)
    write(program, tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", x)
    code = "import importlib.util; print(importlib.util.find_spec('torch'), importlib.util.find_spec('frostbit'))"
    assert python(binary, code, PYTHONPATH="") == "None None"
    found = python(binary, PREDICT, tmp_path / "net.safetensors", tmp_path / "x.npy", tmp_path / "y.npy", PYTHONPATH="")
    assert found == "['numba'] ['class 0', 'class 1']"
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), interpret(program, x))
