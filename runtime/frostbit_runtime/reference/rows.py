"""Operations that look at one row at a time: sums in a defined order, and an exponential that is arithmetic alone.

A C library's exponential differs from machine to machine in its last bit, and what a vectorizer does to a sum differs
too. Here both are a fixed sequence of roundings, which any machine repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from frostbit_runtime.program import Array
from frostbit_runtime.reference.elementwise import Attrs, Inputs, Tensors, real

#: partial sums of a row: entry i goes to number i mod 16, then the upper half is added to the lower until one is left
LANES = 16
#: below it the exponential is 0; float32 has no normal number there
LOWEST = np.float32(-87.3)
#: 1/ln 2; ln 2 in two parts, the first of few bits, so that small multiples of it are exact; what rounds to a whole
#: number when it is added and taken away again; and the polynomial of degree 7 on ±ln 2 / 2, highest power first
EXPONENTIAL: tuple[Any, ...] = tuple(
    map(
        np.float32,
        (
            *(1.44269504, 0.693359375, -2.12194440e-4, 12582912.0),
            *(1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 1.66666655e-1, 5.00000012e-1),
        ),
    )
)


def exponential(x: Array) -> Array:
    """Return ``exp(x)`` of float32 x <= 0, within two units in the last place; 0 below `LOWEST`.

    ``x = m ln 2 + r`` with a whole m gives ``2^m (1 + r + r² P(r))``. Coefficients of the single-precision exponential
    of the Cephes library (Moshier).
    """
    per_ln2, high, low, magic, *powers = EXPONENTIAL
    near = np.where(x < LOWEST, LOWEST, x)
    m = (near * per_ln2 + magic) - magic
    r = (near - m * high) - m * low
    p = powers[0]
    for power in powers[1:]:
        p = p * r + power
    y = (p * (r * r) + r) + np.float32(1)
    with np.errstate(invalid="ignore"):  # a NaN is multiplied by anything
        power_of_2 = ((m.astype(np.int32) + 127) << 23).view(np.float32)
    return np.where(x < LOWEST, np.float32(0), y * power_of_2)


def row_sum(x: Array) -> Array:
    """Return the sums of ``x [..., n]`` as ``[..., 1]``, of its dtype, in the order of `LANES`."""
    *lead, n = x.shape
    padded = np.zeros((*lead, -(-n // LANES), LANES), x.dtype)
    padded.reshape(*lead, -1)[..., :n] = x
    sums = np.zeros((*lead, LANES), x.dtype)
    for part in range(padded.shape[-2]):
        sums = sums + padded[..., part, :]
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums


def softmax(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """``exp(x − max x) / Σ exp(x − max x)`` along an axis, in float32."""
    x = np.moveaxis(real(inputs[0]), attrs["axis"], -1)
    with np.errstate(invalid="ignore"):  # infinities give NaN
        raised = exponential(x - x.max(axis=-1, keepdims=True))
        return np.ascontiguousarray(np.moveaxis(raised / row_sum(raised), -1, attrs["axis"]))


def layer_norm(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """``(x − mean) / √(variance + eps)`` over the last ``axes`` dimensions in float64; weight and bias in float32."""
    x = real(inputs[0])
    rows = x.reshape(*x.shape[: x.ndim - attrs["axes"]], -1).astype(np.float64)
    centred = rows - row_sum(rows) / rows.shape[-1]
    variance = row_sum(centred * centred) / rows.shape[-1]
    y = (centred / np.sqrt(variance + attrs["eps"])).astype(np.float32).reshape(x.shape)
    if "weight" in tensors:
        y = y * real(tensors["weight"])
    if "bias" in tensors:
        y = y + real(tensors["bias"])
    return np.asarray(y)
