"""Operators that move values without computing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frostbit.deploy.lower import Lowering, UnsupportedError, handles, numbers
from frostbit.deploy.values import Partial, Size, Value

aten = torch.ops.aten


@handles(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints)
@handles(aten.unflatten.int)
def view(low: Lowering, x: Any, *_: Any) -> Value:
    """Any change of shape: the node knows the result's."""
    return reshape(low, low.value(x), low.shape)


def reshape(low: Lowering, x: Value, shape: Sequence[Size]) -> Value:
    """Return the entries of ``x`` in row-major order in another shape with at most one unknown size."""
    if tuple(shape) == x.shape:
        return x
    wanted = [
        size if isinstance(size, int) else 0 if i < x.rank and x.shape[i] == size else -1
        for i, size in enumerate(shape)
    ]
    if wanted.count(-1) > 1:
        raise UnsupportedError(f"it turns {list(x.shape)} into {list(shape)}, with more than one size open")
    return low.emit("reshape", [x], {"shape": wanted}, shape=shape)


@handles(aten.permute.default)
def permute(low: Lowering, x: Any, axes: Sequence[int]) -> Value:
    """Axes in a new order."""
    value = low.value(x)
    axes = [axis % value.rank for axis in axes]
    if axes == sorted(axes):
        return value
    return low.emit("permute", [value], {"axes": axes}, shape=[value.shape[axis] for axis in axes])


@handles(aten.transpose.int)
def transpose(low: Lowering, x: Any, first: int, second: int) -> Value:
    """Two axes change places."""
    axes = list(range(low.value(x).rank))
    axes[first], axes[second] = axes[second], axes[first]
    return permute(low, x, axes)


@handles(aten.t.default)
def transpose_matrix(low: Lowering, x: Any) -> Value:
    """The same for a matrix."""
    return permute(low, x, list(range(low.value(x).rank))[::-1])


@handles(aten.movedim.int, aten.movedim.intlist)
def movedim(low: Lowering, x: Any, source: Any, target: Any) -> Value:
    """Some axes move, the others close the ranks: torch itself says how."""
    rank = low.value(x).rank
    labelled = torch.empty(1).expand(range(1, rank + 1)).movedim(source, target)
    return permute(low, x, [size - 1 for size in labelled.shape])


@handles(aten.unsqueeze.default)
def unsqueeze(low: Lowering, x: Any, axis: int) -> Value:
    """A new axis of size 1."""
    value = low.value(x)
    axis %= value.rank + 1
    return low.emit("expand_dims", [value], {"axis": axis}, shape=resized(value, axis, 1, keep=True))


@handles(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(low: Lowering, x: Any, axes: Any = None) -> Value:
    """Axes of size 1 disappear."""
    value = low.value(x)
    chosen = range(value.rank) if axes is None else [axis % value.rank for axis in numbers(axes, 1)]
    for axis in sorted(chosen, reverse=True):
        if value.shape[axis] == 1:
            shape = (*value.shape[:axis], *value.shape[axis + 1 :])
            value = low.emit("squeeze", [value], {"axis": axis}, shape=shape)
    return value


def resized(x: Value, axis: int, size: Size, keep: bool = False) -> tuple[Size, ...]:
    """Return the shape of ``x`` with another size at an axis, or with a new axis there."""
    return (*x.shape[:axis], size, *x.shape[axis + (not keep) :])


def cut(low: Lowering, x: Value, axis: int, start: int, stop: int | None, size: Size, step: int = 1) -> Value:
    """Return a part of ``size`` entries along an axis."""
    if axis == 0 and not isinstance(x.shape[0], int):
        raise UnsupportedError("it takes a part of the batch")
    attrs = {"axis": axis, "start": start, "stop": stop, "step": step}
    return low.emit("slice", [x], attrs, shape=resized(x, axis, size))


@handles(aten.slice.Tensor)
def slice_(low: Lowering, x: Any, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    """Python's slice of one axis."""
    if not isinstance(x, Value):
        if start not in (None, 0) or step != 1:
            raise UnsupportedError("a constant cut to a size known at run time must be cut from its start")
        return Partial(x if isinstance(x, Tensor) else x.full, low.shape)
    axis %= x.rank
    size = x.shape[axis]
    if low.shape[axis] == size and step == 1:
        return x
    ends = None if stop is None or stop == size or (isinstance(stop, int) and stop >= 2**31) else _bound(stop, size)
    return cut(low, x, axis, _bound(start or 0, size), ends, low.shape[axis], step)


def _bound(bound: Size, size: Size) -> int:
    """Return a bound as a number, counted from the end where it moves with the size."""
    if isinstance(bound, int):
        return bound
    from_end = bound - size
    if not getattr(from_end, "is_Integer", False) or from_end >= 0:
        raise UnsupportedError(f"it cuts {size} entries at {bound}")
    return int(from_end)


@handles(aten.select.int)
def select(low: Lowering, x: Any, axis: int, index: int) -> Value:
    """One entry of an axis, which disappears."""
    value = low.value(x)
    axis %= value.rank
    part = cut(low, value, axis, index, None if index == -1 else index + 1, 1)
    return low.emit("squeeze", [part], {"axis": axis})


@handles(aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default)
def split(low: Lowering, x: Any, _: Any, axis: int = 0) -> list[Value]:
    """Several parts along an axis: the node knows their sizes."""
    value, start, parts = low.value(x), 0, []
    axis %= value.rank
    for tensor in low.node.meta["val"]:
        size = low.sizes(tensor)[axis]
        if not isinstance(size, int):
            raise UnsupportedError("it splits along a dimension of open size")
        parts.append(cut(low, value, axis, start, start + size, size))
        start += size
    return parts


@handles(aten.unbind.int)
def unbind(low: Lowering, x: Any, axis: int = 0) -> list[Value]:
    """All entries of an axis, which disappears."""
    value = low.value(x)
    axis %= value.rank
    shape = (*value.shape[:axis], *value.shape[axis + 1 :])
    parts = [cut(low, value, axis, index, index + 1, 1) for index in range(len(low.node.meta["val"]))]
    return [low.emit("squeeze", [part], {"axis": axis}, shape=shape) for part in parts]


@handles(aten.cat.default)
def cat(low: Lowering, parts: Sequence[Any], axis: int = 0) -> Value:
    """Join along an axis."""
    values = [low.value(part) for part in parts]
    if len({value.kind for value in values}) > 1:  # what is joined must be of one kind
        values = [low.affine(v, None, None, None) if v.kind in ("sign", "int") else v for v in values]
    return low.emit("concat", values, {"axis": axis % values[0].rank})


@handles(aten.stack.default)
def stack(low: Lowering, parts: Sequence[Any], axis: int = 0) -> Value:
    """Join along a new axis."""
    axis %= low.value(parts[0]).rank + 1
    return cat(low, [unsqueeze(low, part, axis) for part in parts], axis)


@handles(aten.constant_pad_nd.default)
def pad(low: Lowering, x: Any, sides: Sequence[int], number: float = 0.0) -> Value:
    """A constant border; a negative one cuts."""
    value = low.value(x)
    pairs = [(0, 0)] * (value.rank - len(sides) // 2)
    pairs += [(sides[i], sides[i + 1]) for i in range(len(sides) - 2, -1, -2)]
    for axis, (before, after) in enumerate(pairs):
        if min(before, after) < 0:
            size = value.shape[axis] + min(before, 0) + min(after, 0)
            value = cut(low, value, axis, max(-before, 0), min(after, 0) or None, size)
    padding = [[max(before, 0), max(after, 0)] for before, after in pairs]
    if not any(map(any, padding)):
        return value
    return low.emit("pad", [value], {"padding": padding, "value": float(number)})


@handles(aten.pad.default)
def pad_by_mode(
    low: Lowering, x: Any, sides: Sequence[int], mode: str = "constant", number: float | None = None
) -> Value:
    """Any border; of what torch would make of this operator, the circular one writes into memory."""
    if mode == "constant":
        return pad(low, x, sides, number or 0.0)
    value = low.value(x)
    for count in range(len(sides) // 2):
        axis, (before, after) = value.rank - 1 - count, sides[2 * count : 2 * count + 2]
        size = value.shape[axis]
        if not isinstance(size, int):
            raise UnsupportedError("it pads a dimension of open size")
        if min(before, after) < 0:
            raise UnsupportedError(f"its {mode} border has a negative width")
        front, back = {
            "reflect": (range(before, 0, -1), range(size - 2, size - 2 - after, -1)),
            "replicate": ([0] * before, [size - 1] * after),
            "circular": (range(size - before, size), range(after)),
        }[mode]
        borders = [[cut(low, value, axis, i, i + 1, 1) for i in rows] for rows in (front, back)]
        shape = resized(value, axis, size + before + after)
        value = low.emit("concat", [*borders[0], value, *borders[1]], {"axis": axis}, shape=shape)
    return value
