"""A packed network as data: a list of operations over named values, and the tensors they read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostbit_runtime.errors import ProgramError

Array = NDArray[Any]
Shape = tuple[int, ...]

#: numpy dtype of a value of each kind: ``real``, ``sign`` (−1 or +1), ``int`` (exact sums), ``index`` (table look-ups)
KINDS = {"real": np.float32, "sign": np.int8, "int": np.int32, "index": np.int64}

#: dtype that each encoding is stored with
ENCODINGS = {
    "bits": np.uint8,
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
}


@dataclass(frozen=True)
class Value:
    """Kind and logical shape (torch's order, batch first) of something computed."""

    kind: str
    shape: Shape


@dataclass(frozen=True)
class Input:
    """One argument of the network.

    Args:
        name: the value's name in the program.
        shape: sizes, ``None`` where any size will do (the batch, a sequence length).
        dtype: ``"float32"`` (kind real) or ``"int64"`` (kind index).
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Op:
    """One operation; :data:`frostbit_runtime.ops.OPS` says what each kind takes and means.

    Args:
        kind: its name in the table.
        name: for messages, usually the module's path.
        inputs: names of the values it reads.
        output: name of the value it writes.
        attrs: its attributes, all of them, JSON-able.
        tensors: ``{role: name of a stored tensor}``.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """What is known of a stored tensor without its data: the encoding and the logical shape."""

    encoding: str
    shape: Shape

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def stored_shape(self) -> Shape:
        """Shape of the array that is stored: bits lie in one row of ``⌈n / 8⌉`` bytes, all else as it is."""
        return (-(-self.size // 8),) if self.encoding == "bits" else self.shape


@dataclass(frozen=True, eq=False)
class Stored(Spec):
    """A tensor as it lies in the file.

    Args:
        encoding: ``bits`` (1 = +1, 0 = −1, row-major, eight to a byte, first entry in the highest bit), ``float32``,
            ``float16``, ``int8`` (times a float32 scale for each entry of the first axis), ``int16`` or ``int32``.
        shape: logical shape.
        data: the stored array, see :attr:`Spec.stored_shape`.
        scale: float32 ``[shape[0]]`` for ``int8``, else ``None``.
    """

    data: Array
    scale: Array | None = None

    @classmethod
    def encode(cls, array: Array, encoding: str) -> Stored:
        """Store an array.

        Args:
            array: any numbers; for ``bits`` −1 and +1 or booleans (true is +1); for ``int16`` and ``int32`` integers.
            encoding: one of :data:`ENCODINGS`.

        Returns:
            The stored tensor; ``float16`` and ``int8`` round, all others keep every value.

        Raises:
            ProgramError: the encoding is unknown or cannot hold a value.
        """
        array = np.asarray(array)
        if encoding not in ENCODINGS:
            raise ProgramError(f"unknown encoding {encoding!r}, known: {', '.join(ENCODINGS)}")
        if encoding == "bits":
            if array.dtype != np.bool_ and not np.all((array == 1) | (array == -1)):
                raise ProgramError("bits hold -1 and +1 only, found another value")
            return cls(encoding, array.shape, np.packbits(array > 0, axis=None))
        if np.any(np.isnan(array)):
            raise ProgramError(f"{encoding} cannot hold NaN")
        if encoding == "int8":
            if array.ndim == 0 or not np.all(np.isfinite(array)):
                raise ProgramError("int8 needs at least one axis and finite values")
            rows = array.reshape(len(array), -1).astype(np.float32)
            scale = np.maximum(np.abs(rows).max(axis=1, initial=0) / np.float32(127), np.finfo(np.float32).tiny)
            data = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8)
            return cls(encoding, array.shape, data.reshape(array.shape), scale.astype(np.float32))
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(array.astype(ENCODINGS[encoding])).reshape(array.shape)
        exact = np.isfinite(array) == np.isfinite(data) if encoding.startswith("float") else data == array
        if not np.all(exact):
            raise ProgramError(f"{encoding} cannot hold {array[~exact].flat[0]}")
        return cls(encoding, array.shape, data)

    def decode(self) -> Array:
        """Return the plain array: int8 ±1 for bits, float32 for ``float16`` and ``int8``, else the data itself."""
        if self.encoding == "bits":
            ones = np.unpackbits(self.data, count=self.size).reshape(self.shape)
            return ones.view(np.int8) * np.int8(2) - np.int8(1)
        if self.encoding == "float16":
            return self.data.astype(np.float32)
        if self.scale is not None:
            return self.data * self.scale.reshape(-1, *[1] * (len(self.shape) - 1))
        return self.data

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True, eq=False)
class Program:
    """A network: operations in an order in which they can run, each value written once.

    Args:
        inputs: the arguments, in order.
        ops: the operations.
        outputs: names of the values that are the result.
        tensors: ``{name: stored tensor}``.
        info: JSON-able facts: ``producer``, ``versions``, the run's identity, ``preprocess``, ``labels``,
            ``float_bytes``.
    """

    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Stored]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: the payload of the file."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def last_readers(ops: Iterable[Op], outputs: Iterable[str]) -> dict[str, int]:
    """Return ``{value: index of the last operation that reads it}``; outputs have no last reader."""
    last = {name: index for index, op in enumerate(ops) for name in op.inputs}
    for name in outputs:
        last.pop(name, None)
    return last
