"""Operations that look at one value at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frostbit_runtime.program import Array

Inputs = Sequence[Array]
Attrs = Mapping[str, Any]
Tensors = Mapping[str, Array]

#: erf(z) = z · P(z²) / Q(z²) for |z| <= 4 within 8e-12 in float64, lowest power first; beyond 4 it is ±1 in float32.
#: Fitted to the C library's by weighted least squares until no error was larger than the others
ERF_P = (
    *(1.1283791670154473, 0.20183226084784592, 0.0583621329150028, 0.005034615382070853),
    *(0.0005182032394322443, 2.232837309861124e-05, 7.610065321869106e-07, 2.991996005289221e-09),
)
ERF_Q = (
    *(1.0, 0.5122025158665856, 0.1224562742492265, 0.017869818090100555),
    *(0.0017359300755157834, 0.0001133055576490514, 4.614938928661618e-06, 7.346075028662432e-08),
)
ERF_END = 4.0


def real(x: Array) -> Array:
    """Return the values as float32; ±1 and sums are numbers like any other."""
    return x if x.dtype == np.float32 else x.astype(np.float32)


def along(vector: Array, axis: int, dims: int) -> Array:
    """Return a vector shaped to broadcast along one axis."""
    shape = [1] * dims
    shape[axis] = -1
    return vector.reshape(shape)


def sign(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """+1 where x >= 0, so for −0.0 too; else −1."""
    return np.where(inputs[0] >= 0, np.int8(1), np.int8(-1))


def affine(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """``x · scale + shift`` along an axis, each step rounded to float32."""
    y = real(inputs[0])
    if "scale" in tensors:
        y = y * along(real(tensors["scale"]), attrs["axis"], y.ndim)
    if "shift" in tensors:
        y = y + along(real(tensors["shift"]), attrs["axis"], y.ndim)
    return y


def threshold(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """+1 where ``(x >= at) != flip`` along an axis, else −1."""
    (x,), axis = inputs, attrs["axis"]
    reached = x >= along(tensors["at"].astype(np.int32), axis, x.ndim)
    return np.where(reached != along(tensors["flip"] > 0, axis, x.ndim), np.int8(1), np.int8(-1))


def _two(inputs: Inputs, tensors: Tensors) -> tuple[Array, Array]:
    left, right = inputs[0], inputs[1] if len(inputs) == 2 else tensors["other"]
    return (left, right) if left.dtype == right.dtype == np.int64 else (real(left), real(right))  # indices stay whole


def add(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Sum of two values, or of one and ``other``."""
    left, right = _two(inputs, tensors)
    return np.asarray(left + right)


def sub(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """First minus second, or minus ``other``."""
    left, right = _two(inputs, tensors)
    return np.asarray(left - right)


def mul(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Product of two values, or of one and ``other``."""
    left, right = _two(inputs, tensors)
    return np.asarray(left * right)


def differs(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """1 where an index is another than ``value``, else 0."""
    return np.where(inputs[0] == attrs["value"], np.int64(0), np.int64(1))


def relu(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Return x where x > 0, else 0."""
    x = real(inputs[0])
    return np.where(x > 0, x, np.float32(0))


def prelu(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Return x where x >= 0, else ``x · slope`` along an axis."""
    x = real(inputs[0])
    return np.where(x >= 0, x, x * along(real(tensors["slope"]), attrs["axis"], x.ndim))


def clip(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """``min(max(x, min), max)``; a null bound does not bind."""
    y = real(inputs[0])
    if attrs["min"] is not None:
        y = np.maximum(y, np.float32(attrs["min"]))
    if attrs["max"] is not None:
        y = np.minimum(y, np.float32(attrs["max"]))
    return y


# Everything transcendental is computed in float64 and rounded once.


def erf(z: Array) -> Array:
    """Return the error function of float64 z: arithmetic alone, that any machine repeats bit for bit."""
    z = np.where(z > ERF_END, ERF_END, np.where(z < -ERF_END, -ERF_END, z))
    square = z * z
    p, q = np.full_like(z, ERF_P[-1]), np.full_like(z, ERF_Q[-1])
    for a, b in zip(ERF_P[-2::-1], ERF_Q[-2::-1], strict=True):
        p, q = p * square + a, q * square + b
    return np.asarray(z * p / q)


def gelu(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """``x · Φ(x)``, by the error function or its tanh approximation.

    The function itself is computed in float64, the rest in float32 as torch does: far below 0 the result must become
    −0.0, whose sign is +1.
    """
    x = real(inputs[0])
    wide = x.astype(np.float64)
    if attrs["approximate"] == "tanh":
        bent = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide))
    else:
        bent = erf(wide * math.sqrt(0.5))
    return np.asarray(x * np.float32(0.5) * (np.float32(1) + bent.astype(np.float32)))


def _logistic(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def silu(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """``x / (1 + exp(−x))``."""
    x = inputs[0].astype(np.float64)
    return np.asarray((x * _logistic(x)).astype(np.float32))


def sigmoid(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """``1 / (1 + exp(−x))``."""
    return _logistic(inputs[0].astype(np.float64)).astype(np.float32)


def tanh(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Hyperbolic tangent."""
    return np.asarray(np.tanh(inputs[0].astype(np.float64)).astype(np.float32))
