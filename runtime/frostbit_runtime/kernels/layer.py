"""What binary and real layers share: weights in panels, plans by input shape, and the call of the walk."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostbit_runtime.kernels.block import REALS, SIGNS, SUMS
from frostbit_runtime.kernels.plan import Plan, Window, plan
from frostbit_runtime.kernels.simd import PANEL
from frostbit_runtime.kernels.threads import split
from frostbit_runtime.kernels.walk import GRAIN, walk

Array = NDArray[Any]
PLANS = 16  # input shapes that a layer remembers
DTYPES = {SUMS: np.int32, REALS: np.float32, SIGNS: np.uint32}
NOTHING = np.zeros(0, np.float32)
NANOSECONDS = 0.05  # a tap of one output, about: a word of 32 signs takes 0.1, a float 0.025


@dataclass(frozen=True)
class Laid:
    """A plan, with what a layer adds to it.

    Attributes:
        plan: the plan.
        taps: int32, its taps in the order of the weights.
        corrections: int32 [classes, panels * 32], the sum if no bit differed.
        classes: int32 [R], where each row's line of corrections begins, in bytes.
    """

    plan: Plan
    taps: Array
    corrections: Array
    classes: Array


class Layer:
    """Weights in panels of 32 output channels, and where each panel reads and writes.

    Args:
        outputs: output channels; inputs: input channels of one group; groups: number of groups.
        window: geometry.
        step: elements of the input from one group to the next; depthwise: from one panel to the next.
    """

    def __init__(self, outputs: int, inputs: int, groups: int, window: Window, step: int) -> None:
        if groups < 1 or outputs % groups:
            raise ValueError(f"groups: expected a divisor of the {outputs} output channels, found {groups}")
        self.outputs, self.inputs, self.groups, self.window = outputs, inputs, groups, window
        self.padded = any(sum(pair) for pair in window.padding)
        self.depthwise = groups > 1 and inputs == 1 and outputs == groups
        self.taps = 1 if self.depthwise else step  # elements that a window reads at each position
        parts = 1 if self.depthwise else groups
        panels = [(g, c) for g in range(parts) for c in range(0, outputs // parts, PANEL)]
        self.spans = np.array(  # per panel: bytes to its input, first output channel, output channels
            [
                (4 * step * (i if self.depthwise else g), g * outputs // parts + c, min(PANEL, outputs // parts - c))
                for i, (g, c) in enumerate(panels)
            ],
            np.int64,
        )
        self.slots = np.concatenate([PANEL * i + np.arange(width) for i, (_, _, width) in enumerate(self.spans)])
        self.lined_up = parts == 1 or outputs // parts % PANEL == 0  # a panel's signs are one word of the output
        self.order: Array | None = None  # of the taps, if another than the plan's
        self.pairs = 0  # taps that lead to two words
        self._plans: dict[tuple[int, ...], Laid] = {}
        self._absent: dict[str, Array] = {}

    def panels(self, lines: Array) -> Array:
        """Return weights [O, K] (four-byte elements) as panels [P, K, 32], each beginning at a cache line."""
        full = np.zeros((len(self.spans) * PANEL, lines.shape[1]), lines.dtype)
        full[self.slots] = lines
        return aligned(full.reshape(len(self.spans), PANEL, -1).transpose(0, 2, 1))

    def vector(self, name: str, values: Array | None, absent: float, dtype: Any) -> Array:
        """Return one value per output channel, in the panels' order; ``absent`` where there is no value."""
        if values is None and name in self._absent:
            return self._absent[name]
        size = len(self.spans) * PANEL
        if values is not None:
            if values.shape != (self.outputs,):
                raise ValueError(f"{name}: expected shape ({self.outputs},), found {values.shape}")
            if size == self.outputs:
                return np.ascontiguousarray(values, dtype)
        full = np.full(size, absent, dtype)
        if values is None:
            self._absent[name] = full
        else:
            full[self.slots] = values
        return full

    def lay(self, shape: tuple[int, ...], elements: int) -> Laid:
        """Return the plan for inputs [N, *S] of ``elements`` per pixel."""
        found = self._plans.get(shape)
        if found is None:
            made = plan(self.window, shape, elements, self.taps)
            lines = self.corrections(made.outside)
            corrections = np.zeros((len(lines), len(self.spans) * PANEL), np.int32)
            corrections[:, self.slots] = lines
            step = corrections.strides[0] if len(lines) > 1 else 0
            taps = made.taps if self.order is None else made.taps[self.order]
            found = Laid(made, taps, corrections, made.classes * np.int32(step))
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[shape] = found
        return found

    def corrections(self, outside: Array) -> Array:
        """Return int32 [classes, O], or [1, O] where the border makes no difference: what binary layers start from."""
        return np.zeros((1, self.outputs), np.int32)

    def compute(
        self,
        kind: int,
        mode: int,
        x: Array,
        laid: Laid,
        panels: Array,
        out: Array | None,
        *,
        bias: Array | None = None,
        scale: Array | None = None,
        shift: Array | None = None,
        residual: Array | None = None,
        at: Array | None = None,
        flips: Array | None = None,
        relu: bool = False,
        threads: int = 1,
    ) -> Array:
        """Run the walk on the buffer x, in parts: many rows are split by row, few by panel. Return the output."""
        rows, count = len(laid.plan.rows), len(self.spans)
        shape = (*laid.plan.output, -(-self.outputs // 32) if mode == SIGNS else self.outputs)
        out = output(out, shape, DTYPES[mode])
        if residual is not None and residual.shape != shape:
            raise ValueError(f"residual: expected shape {shape}, found {residual.shape}")
        if flips is None:
            flips = self.vector("flips", None, 0, np.uint32)
        arguments = (
            kind,
            mode,
            int(relu),
            x.reshape(-1).view(np.int32),
            laid.plan.rows,
            laid.taps,
            self.pairs,
            panels,
            self.spans,
            laid.classes,
            laid.corrections,
            self.vector("bias", bias, -0.0, np.float32),
            self.vector("scale", scale, 1.0, np.float32),
            self.vector("shift", shift, -0.0, np.float32),
            self.vector("at", at, 2**31 - 1, np.int32),
            flips,
            NOTHING if residual is None else np.ascontiguousarray(residual, np.float32).reshape(-1),
            out.reshape(-1).view(np.int32),
            shape[-1],
        )
        if threads == 1:
            walk(*arguments, 0, rows, 0, count)
        elif rows >= 2 * GRAIN * threads:
            cost = NANOSECONDS * laid.taps.size * PANEL * count
            split(lambda first, last: walk(*arguments, first, last, 0, count), rows, threads, cost, GRAIN)
        else:
            cost = NANOSECONDS * laid.taps.size * PANEL * rows
            split(lambda first, last: walk(*arguments, 0, rows, first, last), count, threads, cost)
        return out


def aligned(values: Array) -> Array:
    """Return a contiguous copy as int32 that begins at a cache line: no load of weights then straddles two."""
    raw = np.empty(values.size * 4 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + values.size * 4].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy.view(np.int32)


def output(out: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return ``out`` if it fits, or a new array."""
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(f"out: expected C-contiguous {np.dtype(dtype)} {shape}, found {out.dtype} {out.shape}")
    return out


def inside(buffer: Array, window: Window) -> Array:
    """Return the view [N, *S, elements] of a buffer without its border."""
    return buffer[
        (slice(None), *(slice(b, size - a) for (b, a), size in zip(window.padding, buffer.shape[1:], strict=False)))
    ]


def window_of(
    weight: Array, stride: tuple[int, ...], padding: tuple[tuple[int, int], ...], dilation: tuple[int, ...]
) -> Window:
    """Return the geometry of a weight [O, C/groups, *K]."""
    if weight.ndim < 3 or not prod(weight.shape):
        raise ValueError(f"weight: expected shape [O, C/groups, *K] without zeros, found {weight.shape}")
    pairs = tuple((int(b), int(a)) for b, a in padding)
    return Window(tuple(weight.shape[2:]), tuple(stride), pairs, tuple(dilation))
