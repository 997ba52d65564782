"""The table of operations: what each kind reads, its attributes, its stored tensors and its shape function.

Semantics are torch's, with logical shapes in torch's order; :mod:`frostbit_runtime.reference` computes each one. A new
operation is one entry here and one function there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from frostbit_runtime import reshaping, shapes
from frostbit_runtime.attributes import FLAG, PAIRS, POSITIVE, REAL, SHAPE, Attr, choice, integer, integers, optional
from frostbit_runtime.program import Value
from frostbit_runtime.shapes import Attrs, Specs, Values

#: kinds that count as real numbers: ±1 and exact sums are read as float32 wherever a real value is expected
NUMBER = frozenset({"real", "sign", "int"})
ANY = NUMBER | {"index"}
SIGN = frozenset({"sign"})
INT = frozenset({"int"})
INDEX = frozenset({"index"})

BITS = ("bits",)
REALS = ("float32", "float16", "int8", "bits")
SUMS = ("int16", "int32")


@dataclass(frozen=True)
class Role:
    """A stored tensor that an operation reads: the encodings it may have, and whether it may be left out."""

    encodings: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class OpType:
    """One kind of operation.

    Args:
        inputs: the kinds that each input may have.
        result: shape function; raises `ProgramError` where operands do not fit.
        attrs: all attributes; each must be given.
        roles: stored tensors.
        fewest: number of inputs that must be there, if fewer than ``inputs`` do.
        many: whether the last input may repeat.
    """

    inputs: tuple[frozenset[str], ...]
    result: Callable[[Values, Attrs, Specs], Value]
    attrs: dict[str, Attr] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)
    fewest: int | None = None
    many: bool = False


_STRIDES = {"stride": integers(1), "dilation": integers(1)}
_CONV = {**_STRIDES, "padding": PAIRS, "groups": integer(1)}
_TRANSPOSED = {**_STRIDES, "padding": integers(0), "output_padding": integers(0), "groups": integer(1)}
_POOL = {"kernel": integers(1), "stride": integers(1), "padding": integers(0), "ceil_mode": FLAG}
_AXIS = {"axis": integer()}
_AXES = {"axes": integers()}
_OPTIONAL = Role(REALS, optional=True)
_WEIGHT = {"weight": Role(BITS)}
_REAL_WEIGHT = {"weight": Role(REALS), "bias": _OPTIONAL}


def _elementwise(**attrs: Attr) -> OpType:
    return OpType((NUMBER,), shapes.same(), attrs)


def _binary(kinds: frozenset[str] = NUMBER) -> OpType:
    return OpType((kinds, kinds), shapes.broadcast, {}, {"other": _OPTIONAL}, fewest=1)


OPS: dict[str, OpType] = {
    "sign": OpType((NUMBER,), shapes.same("sign")),
    "binary_conv": OpType((SIGN,), shapes.conv("int"), {**_CONV, "pad_value": choice(0, 1, -1)}, _WEIGHT),
    "binary_conv_transpose": OpType((SIGN,), shapes.conv_transpose("int"), _TRANSPOSED, _WEIGHT),
    "binary_dense": OpType((SIGN,), shapes.dense("int"), {}, _WEIGHT),
    "conv": OpType((NUMBER,), shapes.conv("real"), _CONV, _REAL_WEIGHT),
    "conv_transpose": OpType((NUMBER,), shapes.conv_transpose("real"), _TRANSPOSED, _REAL_WEIGHT),
    "dense": OpType((NUMBER,), shapes.dense("real"), {}, _REAL_WEIGHT),
    "affine": OpType(
        (NUMBER,), shapes.per_channel("real", "scale", "shift"), _AXIS, {"scale": _OPTIONAL, "shift": _OPTIONAL}
    ),
    "threshold": OpType(
        (INT,), shapes.per_channel("sign", "at", "flip"), _AXIS, {"at": Role(SUMS), "flip": Role(BITS)}
    ),
    "add": _binary(ANY),
    "sub": _binary(),
    "mul": _binary(ANY),
    "relu": _elementwise(),
    "prelu": OpType((NUMBER,), shapes.per_channel("real", "slope"), _AXIS, {"slope": Role(REALS)}),
    "clip": _elementwise(min=optional(REAL), max=optional(REAL)),
    "gelu": _elementwise(approximate=choice("none", "tanh")),
    "silu": _elementwise(),
    "sigmoid": _elementwise(),
    "tanh": _elementwise(),
    "softmax": _elementwise(**_AXIS),
    "layer_norm": OpType(
        (NUMBER,), shapes.layer_norm, {"axes": integer(1), "eps": POSITIVE}, {"weight": _OPTIONAL, "bias": _OPTIONAL}
    ),
    "max_pool": OpType((NUMBER,), shapes.pool(None), {**_POOL, "dilation": integers(1)}),
    "avg_pool": OpType((NUMBER,), shapes.pool("real"), {**_POOL, "count_include_pad": FLAG}),
    "mean": OpType((NUMBER,), reshaping.mean, {**_AXES, "keepdims": FLAG}),
    "reshape": OpType((ANY,), reshaping.reshape, {"shape": SHAPE}),
    "permute": OpType((ANY,), reshaping.permute, _AXES),
    "expand_dims": OpType((ANY,), reshaping.expand_dims, _AXIS),
    "squeeze": OpType((ANY,), reshaping.squeeze, _AXIS),
    "concat": OpType((ANY,), reshaping.concat, _AXIS, many=True),
    "slice": OpType(
        (ANY,), reshaping.slice_, {**_AXIS, "start": integer(), "stop": optional(integer()), "step": integer(1)}
    ),
    "pad": OpType((NUMBER,), reshaping.pad, {"padding": PAIRS, "value": REAL}),
    "expand_like": OpType((ANY,), reshaping.expand_like, {}, {"value": Role((*REALS, *SUMS))}),
    "crop_like": OpType(
        (ANY,), reshaping.crop_like, {**_AXIS, "reference_axis": integer()}, {"value": Role((*REALS, *SUMS))}
    ),
    "matmul": OpType((NUMBER, NUMBER), shapes.matmul),
    "differs": OpType((INDEX,), shapes.same("index"), {"value": integer()}),
    "cumsum": OpType((INDEX,), shapes.same("index"), _AXIS),
    "embedding": OpType((INDEX,), reshaping.embedding, {}, {"weight": Role(REALS)}),
}
