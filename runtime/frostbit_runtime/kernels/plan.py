"""Geometry of a convolution on one input shape: where the rows, the taps and the border are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """Kernel size, stride, padding (before, after) and dilation per dimension of space."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
            values = np.asarray(getattr(self, name))
            if len(values) != len(self.kernel) or values.min(initial=least) < least:
                raise ValueError(
                    f"{name}: expected {len(self.kernel)} entries of at least {least}, found {getattr(self, name)}"
                )

    def output(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Return the output's size for an input of size ``space``."""
        sizes = tuple(
            (size + sum(pair) - dilation * (kernel - 1) - 1) // stride + 1
            for size, pair, kernel, stride, dilation in zip(
                space, self.padding, self.kernel, self.stride, self.dilation, strict=True
            )
        )
        if min(sizes) < 1:
            raise ValueError(f"input: expected at least as large as the window {self}, found size {space}")
        return sizes


@dataclass(frozen=True)
class Plan:
    """Where everything is, in bytes.

    Attributes:
        buffer: shape [N, *S + padding, elements] of the input as the kernel reads it.
        output: shape [N, *S_out].
        lines: int64 [N * S[0] * .. * S[-2]], element at which each line of the input begins in the buffer.
        rows: int64 [R], first byte of each output row's window.
        taps: int32 [K], bytes from there to each element of the window, position by position.
        classes: int32 [R], which line of ``outside`` applies to a row.
        outside: bool [classes, positions], whether a position lies in the border.
    """

    buffer: tuple[int, ...]
    output: tuple[int, ...]
    lines: Array
    rows: Array
    taps: Array
    classes: Array
    outside: Array


def plan(window: Window, shape: tuple[int, ...], elements: int, tap_elements: int) -> Plan:
    """Lay out an input.

    Args:
        window: the convolution's.
        shape: [N, *S].
        elements: four-byte elements per pixel.
        tap_elements: of which a window reads this many at each position.
    """
    images, *space = shape
    sizes = window.output(tuple(space))
    buffer = (images, *(size + sum(pair) for size, pair in zip(space, window.padding, strict=True)), elements)
    steps = [4 * prod(buffer[i + 1 :]) for i in range(len(buffer))]  # bytes
    begins = [np.arange(size) * stride for size, stride in zip(sizes, window.stride, strict=True)]
    offsets = [np.arange(k) * d for k, d in zip(window.kernel, window.dilation, strict=True)]
    every_image = np.arange(images) * steps[0]

    taps = _sums([o * step for o, step in zip(offsets, steps[1:-1], strict=True)] + [np.arange(tap_elements) * 4])
    if taps[-1] >= 2**31:
        raise ValueError(f"input: expected windows that span less than 2 GiB, found size {tuple(shape)}")
    inner = [np.arange(size) + pair[0] for size, pair in zip(space, window.padding, strict=True)]
    inner[-1] = inner[-1][:1]
    lines = _sums([every_image] + [i * step for i, step in zip(inner, steps[1:-1], strict=True)]) // 4

    kinds = []  # per dimension: which kernel positions lie outside, once each, and which of these a row has
    for begin, offset, size, pair in zip(begins, offsets, space, window.padding, strict=True):
        at = begin[:, None] + offset - pair[0]
        kinds.append(np.unique((at < 0) | (at >= size), axis=0, return_inverse=True))
    counts = [len(patterns) for patterns, _ in kinds]
    classes = _sums(
        [np.zeros(images, np.int64)] + [which.reshape(-1) * prod(counts[i + 1 :]) for i, (_, which) in enumerate(kinds)]
    )
    outside = np.zeros((1, 1), bool)
    for patterns, _ in kinds:
        outside = (outside[:, None, :, None] | patterns[None, :, None, :]).reshape(
            outside.shape[0] * patterns.shape[0], -1
        )
    rows = _sums([every_image] + [b * step for b, step in zip(begins, steps[1:-1], strict=True)])
    return Plan(buffer, (images, *sizes), lines, rows, taps.astype(np.int32), classes.astype(np.int32), outside)


def _sums(terms: list[Array]) -> Array:
    """Return all sums of one entry from each array, the last varying fastest."""
    total = np.zeros(1, np.int64)
    for term in terms:
        total = (total[:, None] + term).reshape(-1)
    return total
