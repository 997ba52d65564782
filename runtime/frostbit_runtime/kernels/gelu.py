"""GELU by the error function: `frostbit_runtime.reference.elementwise`, to the bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostbit_runtime.kernels.simd import kernel
from frostbit_runtime.kernels.threads import split
from frostbit_runtime.reference.elementwise import ERF_END, ERF_P, ERF_Q

Array = NDArray[Any]
COST = 3.0  # nanoseconds a value, about
ROOT = math.sqrt(0.5)


@kernel
def _gelu(x: Any, out: Any) -> None:
    p0, p1, p2, p3, p4, p5, p6, p7 = ERF_P
    q0, q1, q2, q3, q4, q5, q6, q7 = ERF_Q
    for i in range(x.size):
        bare = np.float64(x[i]) * ROOT
        z = ERF_END if bare > ERF_END else (-ERF_END if bare < -ERF_END else bare)
        s = z * z
        p = ((((((p7 * s + p6) * s + p5) * s + p4) * s + p3) * s + p2) * s + p1) * s + p0
        q = ((((((q7 * s + q6) * s + q5) * s + q4) * s + q3) * s + q2) * s + q1) * s + q0
        bent = np.float32(z * p / q)
        out[i] = x[i] * np.float32(0.5) * (np.float32(1) + bent)


def gelu(x: Array, threads: int = 1) -> Array:
    """Return ``x · Φ(x)``.

    Args:
        x: float32 of any shape.
        threads: number of threads; results do not depend on it.

    Returns:
        float32 of x's shape.
    """
    x = np.ascontiguousarray(x)
    out = np.empty_like(x)
    flat, into = x.reshape(-1), out.reshape(-1)
    split(lambda first, last: _gelu(flat[first:last], into[first:last]), x.size, threads, COST)
    return out
