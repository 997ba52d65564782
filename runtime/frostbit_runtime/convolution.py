"""Convolutions of one to three dimensions, also transposed, on top of the two-dimensional kernels.

All take and give channels last: signs as words, real numbers as float32. Weights of int8 ±1 mean a convolution of signs
with exact int32 sums, weights of float32 one with float32 sums in the defined order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from frostbit_runtime import kernels
from frostbit_runtime.program import Array, Shape

Pair = tuple[int, int]


class Convolution(Protocol):
    """What all of them have in common."""

    def run(self, x: Array, threads: int, **options: Any) -> Array:
        """Return the convolution of ``x [N, *S, C or words]``, ``[N, *S_out, O]``."""


def convolution(
    weight: Array,
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[Sequence[int]],
    groups: int,
    pad_value: int = 0,
) -> Convolution:
    """Prepare a convolution.

    Args:
        weight: ``[O, C/groups, *K]``, int8 ±1 or float32.
        stride: per dimension.
        dilation: per dimension.
        padding: entries before and after, per dimension.
        groups: number of channel groups.
        pad_value: for signs 0 (contributes nothing), 1 or −1; real padding is 0.

    Returns:
        The convolution; in one and two dimensions its ``run`` takes the kernels' fused options.
    """
    pads = [(before, after) for before, after in padding]
    if weight.ndim < 5:
        return Flat(weight, tuple(stride), tuple(dilation), pads, groups, pad_value)
    kind = BinaryVolume if weight.dtype == np.int8 else RealVolume
    return kind(weight, tuple(stride), tuple(dilation), pads, groups, pad_value)


class Flat:
    """One or two dimensions; one runs as an image of height 1."""

    def __init__(
        self, weight: Array, stride: Shape, dilation: Shape, pads: list[Pair], groups: int, pad_value: int
    ) -> None:
        self.one = weight.ndim == 3
        if self.one:
            weight, stride, dilation, pads = weight[:, :, None], (1, *stride), (1, *dilation), [(0, 0), *pads]
        self.kernel: kernels.BinaryConv | kernels.RealConv
        if weight.dtype == np.int8:
            self.kernel = kernels.BinaryConv(weight, stride, tuple(pads), dilation, groups, pad_value)
        else:
            self.kernel = kernels.RealConv(weight, stride, tuple(pads), dilation, groups)

    def run(self, x: Array, threads: int, **options: Any) -> Array:
        """Return the convolution, finished as the kernels' options say."""
        if not self.one:
            return self.kernel.run(x, threads=threads, **options)
        if options.get("residual") is not None:
            options["residual"] = options["residual"][:, None]
        return self.kernel.run(x[:, None], threads=threads, **options)[:, 0]


class BinaryVolume:
    """Three dimensions of signs: exact sums of one two-dimensional convolution for each depth of the kernel."""

    def __init__(
        self, weight: Array, stride: Shape, dilation: Shape, pads: list[Pair], groups: int, pad_value: int
    ) -> None:
        self.stride, self.dilation, self.pads, self.pad_value = stride[0], dilation[0], pads[0], pad_value
        self.filters, self.channels = len(weight), weight.shape[1] * groups
        self.slices = [
            Flat(np.ascontiguousarray(weight[:, :, k]), stride[1:], dilation[1:], pads[1:], groups, pad_value)
            for k in range(weight.shape[2])
        ]

    def run(self, x: Array, threads: int, **options: Any) -> Array:
        """Return the sums."""
        assert not options
        (before, after), (n, depth) = self.pads, x.shape[:2]
        if self.pad_value:
            border = kernels.pack_bool(np.full(self.channels, self.pad_value > 0))
            edge = [np.broadcast_to(border, (n, count, *x.shape[2:])) for count in (before, after)]
            x, before, after, depth = np.concatenate([edge[0], x, edge[1]], 1), 0, 0, depth + before + after
        count = (depth + before + after - self.dilation * (len(self.slices) - 1) - 1) // self.stride + 1
        total: Array | None = None
        for k, conv in enumerate(self.slices):
            first = k * self.dilation - before  # depth that output 0 meets; outputs beyond the border get nothing
            low = max(0, -(first // self.stride))
            high = min(count, (depth - 1 - first) // self.stride + 1)
            if low >= high:
                continue
            start = first + low * self.stride
            part = x[:, start : start + (high - low - 1) * self.stride + 1 : self.stride]
            sums = conv.run(np.ascontiguousarray(part).reshape(-1, *x.shape[2:]), threads)
            if total is None:
                total = np.zeros((n, count, *sums.shape[1:]), np.int32)
            total[:, low:high] += sums.reshape(n, high - low, *sums.shape[1:])
        if total is None:  # every kernel position lies in the border
            sums = self.slices[0].run(np.ascontiguousarray(x[:, 0]), threads)
            total = np.zeros((n, count, *sums.shape[1:]), np.int32)
        return total


class RealVolume:
    """Three dimensions of real numbers: windows laid out in the defined order, as rows of a dense layer."""

    def __init__(
        self, weight: Array, stride: Shape, dilation: Shape, pads: list[Pair], groups: int, pad_value: int
    ) -> None:
        self.stride, self.dilation, self.pads, self.groups = stride, dilation, pads, groups
        self.kernel, self.filters = weight.shape[2:], len(weight)
        rows = np.moveaxis(weight, 1, -1).reshape(groups, len(weight) // groups, -1)
        self.dense = [kernels.RealDense(np.ascontiguousarray(part)) for part in rows]

    def run(self, x: Array, threads: int, **options: Any) -> Array:
        """Return the sums, plus ``bias``, the one option."""
        assert set(options) <= {"bias"}
        x = np.pad(x, [(0, 0), *self.pads, (0, 0)])
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(1, 2, 3))  # a view [N, *S, C, *spans]
        strides, steps = (slice(None, None, s) for s in self.stride), (slice(None, None, d) for d in self.dilation)
        windows = windows[(slice(None), *strides, slice(None), *steps)]
        channels = windows.shape[4] // self.groups
        result = np.empty((*windows.shape[:4], self.filters), np.float32)
        for n, depth in itertools.product(range(len(windows)), range(windows.shape[1])):
            for group, dense in enumerate(self.dense):
                part = windows[n, depth][:, :, group * channels : (group + 1) * channels]
                rows = np.moveaxis(part, 2, -1).reshape(math.prod(part.shape[:2]), -1)
                sums = dense.run(rows, threads=threads)
                filters = sums.shape[1]
                result[n, depth, :, :, group * filters : (group + 1) * filters] = sums.reshape(*part.shape[:2], filters)
        return result if options.get("bias") is None else result + options["bias"]


@dataclass(frozen=True)
class _Phase:
    """Outputs that lie ``stride`` apart see one and the same part of a transposed kernel: a plain convolution.

    Args:
        first: the first such output, per dimension.
        cut: entries to drop from the input's front and back, per dimension.
        extra: how many outputs there are more than input entries, per dimension.
        conv: the convolution, ``None`` if no kernel position reaches these outputs.
    """

    first: Shape
    cut: list[Pair]
    extra: Shape
    conv: Convolution | None


class Transposed:
    """A transposed convolution of any number of dimensions, as one plain convolution for each phase of its output.

    Nothing is inserted between input entries, so nothing is summed that is not there: sums of signs are exact.

    Args:
        weight: ``[C, O/groups, *K]``, int8 ±1 or float32.
        stride: per dimension.
        padding: entries cut from both ends of the output, per dimension.
        output_padding: entries added to the end of the output, per dimension.
        dilation: per dimension.
        groups: number of channel groups.
    """

    def __init__(
        self,
        weight: Array,
        stride: Sequence[int],
        padding: Sequence[int],
        output_padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.stride, self.dtype = tuple(stride), np.int32 if weight.dtype == np.int8 else np.float32
        kernel, inner = weight.shape[2:], len(weight) // groups
        # as a plain convolution sees it: [O, C/groups, *K]
        plain = np.moveaxis(weight.reshape(groups, inner, weight.shape[1], *kernel), 2, 1).reshape(-1, inner, *kernel)
        self.filters = len(plain)
        rows = list(zip(kernel, stride, padding, output_padding, dilation, strict=True))
        self.reach = [d * (k - 1) + 1 + more - 2 * p - s for k, s, p, more, d in rows]
        self.phases = [
            self._phase(plain, residues, rows, groups) for residues in itertools.product(*map(range, self.stride))
        ]

    def _phase(self, weight: Array, residues: Shape, rows: Sequence[tuple[int, ...]], groups: int) -> _Phase:
        first, cut, extra, pads, dilations = [], [], [], [], []
        for axis, (residue, (k, s, p, more, d)) in enumerate(zip(residues, rows, strict=True)):
            taps = [j for j in reversed(range(k)) if (residue + p - j * d) % s == 0]
            weight = np.take(weight, taps, axis=axis + 2)
            first.append(residue)
            extra.append((d * (k - 1) + 1 + more - 2 * p - residue + s - 1) // s - 1)
            if not taps:
                continue
            step = d // math.gcd(d, s)
            begin = (residue + p - taps[0] * d) // s  # input entry that the first output meets first
            end = begin + step * (len(taps) - 1) + extra[-1]  # how far the last output reaches beyond the last entry
            pads.append((max(0, -begin), max(0, end)))
            cut.append((max(0, begin), max(0, -end)))
            dilations.append(step)
        if not weight.size:
            return _Phase(tuple(first), cut, tuple(extra), None)
        conv = convolution(np.ascontiguousarray(weight), [1] * len(rows), dilations, pads, groups)
        return _Phase(tuple(first), cut, tuple(extra), conv)

    def run(self, x: Array, threads: int, **options: Any) -> Array:
        """Return the sums, plus ``bias``, the one option."""
        assert set(options) <= {"bias"}
        sizes = x.shape[1:-1]
        out = [n * s + reach for n, s, reach in zip(sizes, self.stride, self.reach, strict=True)]
        result = np.zeros((len(x), *out, self.filters), self.dtype)
        for phase in self.phases:
            counts = [n + extra for n, extra in zip(sizes, phase.extra, strict=True)]
            if phase.conv is None or min(counts) <= 0:
                continue
            part = x[(slice(None), *(slice(a, n - b) for (a, b), n in zip(phase.cut, sizes, strict=True)))]
            if part.size:
                index = tuple(slice(first, None, s) for first, s in zip(phase.first, self.stride, strict=True))
                result[(slice(None), *index)] = phase.conv.run(np.ascontiguousarray(part), threads)
        return result if options.get("bias") is None else result + options["bias"]
