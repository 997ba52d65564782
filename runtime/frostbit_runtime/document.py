"""The program as a JSON document: what the metadata of a file hold."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from frostbit_runtime.errors import ProgramError
from frostbit_runtime.faults import require
from frostbit_runtime.program import Array, Input, Op, Program, Spec, Stored

FORMAT = "frostbit"
VERSION = 1


def parts(tensor: Stored) -> list[Array]:
    """Return the arrays that a tensor consists of."""
    return [tensor.data] if tensor.scale is None else [tensor.data, tensor.scale]


def crc(array: Array) -> str:
    """Return the checksum of an array's bytes."""
    return f"{zlib.crc32(np.ascontiguousarray(array).data):08x}"


def dumps(program: Program) -> str:
    """Return the document of a program.

    Raises:
        ProgramError: ``info`` is not JSON.
    """
    tensors = {
        name: {"encoding": tensor.encoding, "shape": tensor.shape, "crc32": [crc(a) for a in parts(tensor)]}
        for name, tensor in program.tensors.items()
    }
    document = {
        "format": FORMAT,
        "version": VERSION,
        "inputs": [{"name": item.name, "shape": item.shape, "dtype": item.dtype} for item in program.inputs],
        "ops": [
            {
                "kind": op.kind,
                "name": op.name,
                "inputs": op.inputs,
                "output": op.output,
                "attrs": dict(op.attrs),
                "tensors": dict(op.tensors),
            }
            for op in program.ops
        ],
        "outputs": program.outputs,
        "tensors": tensors,
        "info": dict(program.info),
    }
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProgramError(f"info must be JSON: {error}") from None


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _finite(word: str) -> float:
    if not math.isfinite(value := float(word)):
        raise ValueError(f"{word[:40]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return table


def loads(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Parse the metadata of a file and check all that comes before the graph: checksum, format, version, keys.

    Raises:
        ProgramError: the first fault.
    """
    require(FORMAT in metadata, f"the safetensors metadata have no entry {FORMAT!r}: not a packed network")
    require(
        set(metadata) == {FORMAT, "crc32"}, f"metadata must be {FORMAT!r} and 'crc32', found {len(metadata)} entries"
    )
    text = metadata[FORMAT]
    found = f"{zlib.crc32(text.encode()):08x}"
    require(metadata["crc32"] == found, f"the header's checksum is {found}, expected {metadata['crc32'][:20]!r}")
    try:
        document = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"the header is no valid JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise ProgramError("the header must be a JSON object")
    name, version = document.get("format"), document.get("version", 0)
    require(name == FORMAT, f"expected format {FORMAT!r}", name)
    require(type(version) is int and version >= 1, "expected a version", version)
    newer = f"this file has version {str(version)[:20]}, this runtime reads up to {VERSION}: update frostbit_runtime"
    require(version <= VERSION, newer)
    keys = {"format", "version", "inputs", "ops", "outputs", "tensors", "info"}
    _check_keys("the header", document, keys)
    return document


def _check_keys(what: str, table: Any, keys: set[str]) -> None:
    require(isinstance(table, dict), f"{what} must be an object", table)
    missing, extra = sorted(keys - set(table)), sorted(set(table) - keys)
    require(not missing, f"{what} lacks {missing[:3]}")
    require(not extra, f"{what} has unknown entries {repr(extra[:3])[:200]}")


def _strings(what: str, found: Any) -> tuple[str, ...]:
    good = isinstance(found, list) and all(isinstance(item, str) for item in found)
    require(good, f"{what} must be a list of strings", found)
    return tuple(found)


def _string(what: str, found: Any) -> str:
    require(isinstance(found, str), f"{what} must be a string", found)
    return str(found)


def _shape(what: str, found: Any) -> tuple[Any, ...]:
    require(isinstance(found, list), f"{what} must be a list", found)
    return tuple(found)  # its entries are checked with the graph


def _rows(what: str, found: Any) -> list[Any]:
    require(isinstance(found, list), f"{what} must be a list", found)
    return list(found)


def graph(document: dict[str, Any]) -> tuple[tuple[Input, ...], tuple[Op, ...], tuple[str, ...], dict[str, Spec]]:
    """Turn the document into inputs, operations, outputs and tensor specs; here only types are checked.

    Raises:
        ProgramError: the first fault.
    """
    inputs = []
    for row in _rows("inputs", document["inputs"]):
        _check_keys("an input", row, {"name", "shape", "dtype"})
        name, dtype = _string("an input's name", row["name"]), _string("an input's dtype", row["dtype"])
        inputs.append(Input(name, _shape("an input's shape", row["shape"]), dtype))
    ops = [_op(row) for row in _rows("ops", document["ops"])]
    tensors, specs = document["tensors"], {}
    require(isinstance(tensors, dict), "tensors must be an object", tensors)
    for name, row in tensors.items():
        what = f"tensor {name[:80]!r}"
        _check_keys(what, row, {"encoding", "shape", "crc32"})
        _strings(f"crc32 of {what}", row["crc32"])
        specs[name] = Spec(
            _string(f"the encoding of {what}", row["encoding"]), _shape(f"the shape of {what}", row["shape"])
        )
    return tuple(inputs), tuple(ops), _strings("outputs", document["outputs"]), specs


def _op(row: Any) -> Op:
    _check_keys("an operation", row, {"kind", "name", "inputs", "output", "attrs", "tensors"})
    kind, name = _string("an operation's kind", row["kind"]), _string("an operation's name", row["name"])
    what, attrs, tensors = f"operation {name[:80]!r}", row["attrs"], row["tensors"]
    require(isinstance(attrs, dict), f"attrs of {what} must be an object", attrs)
    good = isinstance(tensors, dict) and all(isinstance(item, str) for item in tensors.values())
    require(good, f"tensors of {what} must be an object of strings", tensors)
    inputs = _strings(f"inputs of {what}", row["inputs"])
    return Op(kind, name, inputs, _string(f"output of {what}", row["output"]), attrs, tensors)
