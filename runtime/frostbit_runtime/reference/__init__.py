"""The definition of every operation in plain numpy, and an interpreter that runs a program one operation at a time.

Nothing here is tuned: each function says what its operation means, down to the bit. The fast network is held against
:func:`interpret`, and whatever is not worth a kernel runs these very functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from frostbit_runtime.check import infer
from frostbit_runtime.errors import InputError, ProgramError
from frostbit_runtime.inputs import check_inputs
from frostbit_runtime.program import Array, Op, Program, Value, last_readers
from frostbit_runtime.reference import elementwise, moving, pooling, rows, sums

Function = Callable[[Sequence[Array], Mapping[str, Any], Mapping[str, Array]], Array]

#: ``{kind: function(inputs, attributes, decoded tensors)}``; arrays are row-major, of the dtypes in `KINDS`
FUNCTIONS: dict[str, Function] = {
    "sign": elementwise.sign,
    "binary_conv": sums.binary_conv,
    "binary_conv_transpose": sums.binary_conv_transpose,
    "binary_dense": sums.binary_dense,
    "conv": sums.conv,
    "conv_transpose": sums.conv_transpose,
    "dense": sums.dense,
    "affine": elementwise.affine,
    "threshold": elementwise.threshold,
    "add": elementwise.add,
    "sub": elementwise.sub,
    "mul": elementwise.mul,
    "relu": elementwise.relu,
    "prelu": elementwise.prelu,
    "clip": elementwise.clip,
    "gelu": elementwise.gelu,
    "silu": elementwise.silu,
    "sigmoid": elementwise.sigmoid,
    "tanh": elementwise.tanh,
    "softmax": rows.softmax,
    "layer_norm": rows.layer_norm,
    "max_pool": pooling.max_pool,
    "avg_pool": pooling.avg_pool,
    "mean": pooling.mean,
    "reshape": moving.reshape,
    "permute": moving.permute,
    "expand_dims": moving.expand_dims,
    "squeeze": moving.squeeze,
    "concat": moving.concat,
    "slice": moving.slice_,
    "pad": moving.pad,
    "expand_like": moving.expand_like,
    "crop_like": moving.crop_like,
    "matmul": sums.matmul,
    "differs": elementwise.differs,
    "cumsum": moving.cumsum,
    "embedding": moving.embedding,
}


def run_op(op: Op, inputs: Sequence[Array], tensors: Mapping[str, Array]) -> Array:
    """Run one operation.

    Args:
        op: of a checked program.
        inputs: its operands.
        tensors: ``{role: decoded tensor}``.

    Returns:
        The result, row-major.
    """
    return np.ascontiguousarray(FUNCTIONS[op.kind](inputs, op.attrs, tensors))


def infer_call(program: Program, arrays: Sequence[Array]) -> dict[str, Value]:
    """Return kind and shape of each value for these arguments.

    Raises:
        InputError: an operation cannot run at these sizes.
    """
    try:
        return infer(program.inputs, program.ops, program.tensors, [array.shape for array in arrays])
    except ProgramError as error:
        raise InputError(f"the network cannot run on {[list(array.shape) for array in arrays]}: {error}") from None


def interpret(program: Program, *arrays: Array) -> Array | tuple[Array, ...]:
    """Run a program in plain numpy.

    Args:
        program: checked (as `read` returns it).
        *arrays: one for each input.

    Returns:
        The output, a tuple of them if the program has several.

    Raises:
        InputError: wrong arguments.
    """
    checked = check_inputs(program.inputs, arrays)
    infer_call(program, checked)
    values = {item.name: array for item, array in zip(program.inputs, checked, strict=True)}
    last = last_readers(program.ops, program.outputs)
    for index, op in enumerate(program.ops):
        tensors = {role: program.tensors[name].decode() for role, name in op.tensors.items()}
        values[op.output] = run_op(op, [values[name] for name in op.inputs], tensors)
        for name in {name for name in op.inputs if last.get(name) == index}:
            del values[name]
    results = tuple(values[name] for name in program.outputs)
    return results[0] if len(results) == 1 else results
