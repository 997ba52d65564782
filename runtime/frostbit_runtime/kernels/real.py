"""Float convolutions and products in a defined order of accumulation, so that every machine agrees bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from frostbit_runtime.kernels.binary import dense
from frostbit_runtime.kernels.block import REAL, REAL_DEPTHWISE, REALS
from frostbit_runtime.kernels.layer import Layer, inside, window_of
from frostbit_runtime.kernels.simd import PANEL
from numpy.typing import NDArray

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]


class RealConv:
    """A float32 convolution, channels last, zeros in the border.

    Each output starts at 0 and takes one fused multiply-add per kernel position (row-major), then channel.

    Args:
        weight: float32 [O, C/groups, *K]; any number of dimensions of space from 1.
        stride, dilation: per dimension of space.
        padding: (before, after) per dimension of space.
        groups: number of groups.

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        weight: Array,
        stride: tuple[int, ...] = (1, 1),
        padding: Pairs = ((0, 0), (0, 0)),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> None:
        window = window_of(weight, stride, padding, dilation)
        outputs, inputs = weight.shape[:2]
        depthwise = groups > 1 and inputs == 1 and outputs == groups
        self.channels = inputs * groups
        self._layer = Layer(outputs, inputs, groups, window, PANEL if depthwise else inputs)
        # The last panel of a depthwise layer reads whole registers: up to 31 floats beyond the last channel.
        self._beyond = PANEL if depthwise and outputs % PANEL else 0
        by_position = np.moveaxis(weight.reshape(outputs, inputs, -1), 1, 2).astype(np.float32)
        self._weights = self._layer.panels(by_position.reshape(outputs, -1))

    def run(
        self,
        x: Array,
        out: Array | None = None,
        *,
        bias: Array | None = None,
        scale: Array | None = None,
        shift: Array | None = None,
        residual: Array | None = None,
        relu: bool = False,
        threads: int = 1,
    ) -> Array:
        """Return the convolution of x, then + bias, * scale, + shift, + residual, ReLU: one rounding each.

        Args:
            x: float32 [N, *S, C].
            out: where to write, or a new array.
            bias: float32 [O].
            scale: float32 [O].
            shift: float32 [O].
            residual: float32 [N, *S_out, O].
            relu: whether values not above 0 become 0.
            threads: number of threads; results do not depend on it.

        Returns:
            float32 [N, *S_out, O].

        Raises:
            ValueError: an argument does not fit.
        """
        window = self._layer.window
        if x.dtype != np.float32 or x.ndim != len(window.kernel) + 2 or x.shape[-1] != self.channels:
            raise ValueError(
                f"input: expected float32 [N, *S, {self.channels}] with {len(window.kernel)} dimensions of space, "
                f"found {x.dtype} {x.shape}"
            )
        laid = self._layer.lay(x.shape[:-1], self.channels)
        x = np.ascontiguousarray(x)
        if self._layer.padded or self._beyond:
            size = int(np.prod(laid.plan.buffer))
            buffer = np.zeros(size + self._beyond, np.float32)
            inside(buffer[:size].reshape(laid.plan.buffer), window)[...] = x
            x = buffer
        return self._layer.compute(
            REAL_DEPTHWISE if self._layer.depthwise else REAL,
            REALS,
            x,
            laid,
            self._weights,
            out,
            bias=bias,
            scale=scale,
            shift=shift,
            residual=residual,
            relu=relu,
            threads=threads,
        )


class RealDense:
    """float32 x [..., I] times weight [O, I] transposed: one fused multiply-add per k, ascending.

    Args:
        weight: float32 [O, I].
    """

    def __init__(self, weight: Array) -> None:
        self._conv = RealConv(weight[:, :, None], (1,), ((0, 0),), (1,))

    def run(self, x: Array, out: Array | None = None, *, residual: Array | None = None, **options: Any) -> Array:
        """Return [..., O], as `RealConv.run`.

        Args:
            x: float32 [..., I].
            out: where to write, or a new array.
            residual: float32 [..., O].
            **options: as there.
        """
        return dense(self._conv, x, out, residual, options)
