"""Run packed binary neural networks on a CPU: numpy, numba and safetensors, no torch."""

from frostbit_runtime.check import check
from frostbit_runtime.errors import FileError, InputError, ProgramError
from frostbit_runtime.file import read, write
from frostbit_runtime.ops import OPS
from frostbit_runtime.program import Input, Op, Program, Spec, Stored, Value
from frostbit_runtime.reference import interpret

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
    "read",
    "write",
]
