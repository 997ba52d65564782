"""What a network may be given: one clear sentence for anything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frostbit_runtime.errors import InputError
from frostbit_runtime.program import Array, Input


def check_inputs(inputs: Sequence[Input], arrays: Sequence[Array]) -> list[Array]:
    """Check the arguments of a network.

    Args:
        inputs: what the network takes.
        arrays: what it was given, one array for each.

    Returns:
        The arrays, row-major.

    Raises:
        InputError: a wrong number, dtype or shape, or a value that is not finite.
    """
    if len(arrays) != len(inputs):
        names = ", ".join(item.name for item in inputs)
        raise InputError(f"the network takes {len(inputs)} inputs ({names}), found {len(arrays)}")
    return [_check(item, array) for item, array in zip(inputs, arrays, strict=True)]


def _check(item: Input, given: Array) -> Array:
    if not isinstance(given, np.ndarray):
        raise InputError(f"input {item.name!r} must be a numpy array, found {type(given).__name__}")
    if given.dtype != item.dtype:
        hint = f"array.astype(np.{item.dtype}) converts"
        raise InputError(f"input {item.name!r} must be {item.dtype}, found {given.dtype}; {hint}")
    wanted, fits = item.shape, len(given.shape) == len(item.shape)
    if not fits or any(a != b and a is not None for a, b in zip(wanted, given.shape, strict=True)) or not given.size:
        expected = ", ".join("any" if size is None else str(size) for size in wanted)
        raise InputError(f"input {item.name!r} must have shape [{expected}], found {list(given.shape)}")
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise InputError(f"input {item.name!r} holds values that are not finite")
    return np.ascontiguousarray(given)
