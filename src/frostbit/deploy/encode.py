"""From a lowered network to a program of `frostbit_runtime`: how each tensor is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from frostbit.deploy.export import Lowered
from frostbit.deploy.values import is_binary
from frostbit.errors import UsageError
from frostbit.registry import check_choice

if TYPE_CHECKING:
    from frostbit_runtime import Program, Stored

Rest = Literal["float32", "float16"]
RealWeights = Literal["float32", "float16", "int8"]

_WITH_WEIGHT = ("conv", "conv_transpose", "dense", "embedding")
_LARGEST_HALF = 65504.0


def to_program(
    lowered: Lowered,
    info: Mapping[str, Any] | None = None,
    *,
    rest: Rest = "float32",
    real_weights: RealWeights | None = None,
) -> Program:
    """Return a lowered network as a program.

    Args:
        lowered: from `frostbit.deploy.export.lower`.
        info: JSON-able facts about it.
        rest: how everything is stored that is neither a binary weight nor a comparison; a tensor with entries too
            large for float16 stays float32.
        real_weights: how weights that are not binary are stored, those of the first and the last layer as a rule;
            ``None`` is as ``rest``. With int8, each output channel has a float32 scale of its own.

    Returns:
        The program; tensors are named after their module and role.

    Raises:
        UsageError: an unknown encoding.
    """
    try:
        from frostbit_runtime import Input, Op, Program
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a packed file needs the package {error.name!r}: pip install ./runtime, in Frostbit's repository"
        ) from None
    check_choice("encoding for rest", rest, ["float32", "float16"])
    weights = rest if real_weights is None else real_weights
    check_choice("encoding for real_weights", weights, ["float32", "float16", "int8"])
    stored: dict[str, Stored] = {}
    by_content: dict[tuple[Any, ...], str] = {}
    ops = []
    for node in lowered.graph.nodes:
        tensors = {}
        for role, tensor in node.tensors.items():
            weight = role == "weight" and (node.kind in _WITH_WEIGHT or node.kind.startswith("binary"))
            found = _encode(tensor, role, weights if weight else rest, weight)
            content = (found.encoding, found.shape, found.data.tobytes() if weight else id(found))
            if content not in by_content:  # tied weights are stored once
                name = unique = ".".join(filter(None, (node.path, role)))
                while unique in stored:
                    unique = f"{name}.{len(stored)}"
                stored[unique] = found
                by_content[content] = unique
            tensors[role] = by_content[content]
        name = node.path or node.kind
        ops.append(Op(node.kind, name, tuple(node.inputs), node.output, node.attrs, tensors))
    inputs = tuple(Input(*item) for item in lowered.inputs)
    return Program(inputs, tuple(ops), tuple(lowered.graph.outputs), stored, dict(info or {}))


def _encode(tensor: Tensor, role: str, encoding: str, weight: bool) -> Stored:
    from frostbit_runtime import Stored

    array = tensor.contiguous().numpy()
    if role == "flip" or (weight and is_binary(tensor)):
        return Stored.encode(array, "bits")
    if not tensor.is_floating_point():
        narrow = np.iinfo(np.int16)
        fits = array.size == 0 or (array.min() >= narrow.min and array.max() <= narrow.max)
        return Stored.encode(array, "int16" if fits else "int32")
    array = array.astype(np.float32)
    if encoding == "float16" and (tensor.dim() == 0 or (np.abs(array) > _LARGEST_HALF).any()):
        encoding = "float32"
    if encoding == "int8" and not np.isfinite(array).all():  # what a padding mask adds
        encoding = "float32"
    return Stored.encode(array, encoding)
