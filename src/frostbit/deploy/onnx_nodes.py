"""The operations of a program as ONNX nodes: one table.

Everything but indices is float32, exact sums included. A sign is ``Where(x >= 0, 1, −1)``, so that zero of either sign
gives +1. Binary weights are stored as int8 and cast, which onnxruntime does once when it loads the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from frostbit_runtime import Op, Stored

Attrs = Mapping[str, Any]
Tensors = Mapping[str, "Stored"]
Inputs = Sequence[str]


class Writer:
    """Collects the nodes and constants of a graph; everything but indices is float32.

    Args:
        shapes: of each value, for the operations that need a rank or a size.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.op: Op
        self._count = 0

    def new(self) -> str:
        """Return a name that is free."""
        self._count += 1
        return f"{self.op.output}/{self._count}"

    def constant(self, array: Any) -> str:
        """Store an array; return its name."""
        from onnx import numpy_helper

        name = self.new()
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def real(self, array: Any) -> str:
        """Store an array as float32; return its name."""
        return self.constant(np.asarray(array, np.float32))

    def indices(self, numbers: Sequence[int]) -> str:
        """Store int64 numbers; return their name."""
        return self.constant(np.array(numbers, np.int64))

    def node(
        self, kind: str, inputs: Sequence[str], output: str | None = None, domain: str = "", attrs: Attrs | None = None
    ) -> str:
        """Add a node with one output; return its name."""
        from onnx import helper

        output = output or self.new()
        name = f"{output}:{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, domain=domain, **(attrs or {})))
        return output

    def sign(self, x: str, output: str) -> str:
        """Return +1 where ``x >= 0``, else −1."""
        positive = self.node("GreaterOrEqual", [x, self.real(0.0)])
        return self.node("Where", [positive, self.real(1.0), self.real(-1.0)], output)

    def threshold(self, x: str, at: Any, flip: Any, output: str) -> str:
        """Return +1 where ``(x >= at) != flip``, else −1."""
        reached = self.node("GreaterOrEqual", [x, self.real(at)])
        if flip.any():
            reached = self.node("Xor", [reached, self.constant(flip)])
        return self.node("Where", [reached, self.real(1.0), self.real(-1.0)], output)

    def weight(self, tensor: Stored, permute: tuple[int, ...] | None = None) -> str:
        """Store a weight, axes permuted; return its name."""
        array = tensor.decode() if permute is None else tensor.decode().transpose(permute)
        if tensor.encoding != "bits":
            return self.real(array)
        return self.node("Cast", [self.constant(array.astype(np.int8))], attrs={"to": 1})  # to float32

    def along(self, tensor: Stored, axis: int, value: str) -> Any:
        """Return a vector shaped to broadcast along an axis of a value."""
        shape = [1] * len(self.shapes[value])
        shape[axis] = -1
        return tensor.decode().reshape(shape)


class FloatWriter(Writer):
    """Writes binary weights as floats, four bytes each: what tools that look for weights understand."""

    def weight(self, tensor: Stored, permute: tuple[int, ...] | None = None) -> str:
        """Store a weight, axes permuted; return its name."""
        return self.real(tensor.decode() if permute is None else tensor.decode().transpose(permute))


Handler = Callable[[Writer, Inputs, Attrs, Tensors, str], None]


def _conv(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    pairs, (source,) = attrs["padding"], x
    if attrs.get("pad_value", 0) != 0:
        pairs = [[0, 0], [0, 0], *pairs]
        ends = w.indices([pair[0] for pair in pairs] + [pair[1] for pair in pairs])
        source, pairs = w.node("Pad", [source, ends, w.real(float(attrs["pad_value"]))]), []
    geometry = {"strides": attrs["stride"], "dilations": attrs["dilation"], "group": attrs["groups"]}
    if pairs:
        geometry["pads"] = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    bias = [w.real(tensors["bias"].decode())] if "bias" in tensors else []
    w.node("Conv", [source, w.weight(tensors["weight"]), *bias], out, attrs=geometry)


def _conv_transpose(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    bias = [w.real(tensors["bias"].decode())] if "bias" in tensors else []
    w.node(
        "ConvTranspose",
        [*x, w.weight(tensors["weight"]), *bias],
        out,
        attrs={
            "strides": attrs["stride"],
            "dilations": attrs["dilation"],
            "group": attrs["groups"],
            "pads": list(attrs["padding"]) * 2,
            "output_padding": attrs["output_padding"],
        },
    )


def _dense(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    product = [*x, w.weight(tensors["weight"], (1, 0))]
    if "bias" in tensors:
        w.node("Add", [w.node("MatMul", product), w.real(tensors["bias"].decode())], out)
    else:
        w.node("MatMul", product, out)


def _affine(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    steps = [("Mul", "scale"), ("Add", "shift")]
    steps = [(kind, role) for kind, role in steps if role in tensors]
    value = x[0]
    for index, (kind, role) in enumerate(steps):
        vector = w.real(w.along(tensors[role], attrs["axis"], x[0]))
        value = w.node(kind, [value, vector], out if index == len(steps) - 1 else None)
    if not steps:
        w.node("Identity", x, out)


def _threshold(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    at, flip = (w.along(tensors[role], attrs["axis"], x[0]) for role in ("at", "flip"))
    w.threshold(x[0], at, flip > 0, out)


def _two(kind: str) -> Handler:
    def write(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
        w.node(kind, [*x, *(w.real(tensor.decode()) for tensor in tensors.values())], out)

    return write


def _one(kind: str, *names: str) -> Handler:
    def write(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
        w.node(kind, x, out, attrs={name: attrs[name] for name in names})

    return write


def _prelu(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("PRelu", [*x, w.real(w.along(tensors["slope"], attrs["axis"], x[0]))], out)


def _clip(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    ends = ["" if attrs[name] is None else w.real(attrs[name]) for name in ("min", "max")]
    w.node("Clip", [*x, *ends], out)


def _gelu(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    if attrs["approximate"] == "tanh":
        cube = w.node("Mul", [w.node("Mul", [*x, *x]), *x])
        inner = w.node("Add", [*x, w.node("Mul", [cube, w.real(0.044715)])])
        bent = w.node("Tanh", [w.node("Mul", [inner, w.real(math.sqrt(2 / math.pi))])])
    else:
        bent = w.node("Erf", [w.node("Mul", [*x, w.real(math.sqrt(0.5))])])
    w.node("Mul", [w.node("Mul", [*x, w.real(0.5)]), w.node("Add", [bent, w.real(1.0)])], out)


def _silu(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("Mul", [*x, w.node("Sigmoid", x)], out)


def _layer_norm(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    shape = w.shapes[x[0]][-attrs["axes"] :]
    scale = tensors["weight"].decode() if "weight" in tensors else np.ones(shape)
    bias = [w.real(tensors["bias"].decode())] if "bias" in tensors else []
    found = {"axis": -attrs["axes"], "epsilon": attrs["eps"]}
    w.node("LayerNormalization", [*x, w.real(scale), *bias], out, attrs=found)


def _pool(kind: str, *names: str) -> Handler:
    def write(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
        extra = {name.replace("dilation", "dilations"): attrs[name] for name in names}
        sizes = {"kernel_shape": attrs["kernel"], "strides": attrs["stride"], "pads": list(attrs["padding"]) * 2}
        w.node(kind, x, out, attrs={**sizes, "ceil_mode": int(attrs["ceil_mode"]), **extra})

    return write


def _mean(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("ReduceMean", x, out, attrs={"axes": attrs["axes"], "keepdims": int(attrs["keepdims"])})


def _reshape(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("Reshape", [*x, w.indices(attrs["shape"])], out)


def _with_axes(kind: str) -> Handler:
    def write(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
        w.node(kind, [*x, w.indices([attrs["axis"]])], out)

    return write


def _permute(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("Transpose", x, out, attrs={"perm": attrs["axes"]})


def _slice(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    stop = np.iinfo(np.int64).max if attrs["stop"] is None else attrs["stop"]
    ends = [[attrs["start"]], [stop], [attrs["axis"]], [attrs["step"]]]
    w.node("Slice", [*x, *map(w.indices, ends)], out)


def _pad(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    pairs = attrs["padding"]
    ends = w.indices([pair[0] for pair in pairs] + [pair[1] for pair in pairs])
    w.node("Pad", [*x, ends, w.real(attrs["value"])], out)


def _stored(w: Writer, tensor: Stored) -> str:
    array = tensor.decode()
    return w.constant(array.astype(np.int64)) if tensor.encoding in ("int16", "int32") else w.real(array)


def _expand_like(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    batch = w.node("Shape", x, attrs={"start": 0, "end": 1})
    sizes = w.node("Concat", [batch, w.indices(tensors["value"].shape[1:])], attrs={"axis": 0})
    w.node("Expand", [_stored(w, tensors["value"]), sizes], out)


def _crop_like(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    axis = attrs["reference_axis"] % len(w.shapes[x[0]])
    size = w.node("Shape", x, attrs={"start": axis, "end": axis + 1})
    value = _stored(w, tensors["value"])
    w.node("Slice", [value, w.indices([0]), size, w.indices([attrs["axis"]])], out)


def _embedding(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("Gather", [w.weight(tensors["weight"]), *x], out)


def _cumsum(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("CumSum", [*x, w.constant(np.int64(attrs["axis"]))], out)


def _differs(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    other = w.node("Not", [w.node("Equal", [*x, w.constant(np.int64(attrs["value"]))])])
    w.node("Cast", [other], out, attrs={"to": 7})  # to int64


def _sign(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.sign(x[0], out)


HANDLERS: dict[str, Handler] = {
    "sign": _sign,
    "threshold": _threshold,
    **dict.fromkeys(("binary_conv", "conv"), _conv),
    **dict.fromkeys(("binary_conv_transpose", "conv_transpose"), _conv_transpose),
    **dict.fromkeys(("binary_dense", "dense"), _dense),
    "affine": _affine,
    "add": _two("Add"),
    "sub": _two("Sub"),
    "mul": _two("Mul"),
    "matmul": _two("MatMul"),
    "relu": _one("Relu"),
    "prelu": _prelu,
    "clip": _clip,
    "gelu": _gelu,
    "silu": _silu,
    "sigmoid": _one("Sigmoid"),
    "tanh": _one("Tanh"),
    "softmax": _one("Softmax", "axis"),
    "layer_norm": _layer_norm,
    "max_pool": _pool("MaxPool", "dilation"),
    "avg_pool": _pool("AveragePool", "count_include_pad"),
    "mean": _mean,
    "reshape": _reshape,
    "permute": _permute,
    "expand_dims": _with_axes("Unsqueeze"),
    "squeeze": _with_axes("Squeeze"),
    "concat": _one("Concat", "axis"),
    "slice": _slice,
    "pad": _pad,
    "expand_like": _expand_like,
    "crop_like": _crop_like,
    "cumsum": _cumsum,
    "differs": _differs,
    "embedding": _embedding,
}
