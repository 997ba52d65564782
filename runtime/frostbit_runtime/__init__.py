"""Run packed binary neural networks on a CPU: numpy, numba and safetensors, no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from frostbit_runtime.check import check
from frostbit_runtime.errors import FileError, InputError, ProgramError
from frostbit_runtime.file import read, write
from frostbit_runtime.ops import OPS
from frostbit_runtime.program import Input, Op, Program, Spec, Stored, Value
from frostbit_runtime.reference import interpret

if TYPE_CHECKING:
    from frostbit_runtime.engine import Network

__version__ = "0.1.0"
__all__ = [
    "OPS",
    "FileError",
    "Input",
    "InputError",
    "Op",
    "Program",
    "ProgramError",
    "Spec",
    "Stored",
    "Value",
    "check",
    "interpret",
    "load",
    "read",
    "write",
]


def load(path: str | os.PathLike[str]) -> Network:
    """Load a packed network.

    Args:
        path: a file that `frostbit.deploy.save` or :func:`write` wrote.

    Returns:
        The network, ready to run.

    Raises:
        FileError: anything is wrong with the file, in one sentence.
    """
    from frostbit_runtime.engine import Network  # numba comes with it: only where something runs

    return Network(read(path))
