"""Whether a program is well formed, and the kind and shape of everything it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frostbit_runtime.attributes import POSITIVE, REAL, integer, numbers
from frostbit_runtime.errors import ProgramError
from frostbit_runtime.faults import require, require_known
from frostbit_runtime.ops import OPS, OpType
from frostbit_runtime.program import ENCODINGS, Input, Op, Program, Shape, Spec, Stored, Value, last_readers
from frostbit_runtime.shapes import MAX_DIMS, MAX_VALUES

INPUT_KINDS = {"float32": "real", "int64": "index"}
_PREPROCESS = {"size": integer(1), "channels": integer(1), "mean": numbers(REAL), "std": numbers(POSITIVE)}
_LONGEST_NAME = 500
_PART = 2**16  # entries looked at in one go, so that checking costs no memory


def check(program: Program) -> dict[str, Value]:
    """Check everything about a program, its stored tensors included.

    Args:
        program: from `read`, or put together by hand.

    Returns:
        ``{value: its kind and shape}`` with 1 for every size left open.

    Raises:
        ProgramError: the first fault, in one sentence.
    """
    check_info(program.info)
    for name, tensor in program.tensors.items():
        check_stored(name, tensor)
    return check_graph(program.inputs, program.ops, program.outputs, program.tensors)


def check_graph(
    inputs: Sequence[Input], ops: Sequence[Op], outputs: Sequence[str], specs: Mapping[str, Spec]
) -> dict[str, Value]:
    """Check a graph against what is known of its tensors; nothing large is allocated.

    Args:
        inputs: the arguments.
        ops: the operations.
        outputs: names of the results.
        specs: encoding and shape of each stored tensor.

    Returns:
        As :func:`check`.

    Raises:
        ProgramError: the first fault, in one sentence.
    """
    require(len(inputs) >= 1, "a program needs at least one input")
    require(len(outputs) >= 1, "a program needs at least one output")
    for name, spec in specs.items():
        _check_spec(name, spec)
    for item in inputs:
        _check_input(item)
    for op in ops:
        _check_op(op, specs)
    smallest = [tuple(1 if n is None else n for n in item.shape) for item in inputs]
    values = infer(inputs, ops, specs, smallest, MAX_VALUES)
    for name in outputs:
        require(name in values, f"output {name[:80]!r} is never computed")
    used = {name for op in ops for name in op.tensors.values()}
    unused = sorted(set(specs) - used)
    require(not unused, f"tensor {unused[0][:80]!r} is read by no operation" if unused else "")
    _check_peak(ops, outputs, values)
    return values


def infer(
    inputs: Sequence[Input],
    ops: Sequence[Op],
    specs: Mapping[str, Spec],
    shapes: Sequence[Shape],
    limit: int = 2**48,
) -> dict[str, Value]:
    """Return kind and shape of each value for inputs of given shapes.

    Args:
        inputs: the arguments.
        ops: operations whose attributes and roles were checked.
        specs: encoding and shape of each stored tensor.
        shapes: one full shape for each input.
        limit: most entries that one value may have.

    Returns:
        ``{value: its kind and shape}`` in the order of computation.

    Raises:
        ProgramError: a name is read before it is written or written twice, or operands do not fit.
    """
    values: dict[str, Value] = {}
    for item, shape in zip(inputs, shapes, strict=True):
        require(item.name not in values, f"value {item.name[:80]!r} is written twice")
        require(math.prod(shape) <= limit, f"input {item.name[:80]!r} would hold more than {limit} values")
        values[item.name] = Value(INPUT_KINDS[item.dtype], shape)
    for op in ops:
        try:
            values[op.output] = _infer_op(op, OPS[op.kind], values, specs)
            size = math.prod(values[op.output].shape)
            require(size <= limit, f"the result would hold {size} values, at most {limit} are allowed")
        except ProgramError as error:
            raise ProgramError(f"operation {op.name[:80]!r} ({op.kind}): {error}") from None
    return values


def _infer_op(op: Op, entry: OpType, values: Mapping[str, Value], specs: Mapping[str, Spec]) -> Value:
    require(op.output not in values, f"value {op.output[:80]!r} is written twice")
    operands = []
    for index, name in enumerate(op.inputs):
        require(name in values, f"input {name[:80]!r} is not computed before it")
        operands.append(values[name])
        kinds = entry.inputs[min(index, len(entry.inputs) - 1)]
        found = values[name].kind
        require(found in kinds, f"input {name[:80]!r} must be {' or '.join(sorted(kinds))}, found {found}")
    result = entry.result(operands, op.attrs, {role: specs[name] for role, name in op.tensors.items()})
    require(1 <= len(result.shape) <= MAX_DIMS, f"results must have 1 to {MAX_DIMS} dimensions")
    require(min(result.shape) >= 1, f"result {list(result.shape)} is empty")
    return result


def _check_peak(ops: Sequence[Op], outputs: Sequence[str], values: Mapping[str, Value]) -> None:
    """Bound what is held at once at batch 1, when each value is freed after its last reader."""
    sizes = {name: math.prod(value.shape) for name, value in values.items()}
    last = last_readers(ops, outputs)
    written = {op.output for op in ops}
    held = sum(size for name, size in sizes.items() if name not in written)
    for index, op in enumerate(ops):
        held += sizes[op.output]
        require(
            held <= MAX_VALUES, f"operation {op.name[:80]!r} would hold {held} values at once, at most {MAX_VALUES}"
        )
        held -= sum(sizes[name] for name in set(op.inputs) if last.get(name) == index)


def check_info(info: Mapping[str, Any]) -> None:
    """Check what a program says about itself, as far as the runtime reads it.

    Args:
        info: ``labels`` is null or a list of printable strings; ``preprocess`` is null or has ``size`` and
            ``channels`` (integers >= 1), ``mean`` and ``std`` (one number per channel, ``std`` > 0); the rest is free.

    Raises:
        ProgramError: the first fault.
    """
    require(isinstance(info, Mapping) and all(isinstance(key, str) for key in info), "info must be a table")
    labels, preprocess = info.get("labels"), info.get("preprocess")
    good = labels is None or (
        isinstance(labels, list | tuple) and all(isinstance(label, str) and label.isprintable() for label in labels)
    )
    require(good, "labels must be a list of printable strings or null", labels)
    if preprocess is None:
        return
    require(isinstance(preprocess, Mapping), "preprocess must be a table or null", preprocess)
    for name, attr in _PREPROCESS.items():
        found = preprocess.get(name)
        require(attr.accepts(found), f"preprocess: {name!r} must be {attr.what}", found)
    lengths = {len(preprocess["mean"]), len(preprocess["std"])}
    require(lengths == {preprocess["channels"]}, "preprocess: mean and std need one entry per channel")


def _check_name(what: str, name: Any) -> None:
    good = isinstance(name, str) and 1 <= len(name) <= _LONGEST_NAME and name.isprintable()
    require(good, f"{what} must be named by 1 to {_LONGEST_NAME} printable characters", name)


def _check_sizes(what: str, shape: Any, optional: bool) -> None:
    good = isinstance(shape, tuple) and len(shape) <= MAX_DIMS
    good = good and all((n is None and optional) or (type(n) is int and 1 <= n < 2**31) for n in shape)
    words = "integers >= 1 or null" if optional else "integers >= 1"
    require(good, f"the shape of {what} must be at most {MAX_DIMS} {words}", shape)


def _check_input(item: Input) -> None:
    _check_name("an input", item.name)
    _check_sizes(f"input {item.name[:80]!r}", item.shape, optional=True)
    require(len(item.shape) >= 1, f"input {item.name[:80]!r} needs a batch axis")
    require(item.dtype in INPUT_KINDS, f"input {item.name[:80]!r} must be float32 or int64, found {item.dtype!r:.80}")


def _check_spec(name: str, spec: Spec) -> None:
    _check_name("a tensor", name)
    known = isinstance(spec.encoding, str) and spec.encoding in ENCODINGS
    require(known, f"tensor {name[:80]!r} has encoding {spec.encoding!r:.80}, known: {', '.join(ENCODINGS)}")
    _check_sizes(f"tensor {name[:80]!r}", spec.shape, optional=False)
    require(spec.encoding != "int8" or len(spec.shape) >= 1, f"tensor {name[:80]!r} needs an axis for its int8 scale")


def _check_op(op: Op, specs: Mapping[str, Spec]) -> None:
    _check_name("an operation", op.name)
    where = f"operation {op.name[:80]!r}"
    require_known(op.kind, OPS, f"{where} is of unknown kind {op.kind[:80]!r}")
    _check_name(f"the output of {where}", op.output)
    entry, where = OPS[op.kind], f"{where} ({op.kind})"
    fewest = len(entry.inputs) if entry.fewest is None else entry.fewest
    most = 10**6 if entry.many else len(entry.inputs)
    require(fewest <= len(op.inputs) <= most, f"{where} has {len(op.inputs)} inputs, expected {fewest}")
    for name in op.attrs:
        require_known(name, entry.attrs, f"{where} has no attribute {name[:80]!r}")
    for name, attr in entry.attrs.items():
        require(name in op.attrs, f"{where} lacks attribute {name!r}")
        good = attr.accepts(op.attrs[name])
        require(good, f"{where}: attribute {name!r} must be {attr.what}", op.attrs[name])
    for role, name in op.tensors.items():
        require_known(role, entry.roles, f"{where} has no tensor {role[:80]!r}")
        require_known(name, specs, f"{where} reads tensor {name[:80]!r}, which is not there")
        found, known = specs[name].encoding, entry.roles[role].encodings
        require(found in known, f"{where}: {role} must be encoded as {' or '.join(known)}, found {found}")
    for name, role_entry in entry.roles.items():
        require(role_entry.optional or name in op.tensors, f"{where} lacks tensor {name!r}")


def check_stored(name: str, tensor: Stored) -> None:
    """Check that a tensor's data are what its encoding says.

    Args:
        name: the tensor's, for the message.
        tensor: with data.

    Raises:
        ProgramError: a wrong dtype or shape, set bits beyond the last, or NaN.
    """
    _check_spec(name, tensor)
    where, data = f"tensor {name[:80]!r}", tensor.data
    fits = data.dtype == ENCODINGS[tensor.encoding] and data.shape == tensor.stored_shape
    found = f"found {data.dtype} {list(data.shape)}"
    require(fits, f"{where} must hold {ENCODINGS[tensor.encoding].__name__} {list(tensor.stored_shape)}, {found}")
    if tensor.encoding == "bits":
        spare = -tensor.size % 8
        require(int(data[-1]) & ((1 << spare) - 1) == 0, f"{where} has bits set beyond its last entry")
    for array in (data, tensor.scale):
        if array is not None and array.dtype.kind == "f":
            flat = array.reshape(-1)
            parts = (flat[start : start + _PART] for start in range(0, flat.size, _PART))
            require(not any(np.isnan(part).any() for part in parts), f"{where} holds NaN")
    expected = tensor.shape[:1] if tensor.encoding == "int8" else None
    scale = None if tensor.scale is None else tensor.scale.shape
    typed = tensor.scale is None or tensor.scale.dtype == np.float32
    require(scale == expected and typed, f"{where} needs a float32 scale of shape {expected}, found {scale}")
