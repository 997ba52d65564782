"""Operations that move values without computing."""

from __future__ import annotations

import numpy as np

from frostbit_runtime.errors import InputError
from frostbit_runtime.program import Array
from frostbit_runtime.reference.elementwise import Attrs, Inputs, Tensors, real


def reshape(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Same entries in row-major order."""
    (x,) = inputs
    return x.reshape([x.shape[index] if size == 0 else size for index, size in enumerate(attrs["shape"])])


def permute(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Axes in a new order."""
    return np.ascontiguousarray(inputs[0].transpose(attrs["axes"]))


def expand_dims(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """A new axis of size 1."""
    return np.expand_dims(inputs[0], attrs["axis"])


def squeeze(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Drop an axis of size 1."""
    return np.squeeze(inputs[0], attrs["axis"])


def concat(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Join along an axis."""
    return np.concatenate(inputs, axis=attrs["axis"])


def slice_(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Python's slice of one axis."""
    (x,) = inputs
    index = [slice(None)] * x.ndim
    index[attrs["axis"]] = slice(attrs["start"], attrs["stop"], attrs["step"])
    return np.ascontiguousarray(x[tuple(index)])


def pad(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Constant entries before and after each axis."""
    return np.pad(real(inputs[0]), [tuple(pair) for pair in attrs["padding"]], constant_values=attrs["value"])


def _stored(value: Array) -> Array:
    return value.astype(np.int64) if value.dtype in (np.int16, np.int32) else real(value)


def expand_like(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """The stored value, repeated to the reference's batch."""
    return np.repeat(_stored(tensors["value"]), len(inputs[0]), axis=0)


def crop_like(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """The first entries of the stored value along an axis, as many as the reference has along its own."""
    value = _stored(tensors["value"])
    index = [slice(None)] * value.ndim
    index[attrs["axis"]] = slice(inputs[0].shape[attrs["reference_axis"]])
    return np.ascontiguousarray(value[tuple(index)])


def cumsum(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Each index plus all before it along an axis."""
    return np.cumsum(inputs[0], axis=attrs["axis"])


def embedding(inputs: Inputs, attrs: Attrs, tensors: Tensors) -> Array:
    """Rows of the table."""
    (index,), weight = inputs, tensors["weight"]
    if index.min() < 0 or index.max() >= len(weight):
        wrong = index.min() if index.min() < 0 else index.max()
        raise InputError(f"index {wrong} is outside of a table of {len(weight)} rows")
    return real(weight[index])
