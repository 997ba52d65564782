"""Convolutions and products of signs by signs: exact sums by counting bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from frostbit_runtime.kernels import pools
from frostbit_runtime.kernels.bits import pack_bool, pack_into, unpack, words
from frostbit_runtime.kernels.blocks import BINARY, BINARY_DEPTHWISE, REALS, SIGNS, SUMS
from frostbit_runtime.kernels.layer import Laid, Layer, inside, output, window_of
from numpy.typing import NDArray

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]


class BinaryConv:
    """A convolution of signs with signs, channels last, and what may be fused behind it.

    Args:
        weight: int8 [O, C/groups, *K] of -1 and +1; any number of dimensions of space from 1.
        stride, dilation: per dimension of space.
        padding: (before, after) per dimension of space.
        groups: number of groups.
        pad_value: what lies in the border: 0 (contributes nothing), 1 or -1.

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
        pad_value: int = 0,
    ) -> None:
        if pad_value not in (0, 1, -1):
            raise ValueError(f"pad_value: expected 0, 1 or -1, found {pad_value}")
        window = window_of(weight, stride, padding, dilation)
        outputs, inputs = weight.shape[:2]
        self.channels, self.pad_value = inputs * groups, pad_value
        depthwise = groups > 1 and inputs == 1 and outputs == groups
        # Groups of a number of channels that is no multiple of 32 begin at words of their own.
        self._regroup = groups > 1 and inputs % 32 != 0 and not depthwise
        self._elements = groups * words(inputs) if self._regroup else words(self.channels)
        self._layer = _BinaryLayer(weight > 0, groups, window, pad_value)

    def run(
        self,
        x: Array,
        out: Array | None = None,
        *,
        scale: Array | None = None,
        shift: Array | None = None,
        residual: Array | None = None,
        at: Array | None = None,
        flip: Array | None = None,
        relu: bool = False,
        pool: tuple[Any, ...] | None = None,
        threads: int = 1,
    ) -> Array:
        """Return the sums, or what follows them.

        Args:
            x: uint32 [N, *S, ceil(C/32)] signs (see `bits`), or float32 [N, *S, C], which is packed first.
            out: where to write, or a new array.
            scale, shift: float32 [O]: the result is sums * scale + shift, two roundings.
            residual: float32 [N, *S_out, O], added next.
            at, flip: int32 [O], bool [O]: the result is the signs (sums >= at) != flip.
            relu: whether values not above 0 become 0.
            pool: kernel, stride, padding, dilation of a maximum over the sums, before all of that.
            threads: number of threads; results do not depend on it.

        Returns:
            int32 [N, *S_out, O], or float32 with scale, shift, residual or relu, or words with at.

        Raises:
            ValueError: an argument does not fit.
        """
        reals = relu or any(each is not None for each in (scale, shift, residual))
        if reals and at is not None:
            raise ValueError("at: expected no scale, shift, residual or relu beside thresholds")
        if at is None and flip is not None:
            raise ValueError("flip: expected thresholds (at) beside it")
        if pool is not None and reals:
            sums = pools.max_pool(self.run(x, threads=threads), *pool)
            return _finish(sums, scale, shift, residual, relu, out)
        if pool is not None and at is None:
            return _into(out, pools.max_pool(self.run(x, threads=threads), *pool))
        if at is not None and not self._layer.lined_up:  # words of signs that belong to two panels
            sums = self.run(x, pool=pool, threads=threads)
            return _into(out, pack_bool((sums >= at) != (False if flip is None else flip)))
        if pool is not None:  # a maximum crosses a threshold where one of its values does
            flips = None if flip is None else self._layer.flips(flip)
            signs = self.run(x, at=at, flip=None, threads=threads)
            pooled = pools.max_pool(signs, *pool)
            return _into(out, pooled if flips is None else pooled ^ flips)
        laid, buffer = self._buffer(x, threads)
        layer = self._layer
        return layer.compute(
            BINARY_DEPTHWISE if layer.depthwise else BINARY,
            SIGNS if at is not None else REALS if reals else SUMS,
            buffer,
            laid,
            layer.weights,
            out,
            scale=scale,
            shift=shift,
            residual=residual,
            at=at,
            flips=None if flip is None else layer.flips(flip),
            relu=relu,
            threads=threads,
        )

    def _buffer(self, x: Array, threads: int) -> tuple[Laid, Array]:
        """Return the plan for x and its words with a border."""
        window = self._layer.window
        last = self.channels if x.dtype == np.float32 else words(self.channels)
        if x.dtype not in (np.float32, np.uint32) or x.ndim != len(window.kernel) + 2 or x.shape[-1] != last:
            raise ValueError(
                f"input: expected float32 [N, *S, {self.channels}] or uint32 [N, *S, {words(self.channels)}] "
                f"with {len(window.kernel)} dimensions of space, found {x.dtype} {x.shape}"
            )
        laid = self._layer.lay(x.shape[:-1], self._elements)
        if self._regroup:
            signs = x >= 0 if x.dtype == np.float32 else unpack(x, self.channels) > 0
            x = pack_bool(signs.reshape(*x.shape[:-1], self._layer.groups, -1)).reshape(*x.shape[:-1], -1)
        x = np.ascontiguousarray(x)
        if x.dtype == np.uint32 and not window.padded:
            return laid, x
        buffer = np.empty(laid.plan.buffer, np.uint32)
        if window.padded:
            buffer[...] = self._layer.border
        if x.dtype == np.float32:
            pack_into(buffer.reshape(-1), x, laid.plan.lines, threads)
        else:
            inside(buffer, window)[...] = x
        return laid, buffer


class _BinaryLayer(Layer):
    """The panels and corrections of a binary layer; ``ones`` are its weights' signs as booleans."""

    def __init__(self, ones: Array, groups: int, window: Any, pad_value: int) -> None:
        outputs, inputs = ones.shape[:2]
        depthwise = groups > 1 and inputs == 1 and outputs == groups
        super().__init__(outputs, inputs, groups, window, 1 if depthwise else words(inputs))
        by_position = np.moveaxis(ones.reshape(outputs, inputs, -1), 1, 2)  # [O, positions, C/groups]
        if depthwise:
            self.weights = pack_bool(by_position[:, :, 0].T).T.copy().view(np.int32)
        else:
            self.weights = self.panels(pack_bool(by_position).reshape(outputs, -1))
        self._ones = by_position.sum(-1, dtype=np.int32)
        self._zeros = pad_value == 0
        channels = pack_bool(np.ones(groups if depthwise else inputs, bool))
        self.border = np.tile(channels, 1 if depthwise else groups) if pad_value == 1 else np.uint32(0)

    def corrections(self, outside: Array) -> Array:
        """Return the sum if no bit differed; a border of zeros counts neither channels nor the bits found there."""
        if not self._zeros:
            outside = outside[:1] & False
        within = (~outside).sum(1, dtype=np.int32)
        result: Array = within[:, None] * np.int32(self.inputs) + 2 * outside.astype(np.int32) @ self._ones.T
        return result

    def flips(self, flip: Array) -> Array:
        """Return booleans [O] as a word per panel."""
        return pack_bool(self.vector("flip", flip, False, bool))


class BinaryDense:
    """Signs times signs.

    Args:
        weight: int8 [O, I] of -1 and +1.
    """

    def __init__(self, weight: Array) -> None:
        self._conv = BinaryConv(weight[:, :, None], (1,), ((0, 0),), (1,))

    def run(self, x: Array, out: Array | None = None, *, residual: Array | None = None, **options: Any) -> Array:
        """Return the sums [..., O], or what follows them, as `BinaryConv.run`.

        Args:
            x: uint32 [..., ceil(I/32)] signs, or float32 [..., I].
            out: where to write, or a new array.
            residual: float32 [..., O].
            **options: as there.
        """
        return dense(self._conv, x, out, residual, options)


def dense(conv: Any, x: Array, out: Array | None, residual: Array | None, options: dict[str, Any]) -> Array:
    """Run a one-dimensional convolution of size 1 along all leading dimensions of x."""
    lead = x.shape[:-1]
    rows = None if residual is None else residual.reshape(1, -1, residual.shape[-1])
    y: Array = conv.run(x.reshape(1, -1, x.shape[-1]), residual=rows, **options)
    return _into(out, y.reshape(*lead, y.shape[-1]))


def _into(out: Array | None, y: Array) -> Array:
    if out is None:
        return y
    output(out, y.shape, y.dtype)[...] = y
    return out


def _finish(
    sums: Array, scale: Array | None, shift: Array | None, residual: Array | None, relu: bool, out: Array | None
) -> Array:
    """Finish sums that were pooled on the way."""
    y = sums.astype(np.float32)
    for step, operand in ((np.multiply, scale), (np.add, shift), (np.add, residual)):
        if operand is not None:
            step(y, operand, out=y)
    return _into(out, np.where(y > 0, y, np.float32(0)) if relu else y)
