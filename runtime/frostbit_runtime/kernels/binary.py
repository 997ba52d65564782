"""Convolutions and products of signs by signs: exact sums by counting bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostbit_runtime.kernels import pools
from frostbit_runtime.kernels.bits import formed, pack_bool, unpack, words, write_lines
from frostbit_runtime.kernels.block import BINARY, BINARY_DEPTHWISE, REALS, SIGNS, SUMS
from frostbit_runtime.kernels.layer import Laid, Layer, output, window_of
from frostbit_runtime.kernels.simd import NIBBLES, PAIRS, PLAIN, TARGET

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
        inputs = weight.shape[1]
        self.channels = inputs * groups
        self._layer = _BinaryLayer(weight > 0, groups, window, pad_value)
        # What begins at a word of its own: a pixel, or each of its groups where these are layers of their own.
        self._unit = self.channels if self._layer.depthwise else inputs
        self._regroup = self._unit % 32 != 0 and self._unit != self.channels
        self._elements = self.channels // self._unit * words(self._unit) * self._layer.factor

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
        pool: tuple[Any, Any, Any, Any] | None = None,
        threads: int = 1,
    ) -> Array:
        """Return the sums, or what follows them.

        Args:
            x: uint32 [N, *S, ceil(C/32)] signs (see `bits`), or float32 [N, *S, C], which is packed first.
            out: where to write, or a new array.
            scale: float32 [O]: the result is sums * scale, one rounding for each step, here and below.
            shift: float32 [O], added next.
            residual: float32 [N, *S_out, O], added next.
            relu: whether values not above 0 then become 0.
            at: int32 [O]: the result is instead the signs (sums >= at) != flip.
            flip: bool [O].
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
            sums = pools.max_pool(self.run(x, threads=threads), *pool, threads=threads)
            return _finish(sums, scale, shift, residual, relu, out)
        if pool is not None and at is None:
            return _into(out, pools.max_pool(self.run(x, threads=threads), *pool, threads=threads))
        if at is not None and not self._layer.lined_up:  # words of signs that belong to two panels
            sums = self.run(x, pool=pool, threads=threads)
            return _into(out, pack_bool((sums >= at) != (False if flip is None else flip)))
        if pool is not None:  # a maximum crosses a threshold where one of its values does
            flips = None if flip is None else self._layer.flips(flip)
            signs = self.run(x, at=at, flip=None, threads=threads)
            pooled = pools.max_pool(signs, *pool, threads=threads)
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
        layer = self._layer
        laid = layer.lay(x.shape[:-1], self._elements)
        if self._regroup and x.dtype == np.uint32:
            signs = unpack(x, self.channels) > 0
            x = pack_bool(signs.reshape(*x.shape[:-1], layer.groups, -1))
        x = np.ascontiguousarray(x)
        if x.dtype == np.uint32 and not layer.padded and layer.form == PLAIN:
            return laid, x
        buffer = (np.zeros if layer.padded else np.empty)(laid.plan.buffer, np.uint32)
        if layer.border is not None:
            buffer[...] = layer.border
        size = self._unit if x.dtype == np.float32 else words(self._unit)
        x, lines = x.reshape(-1, size), laid.plan.lines
        write_lines(buffer.reshape(-1), x, len(x) // max(len(lines), 1), lines, layer.form, threads)
        return laid, buffer


class _BinaryLayer(Layer):
    """The panels and corrections of a binary layer; ``ones`` are its weights' signs as booleans."""

    def __init__(self, ones: Array, groups: int, window: Any, pad_value: int) -> None:
        outputs, inputs = ones.shape[:2]
        depthwise = groups > 1 and inputs == 1 and outputs == groups
        self.form = PLAIN if depthwise else TARGET.form
        self.factor = 2 if self.form == NIBBLES else 1
        super().__init__(outputs, inputs, groups, window, 1 if depthwise else words(inputs) * self.factor)
        by_position = np.moveaxis(ones.reshape(outputs, inputs, -1), 1, 2)  # [O, positions, C/groups]
        self._ones = by_position.sum(-1, dtype=np.int32)
        self._zeros = pad_value == 0
        bits = formed(pack_bool(np.ones(groups if depthwise else inputs, bool)), self.form)
        if depthwise:
            self.weights = pack_bool(by_position[:, :, 0].T).T.copy().view(np.int32)
        else:
            taps = formed(pack_bool(by_position), self.form)  # [O, positions, words]
            paired = taps.shape[-1] // 2 * 2 if self.form == PAIRS else 0
            numbers = np.arange(taps[0].size).reshape(taps.shape[1:])
            self.pairs = numbers[:, :paired:2].size
            self.order = np.concatenate([numbers[:, :paired:2].reshape(-1), numbers[:, paired:].reshape(-1)])
            parts = [taps[:, :, :paired].reshape(outputs, -1), taps[:, :, paired:].reshape(outputs, -1)]
            self.weights = self.panels(np.concatenate(parts, 1))
        self.border = np.tile(bits, 1 if depthwise else groups) if pad_value == 1 else None

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
    if out is not None and (out.shape[:-1] != x.shape[:-1] or not out.flags.c_contiguous):
        raise ValueError(f"out: expected C-contiguous {(*x.shape[:-1], '*')}, found {out.shape}")

    space = (1, -1) if x.size else (0, 1)

    def rows(values: Array | None) -> Array | None:
        return None if values is None else values.reshape(*space, values.shape[-1])

    y: Array = conv.run(rows(x), rows(out), residual=rows(residual), **options)
    return y.reshape(*x.shape[:-1], y.shape[-1])


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
