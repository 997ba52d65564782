"""Steps that look at one row, or one entry, at a time: the curves of transformers and their norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frostbit_runtime import kernels
from frostbit_runtime.held import Held
from frostbit_runtime.kernels.threads import split
from frostbit_runtime.program import Op, Value
from frostbit_runtime.reference import FUNCTIONS
from frostbit_runtime.reference.elementwise import real
from frostbit_runtime.steps import Action, Tensors

_PART = 16_384  # values whose float64 temporaries stay in the cache
_COST = 20.0  # nanoseconds a value, about
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
        return Curve(op)
    if op.kind == "layer_norm":
        return LayerNorm(op, tensors)
    if op.kind == "softmax" and op.attrs["axis"] % dims == dims - 1:
        return softmax
    return None


def softmax(operands: Sequence[Held], result: Value, threads: int) -> Held:
    """Return the softmax over the last axis."""
    return Held(result.kind, result.shape, "plain", kernels.softmax(real(operands[0].plain()), threads))


def gelu(operands: Sequence[Held], result: Value, threads: int) -> Held:
    """Return GELU by the error function."""
    return Held(result.kind, result.shape, "plain", kernels.gelu(real(operands[0].plain()), threads))


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm over the last axes."""

    op: Op
    tensors: Tensors

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the result."""
        own = {role: real(array) for role, array in self.tensors.items()}
        x, attrs = real(operands[0].plain()), self.op.attrs
        y = kernels.layer_norm(x, attrs["axes"], attrs["eps"], **own, threads=threads)
        return Held(result.kind, result.shape, "plain", y)


@dataclass(frozen=True)
class Curve:
    """The reference function of an operation that looks at one entry at a time, on some entries after another."""

    op: Op

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the result."""
        function, x = FUNCTIONS[self.op.kind], operands[0].plain().reshape(-1)
        out = np.empty(x.shape, np.float32)

        def work(first: int, last: int) -> None:
            for begin in range(first, last, _PART):
                some = slice(begin, min(begin + _PART, last))
                out[some] = function([x[some]], self.op.attrs, {})

        split(work, x.size, threads, _COST, _PART)
        return Held(result.kind, result.shape, "plain", out.reshape(result.shape))
