"""Steps that look at one row, or one entry, at a time: the curves of transformers and their norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from frostbit_runtime import kernels
from frostbit_runtime.held import Held
from frostbit_runtime.kernels.threads import split
from frostbit_runtime.program import Op, Value
from frostbit_runtime.reference import FUNCTIONS
from frostbit_runtime.reference.elementwise import real
from frostbit_runtime.steps import Action, Tensors

_PART = 16_384  # values whose float64 temporaries stay in the cache
_CURVES = {"gelu", "silu", "sigmoid", "tanh"}


def rowwise(op: Op, tensors: Tensors, dims: int) -> Action | None:
    """Return what runs an operation that is made of rows, ``None`` if it is not.

    Args:
        op: any operation.
        tensors: its decoded tensors.
        dims: number of axes of its result.
    """
    if op.kind == "gelu" and op.attrs["approximate"] != "tanh":
        return gelu
    if op.kind in _CURVES:
        return ByRows(op, tensors, 0)
    if op.kind == "layer_norm":
        return ByRows(op, tensors, op.attrs["axes"])
    if op.kind == "softmax" and op.attrs["axis"] % dims == dims - 1:
        return ByRows(replace(op, attrs={"axis": -1}), tensors, 1)
    return None


def gelu(operands: Sequence[Held], result: Value, threads: int) -> Held:
    """Return GELU by the error function."""
    return Held(result.kind, result.shape, "plain", kernels.gelu(real(operands[0].plain()), threads))


@dataclass(frozen=True)
class ByRows:
    """The reference function, on some rows after another.

    Args:
        op: the operation.
        tensors: its tensors.
        axes: how many of the last axes make a row; 0 where entries do not see each other.
    """

    op: Op
    tensors: Tensors
    axes: int

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the result."""
        function, x = FUNCTIONS[self.op.kind], operands[0].plain()
        rows = x.reshape(-1, *x.shape[x.ndim - self.axes :])
        out, count = np.empty(rows.shape, np.float32), max(1, _PART // math.prod(rows.shape[1:]))

        def work(first: int, last: int) -> None:
            for begin in range(first, last, count):
                some = slice(begin, min(begin + count, last))
                out[some] = function([rows[some]], self.op.attrs, self.tensors)

        split(work, len(rows), threads, count)
        return Held(result.kind, result.shape, "plain", out.reshape(result.shape))
