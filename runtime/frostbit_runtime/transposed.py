"""Transposed convolutions of any number of dimensions, as plain ones on the phases of their output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frostbit_runtime import kernels
from frostbit_runtime.program import Array, Shape

Pair = tuple[int, int]


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
    conv: kernels.BinaryConv | kernels.RealConv | None


class Transposed:
    """A transposed convolution, channels last: one plain convolution for each phase of its output.

    Nothing is inserted between input entries, so nothing is summed that is not there: sums of signs are exact.

    Args:
        weight: ``[C, O/groups, *K]``, int8 ±1 for exact int32 sums of signs, or float32 for sums in the defined order.
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
        kernel = kernels.BinaryConv if weight.dtype == np.int8 else kernels.RealConv
        conv = kernel(np.ascontiguousarray(weight), (1,) * len(rows), tuple(pads), tuple(dilations), groups)
        return _Phase(tuple(first), cut, tuple(extra), conv)

    def run(self, x: Array, *, bias: Array | None = None, threads: int = 1) -> Array:
        """Return the sums.

        Args:
            x: uint32 ``[N, *S, words]`` signs, or float32 ``[N, *S, C]``.
            bias: float32 ``[O]``, added last, to real sums.
            threads: number of threads.

        Returns:
            int32 or float32 ``[N, *S_out, O]``.
        """
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
                result[(slice(None), *index)] = phase.conv.run(np.ascontiguousarray(part), threads=threads)
        return result if bias is None else result + bias
