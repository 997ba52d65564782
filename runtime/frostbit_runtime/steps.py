"""What a network does at run time: each step reads values that are held and gives the next one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from frostbit_runtime import kernels
from frostbit_runtime.held import Held
from frostbit_runtime.program import Array, Op, Shape, Value
from frostbit_runtime.reference import FUNCTIONS, run_op
from frostbit_runtime.reference.pooling import pool_counts
from frostbit_runtime.shapes import pooled_size, pooled_span
from frostbit_runtime.transposed import Transposed

_MOVES = {"reshape", "permute", "expand_dims", "squeeze", "slice"}
Attrs = Mapping[str, Any]
Tensors = Mapping[str, Array]


class Action(Protocol):
    """Turns operands into a result of known kind and shape."""

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the result."""


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Args:
        inputs: names of the values it reads.
        output: name of the value that it writes.
        action: what it does.
        frees: values that nothing reads after it.
    """

    inputs: tuple[str, ...]
    output: str
    action: Action
    frees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plain:
    """The reference function itself, on values in logical order."""

    op: Op
    tensors: Tensors

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the result; of signs that nothing packed yet, which its readers will, the numbers are moved."""
        source = operands[0].unpacked if self.op.kind in _MOVES else None
        if source is not None:
            moved = self([source], replace(result, kind="real"), threads)
            return Held("sign", result.shape, source=moved)
        array = run_op(self.op, [held.plain() for held in operands], self.tensors)
        return Held(result.kind, result.shape, "plain", array)


def moved_axis(axis: int, dims: int) -> int:
    """Return where an axis is once the channels were moved last."""
    axis %= dims
    return dims - 1 if axis == 1 else axis - (axis > 1)


class Elementwise:
    """The reference function of an operation that looks at one entry at a time, in whichever layout is there."""

    def __init__(self, op: Op, tensors: Tensors, dims: int) -> None:
        self.op, self.tensors = op, tensors
        self.last_attrs, self.last_tensors = dict(op.attrs), dict(tensors)
        if "axis" in op.attrs:
            self.last_attrs["axis"] = moved_axis(op.attrs["axis"], dims)
        if "other" in tensors and dims > 2:
            other = tensors["other"].reshape((1,) * (dims - tensors["other"].ndim) + tensors["other"].shape)
            self.last_tensors["other"] = np.ascontiguousarray(np.moveaxis(other, 1, -1))

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the result, in the layout of the operands."""
        function, dims = FUNCTIONS[self.op.kind], len(result.shape)
        movable = dims > 2 and all(len(held.shape) == dims for held in operands)
        if movable and any(held.has("last") or held.has("words") for held in operands):
            array = function([held.last() for held in operands], self.last_attrs, self.last_tensors)
            return Held(result.kind, result.shape, "last", array)
        array = function([held.plain() for held in operands], self.op.attrs, self.tensors)
        return Held(result.kind, result.shape, "plain", array)


def take_sign(operands: Sequence[Held], result: Value, threads: int) -> Held:
    """Return the signs of a value, to be packed by or for its readers."""
    (x,) = operands
    return x if x.kind == "sign" else Held("sign", result.shape, source=x)


@dataclass(frozen=True)
class Tail:
    """What is done to the sums of a convolution or dense layer before they are written: see the kernels' options.

    Args:
        options: ``bias``, ``scale``, ``shift``, ``at``, ``flip``, ``relu``, as the kernels take them.
        residual: whether the second operand is added.
        pool: attributes of a max pooling before the thresholds.
    """

    options: dict[str, Any] = field(default_factory=dict)
    residual: bool = False
    pool: Attrs | None = None

    def before_sum(self) -> Tail:
        """Return what comes before the second operand is added."""
        return Tail({name: value for name, value in self.options.items() if name != "relu"})


@dataclass(frozen=True)
class Convolve:
    """A convolution and what was fused behind it."""

    conv: kernels.BinaryConv | kernels.RealConv | Transposed
    binary: bool
    tail: Tail = field(default_factory=Tail)
    sizes: Callable[[Shape], Shape] | None = None  # from the input's to the convolution's; there if anything is fused

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the sums, real numbers or signs."""
        x, options = operands[0], dict(self.tail.options)
        if self.tail.pool is not None and self.sizes is not None:
            options["pool"] = pool_arguments(self.tail.pool, self.sizes(x.shape[2:]))
        if self.tail.residual and self.sizes is not None:
            shape = (x.shape[0], result.shape[1], *self.sizes(x.shape[2:]))
            if not shape == operands[1].shape == result.shape:
                sums = replace(self, tail=self.tail.before_sum())(operands[:1], Value("real", shape), threads)
                return add_broadcast(sums, operands[1], result, "relu" in options)
            options["residual"] = operands[1].real()
        y = self.conv.run(x.signs() if self.binary else x.real(), threads=threads, **options)
        if result.kind == "sign":
            return Held(result.kind, result.shape, "words", y)
        return Held(result.kind, result.shape, "last", _float(y) if result.kind == "real" else y)


@dataclass(frozen=True)
class Dense:
    """A dense layer over the last axis and what was fused behind it.

    Args:
        dense: the kernel.
        binary: whether it reads signs.
        tail: what follows.
        image: if the operand is an image not yet flattened: its channels and positions. The weight's columns then go
            by position, then channel.
    """

    dense: kernels.BinaryDense | kernels.RealDense
    binary: bool
    tail: Tail
    image: tuple[int, int] | None = None

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the sums, real numbers or signs."""
        options = dict(self.tail.options)
        rows, lead = self._rows(operands[0], result)
        if self.tail.residual:
            shape = (*lead, result.shape[-1])
            if not shape == operands[1].shape == result.shape:
                sums = replace(self, tail=self.tail.before_sum())(operands[:1], Value("real", shape), threads)
                return add_broadcast(sums, operands[1], result, "relu" in options)
            options["residual"] = _float(operands[1].plain()).reshape(-1, result.shape[-1])
        y = self.dense.run(rows, threads=threads, **options)
        y = y.reshape(*lead, -1)
        if result.kind == "sign":
            return Held(result.kind, result.shape, "rows", y)
        return Held(result.kind, result.shape, "plain", _float(y) if result.kind == "real" else y)

    def _rows(self, x: Held, result: Value) -> tuple[Array, Shape]:
        """Return the operand as ``[M, features or words]`` and the leading sizes that ``M`` is the product of."""
        if self.image is not None:
            if x.shape[:2] == (result.shape[0], self.image[0]):
                return x.words().reshape(x.shape[0], -1), x.shape[:1]
            # sizes mixed by the reshape: flatten first, then bring the columns into the weight's order
            columns = x.plain().reshape(-1, *self.image).swapaxes(1, 2).reshape(-1, math.prod(self.image))
            return kernels.pack_bool(columns > 0), columns.shape[:1]
        full = x.signs(last=False) if self.binary else _float(x.plain())
        return full.reshape(-1, full.shape[-1]), x.shape[:-1]


def add_broadcast(sums: Held, other: Held, result: Value, relu: bool) -> Held:
    """Return a sum whose sides have different shapes, which no kernel fuses."""
    array = sums.plain() + _float(other.plain())
    if relu:
        array = FUNCTIONS["relu"]([array], {}, {})
    return Held("real", result.shape, "plain", array)


def _float(x: Array) -> Array:
    return x if x.dtype == np.float32 else x.astype(np.float32)


def pool_arguments(attrs: Attrs, sizes: Shape) -> tuple[Any, Any, Any, Any]:
    """Return kernel, stride, padding as far as the windows reach, and dilation."""
    dilation, pads = attrs.get("dilation", [1] * len(sizes)), []
    for index, size in enumerate(sizes):
        kernel, stride, pad = (attrs[name][index] for name in ("kernel", "stride", "padding"))
        count = pooled_size(size, kernel, stride, pad, dilation[index], attrs["ceil_mode"])
        pads.append((pad, max(0, pooled_span(attrs, index, count) - size - pad)))
    return tuple(attrs["kernel"]), tuple(attrs["stride"]), tuple(pads), tuple(dilation)


@dataclass(frozen=True)
class MaxPool:
    """A max pooling; of signs on their words."""

    attrs: Attrs

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the largest entries."""
        (x,) = operands
        layout, array = ("words", x.words()) if x.kind == "sign" else ("last", x.last())
        y = kernels.max_pool(array, *pool_arguments(self.attrs, x.shape[2:]), threads=threads)
        return Held(result.kind, result.shape, layout, y)


@dataclass(frozen=True)
class AvgPool:
    """An average pooling."""

    attrs: Attrs

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the averages."""
        (x,) = operands
        kernel, stride, pads, _ = pool_arguments(self.attrs, x.shape[2:])
        counts = pool_counts(x.shape[2:], result.shape[2:], self.attrs)
        y = kernels.avg_pool(x.real(), kernel, stride, pads, divisors=counts, threads=threads)
        return Held("real", result.shape, "last", y)


def global_mean(operands: Sequence[Held], result: Value, threads: int) -> Held:
    """Return the mean over all positions of an image."""
    (x,) = operands
    return Held("real", result.shape, "plain", kernels.global_mean(x.real(), threads).reshape(result.shape))


def matmul(operands: Sequence[Held], result: Value, threads: int) -> Held:
    """Return the product of two values."""
    lead = result.shape[:-2]
    arrays = (_float(held.plain()) for held in operands)
    left, right = (np.broadcast_to(a, (*lead, *a.shape[-2:])).reshape(-1, *a.shape[-2:]) for a in arrays)
    return Held("real", result.shape, "plain", kernels.matmul(left, right, threads).reshape(result.shape))


@dataclass(frozen=True)
class Permute:
    """Axes in a new order; moving the channels last, or back, is free where that layout is there."""

    plain: Plain

    def __call__(self, operands: Sequence[Held], result: Value, threads: int) -> Held:
        """Return the same entries."""
        (x,) = operands
        dims = len(result.shape)
        axes = [axis % dims for axis in self.plain.op.attrs["axes"]]
        if x.kind == "real" and axes == [0, *range(2, dims), 1] and x.has("last"):
            return Held("real", result.shape, "plain", x.last())
        if x.kind == "real" and axes == [0, dims - 1, *range(1, dims - 1)] and x.has("plain"):
            return Held("real", result.shape, "last", x.plain())
        return self.plain(operands, result, threads)
