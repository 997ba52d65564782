"""One file for one network: a safetensors file whose metadata hold the program as JSON.

Metadata: ``frostbit`` is the JSON text of ``{format, version, inputs, ops, outputs, tensors, info}``, ``crc32`` the
checksum of that text; ``tensors`` gives each tensor's encoding, shape and checksum. An int8 tensor ``name`` has its
scale beside it as ``name/scale``. Reading executes nothing and trusts nothing: everything is checked against the
size of the file before anything of size is allocated.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from frostbit_runtime.check import check, check_graph, check_info, check_stored
from frostbit_runtime.document import FORMAT, crc, dumps, graph, loads, parts
from frostbit_runtime.errors import FileError, ProgramError
from frostbit_runtime.faults import require
from frostbit_runtime.program import ENCODINGS, Array, Program, Spec, Stored

#: Largest header in bytes; a network of a thousand operations needs a third of it. Parsing it takes up to 40 MiB.
MAX_HEADER = 2**20

_DTYPES = {"uint8": "U8", "float32": "F32", "float16": "F16", "int8": "I8", "int16": "I16", "int32": "I32"}


def write(program: Program, path: str | os.PathLike[str]) -> None:
    """Write a program; the same program gives the same bytes.

    Args:
        program: any; it is checked first.
        path: the file, replaced if it is there, untouched if writing fails.

    Raises:
        ProgramError: the program is not well formed, or too large for the format.
        OSError: the file cannot be written.
    """
    check(program)
    arrays = dict(sorted(_arrays(program.tensors).items(), key=lambda item: (-item[1].itemsize, item[0])))
    require(len(arrays) == sum(1 + (t.scale is not None) for t in program.tensors.values()), "two tensors share a name")
    text = dumps(program)
    header: dict[str, Any] = {"__metadata__": {FORMAT: text, "crc32": f"{zlib.crc32(text.encode()):08x}"}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    require(len(head) <= MAX_HEADER, f"the header would have {len(head)} bytes, at most {MAX_HEADER} are allowed")
    part = f"{os.fspath(path)}.part"
    try:
        with open(part, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def _arrays(tensors: Mapping[str, Stored]) -> dict[str, Array]:
    arrays = {name: tensor.data for name, tensor in tensors.items()}
    return arrays | {f"{name}/scale": tensor.scale for name, tensor in tensors.items() if tensor.scale is not None}


def read(path: str | os.PathLike[str]) -> Program:
    """Read a program.

    Args:
        path: a file that :func:`write` wrote.

    Returns:
        The program, checked.

    Raises:
        FileError: anything is wrong, in one sentence that names the file, what was expected and what was found.
    """
    try:
        return _read(os.fspath(path))
    except ProgramError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from None
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from None


def _read(path: str) -> Program:
    from safetensors import SafetensorError, safe_open

    _check_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            document = loads(file.metadata() or {})
            inputs, ops, outputs, specs = graph(document)
            check_info(document["info"])
            check_graph(inputs, ops, outputs, specs)
            _check_tensors(file, specs)
            tensors = {name: _tensor(file, name, spec, document["tensors"][name]) for name, spec in specs.items()}
    except SafetensorError as error:
        words = "".join(c if c.isprintable() else " " for c in str(error))[:200]
        raise ProgramError(f"expected a safetensors file, found a fault: {words}") from None
    return Program(inputs, ops, outputs, tensors, document["info"])


def _check_size(path: str) -> None:
    require(stat.S_ISREG(os.stat(path).st_mode), "expected a regular file")
    with open(path, "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
    require(len(start) == 8, f"expected at least 8 bytes, found {size}")
    header = int.from_bytes(start, "little")
    require(header <= size - 8, f"expected a header of {header} bytes, found {size - 8} (truncated, or of other kind)")
    require(header <= MAX_HEADER, f"the header has {header} bytes, at most {MAX_HEADER} are allowed")


def _check_tensors(file: Any, specs: Mapping[str, Spec]) -> None:
    """Compare what the graph says of its tensors with what the file holds."""
    expected = {name: (np.dtype(ENCODINGS[spec.encoding]).name, spec.stored_shape) for name, spec in specs.items()}
    for name, spec in specs.items():
        if spec.encoding == "int8":
            require(f"{name}/scale" not in specs, f"tensor {name[:80]!r} and its scale share a name")
            expected[f"{name}/scale"] = ("float32", spec.shape[:1])
    present = set(file.keys())
    missing, extra = sorted(set(expected) - present), sorted(present - set(expected))
    require(not missing, f"tensor {missing[0][:80]!r} is not in the file" if missing else "")
    require(not extra, f"the file holds a tensor {extra[0][:80]!r} that the header does not know" if extra else "")
    for name, (dtype, shape) in expected.items():
        part = file.get_slice(name)
        found = (part.get_dtype(), tuple(part.get_shape()))
        words = f"tensor {name[:80]!r} must be {_DTYPES[dtype]} {list(shape)}, found {found[0]} {list(found[1])}"
        require(found == (_DTYPES[dtype], shape), words)


def _tensor(file: Any, name: str, spec: Spec, row: Mapping[str, Any]) -> Stored:
    data = file.get_tensor(name)
    scale = file.get_tensor(f"{name}/scale") if spec.encoding == "int8" else None
    tensor = Stored(spec.encoding, spec.shape, data, scale)
    found = [crc(array) for array in parts(tensor)]
    require(
        found == row["crc32"], f"the checksum of tensor {name[:80]!r} is {found}, expected {repr(row['crc32'])[:80]}"
    )
    check_stored(name, tensor)
    return tensor
