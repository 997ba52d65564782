"""Shape functions of the operations that move values without computing."""

from __future__ import annotations

import math

from frostbit_runtime.faults import require
from frostbit_runtime.program import Value
from frostbit_runtime.shapes import MAX_DIMS, Attrs, Specs, Values, axes_of, axis_of


def mean(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Reduce ``axes``, kept at size 1 with ``keepdims``."""
    shape = values[0].shape
    require(1 <= len(attrs["axes"]) <= len(shape), "axes must name at least one axis and each once")
    axes = axes_of(attrs["axes"], len(shape))
    require(0 not in axes, "axes must not name the batch")
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    return Value("real", tuple(kept if attrs["keepdims"] else (n for i, n in enumerate(kept) if i not in axes)))


def reshape(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Same entries in row-major order."""
    (x,), wanted = values, list(attrs["shape"])
    require(1 <= len(wanted) <= MAX_DIMS, f"shape must have 1 to {MAX_DIMS} entries, found {len(wanted)}")
    for index, size in enumerate(wanted):
        if size == 0:
            require(index < len(x.shape), f"shape {wanted} copies axis {index}, the input has {len(x.shape)}")
            wanted[index] = x.shape[index]
    total, known = math.prod(x.shape), math.prod(size for size in wanted if size != -1)
    require(total % known == 0 and (-1 in wanted or total == known), f"{list(x.shape)} does not reshape to {wanted}")
    return Value(x.kind, tuple(total // known if size == -1 else size for size in wanted))


def permute(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Axis ``i`` of the result is axis ``axes[i]`` of the input."""
    (x,) = values
    require(len(attrs["axes"]) == len(x.shape), f"axes must name all {len(x.shape)} axes, found {len(attrs['axes'])}")
    axes = axes_of(attrs["axes"], len(x.shape))
    return Value(x.kind, tuple(x.shape[axis] for axis in axes))


def expand_dims(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """A new axis of size 1."""
    (x,) = values
    axis = axis_of(attrs["axis"], len(x.shape) + 1)
    return Value(x.kind, (*x.shape[:axis], 1, *x.shape[axis:]))


def squeeze(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Drop an axis of size 1."""
    (x,) = values
    axis = axis_of(attrs["axis"], len(x.shape))
    require(x.shape[axis] == 1, f"axis {axis} of {list(x.shape)} is not 1")
    require(len(x.shape) > 1, "the last axis must stay")
    return Value(x.kind, (*x.shape[:axis], *x.shape[axis + 1 :]))


def concat(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Join along ``axis``; all other sizes and the kinds are equal."""
    shape = values[0].shape
    axis = axis_of(attrs["axis"], len(shape))
    for x in values[1:]:
        equal = len(x.shape) == len(shape) and all(
            i == axis or a == b for i, (a, b) in enumerate(zip(x.shape, shape, strict=True))
        )
        require(equal, f"shapes {list(shape)} and {list(x.shape)} do not join along axis {axis}")
        require(x.kind == values[0].kind, f"cannot join {values[0].kind} and {x.kind}")
    return Value(values[0].kind, (*shape[:axis], sum(x.shape[axis] for x in values), *shape[axis + 1 :]))


def slice_(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Python's slice of one axis; negative bounds count from the end, a null stop is the end."""
    (x,) = values
    axis = axis_of(attrs["axis"], len(x.shape))
    count = len(range(*slice(attrs["start"], attrs["stop"], attrs["step"]).indices(x.shape[axis])))
    require(count >= 1, f"slice {attrs['start']}:{attrs['stop']}:{attrs['step']} of size {x.shape[axis]} is empty")
    return Value(x.kind, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


def pad(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """``padding[i]`` entries before and after along axis ``i``."""
    (x,), padding = values, attrs["padding"]
    require(len(padding) == len(x.shape), f"padding needs {len(x.shape)} pairs, found {len(padding)}")
    return Value("real", tuple(size + sum(pair) for size, pair in zip(x.shape, padding, strict=True)))


def _kind(specs: Specs) -> str:
    return "index" if specs["value"].encoding in ("int16", "int32") else "real"


def expand_like(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """The stored ``value [1, ...]`` repeated to the reference's batch."""
    shape = specs["value"].shape
    require(len(shape) >= 1 and shape[0] == 1, f"value must have shape [1, ...], found {list(shape)}")
    return Value(_kind(specs), (values[0].shape[0], *shape[1:]))


def crop_like(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """The stored ``value`` cut along ``axis`` to the reference's size of ``reference_axis``."""
    shape = specs["value"].shape
    axis = axis_of(attrs["axis"], len(shape))
    size = values[0].shape[axis_of(attrs["reference_axis"], len(values[0].shape))]
    require(size <= shape[axis], f"at most {shape[axis]} positions are stored, found {size}")
    return Value(_kind(specs), (*shape[:axis], size, *shape[axis + 1 :]))


def embedding(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """``weight[index]``."""
    weight = specs["weight"]
    require(len(weight.shape) == 2, f"weight must be [rows, features], found {list(weight.shape)}")
    return Value("real", (*values[0].shape, weight.shape[1]))
