"""ONNX: a program as a graph that stock onnxruntime runs, in float32, with any batch size.

A sign is ``Where(x >= 0, 1, −1)``, so that zero of either sign gives +1. Binary weights are stored as int8 and cast,
which onnxruntime does once when it loads the file.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from frostbit.deploy.parity import Parity, compare
from frostbit.deploy.save import program_of
from frostbit.errors import RunError, UsageError

if TYPE_CHECKING:
    from frostbit_runtime import Op, Program, Stored

#: the first with layer normalization; runtimes since 2022 have it
OPSET = 17
#: its counterpart among file versions
IR_VERSION = 8

Attrs = Mapping[str, Any]
Tensors = Mapping[str, "Stored"]
Inputs = Sequence[str]


@dataclass(frozen=True)
class Exported:
    """What an export wrote; print it.

    Attributes:
        path: the file.
        file_bytes: its size.
        parity: how it compares with the hardened model on the example.
    """

    path: Path
    file_bytes: int
    parity: Parity

    def __str__(self) -> str:
        p = self.parity
        return (
            f"{self.path}: {self.file_bytes:,} bytes; {p.agreement:.1%} of {p.samples} samples agree with the hardened "
            f"model, {p.flips} of {p.signs:,} signs differ, each at a sum of 0 but for rounding"
        )


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

    def node(self, kind: str, inputs: Sequence[str], output: str | None = None, domain: str = "", **attrs: Any) -> str:
        """Add a node with one output; return its name."""
        from onnx import helper

        output = output or self.new()
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}:{kind}", domain=domain, **attrs))
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
        return self.node("Cast", [self.constant(array.astype(np.int8))], to=1)

    def along(self, tensor: Stored, axis: int, value: str) -> Any:
        """Return a vector shaped to broadcast along an axis of a value."""
        shape = [1] * len(self.shapes[value])
        shape[axis] = -1
        return tensor.decode().reshape(shape)


Handler = Callable[[Writer, Inputs, Attrs, Tensors, str], None]


def _conv(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    pairs, (source,) = attrs["padding"], x
    if attrs.get("pad_value", 0) != 0:
        pairs = [[0, 0], [0, 0], *pairs]
        ends = w.indices([pair[0] for pair in pairs] + [pair[1] for pair in pairs])
        source, pairs = w.node("Pad", [source, ends, w.real(float(attrs["pad_value"]))]), []
    pads = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    geometry = {"strides": attrs["stride"], "dilations": attrs["dilation"], "group": attrs["groups"]}
    bias = [w.real(tensors["bias"].decode())] if "bias" in tensors else []
    w.node("Conv", [source, w.weight(tensors["weight"]), *bias], out, **geometry, **({"pads": pads} if pads else {}))


def _conv_transpose(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    bias = [w.real(tensors["bias"].decode())] if "bias" in tensors else []
    w.node(
        "ConvTranspose",
        [*x, w.weight(tensors["weight"]), *bias],
        out,
        strides=attrs["stride"],
        dilations=attrs["dilation"],
        group=attrs["groups"],
        pads=list(attrs["padding"]) * 2,
        output_padding=attrs["output_padding"],
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
        w.node(kind, x, out, **{name: attrs[name] for name in names})

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
    w.node("LayerNormalization", [*x, w.real(scale), *bias], out, axis=-attrs["axes"], epsilon=attrs["eps"])


def _pool(kind: str, *names: str) -> Handler:
    def write(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
        extra = {name.replace("dilation", "dilations"): attrs[name] for name in names}
        pads = list(attrs["padding"]) * 2
        sizes = {"kernel_shape": attrs["kernel"], "strides": attrs["stride"], "pads": pads}
        w.node(kind, x, out, **sizes, ceil_mode=int(attrs["ceil_mode"]), **extra)

    return write


def _mean(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("ReduceMean", x, out, axes=attrs["axes"], keepdims=int(attrs["keepdims"]))


def _reshape(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("Reshape", [*x, w.indices(attrs["shape"])], out)


def _with_axes(kind: str) -> Handler:
    def write(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
        w.node(kind, [*x, w.indices([attrs["axis"]])], out)

    return write


def _permute(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("Transpose", x, out, perm=attrs["axes"])


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
    batch = w.node("Shape", x, start=0, end=1)
    sizes = w.node("Concat", [batch, w.indices(tensors["value"].shape[1:])], axis=0)
    w.node("Expand", [_stored(w, tensors["value"]), sizes], out)


def _crop_like(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    axis = attrs["reference_axis"] % len(w.shapes[x[0]])
    size = w.node("Shape", x, start=axis, end=axis + 1)
    value = _stored(w, tensors["value"])
    w.node("Slice", [value, w.indices([0]), size, w.indices([attrs["axis"]])], out)


def _embedding(w: Writer, x: Inputs, attrs: Attrs, tensors: Tensors, out: str) -> None:
    w.node("Gather", [w.weight(tensors["weight"]), *x], out, axis=0)


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
    "embedding": _embedding,
}


def with_sizes(program: Program, sizes: Sequence[Sequence[int]]) -> Program:
    """Return the program with inputs of fixed sizes."""
    inputs = [dataclasses.replace(item, shape=tuple(n)) for item, n in zip(program.inputs, sizes, strict=True)]
    return dataclasses.replace(program, inputs=tuple(inputs))


def to_model(program: Program, writer: type[Writer], opsets: Mapping[str, int], extra: Sequence[str] = ()) -> Any:
    """Return a program as an ONNX model.

    Args:
        program: with sizes open or fixed.
        writer: says how signs and weights are written.
        opsets: ``{domain: version}``.
        extra: further values to return, for a comparison.
    """
    from frostbit_runtime import check
    from onnx import TensorProto, helper

    # open sizes are those that follow an input's
    two, three = (
        check(with_sizes(program, [[n or size for n in item.shape] for item in program.inputs])) for size in (2, 3)
    )

    def info(name: str) -> Any:
        pairs = enumerate(zip(two[name].shape, three[name].shape, strict=True))
        sizes = [a if a == b else "N" if axis == 0 else f"{name}.{axis}" for axis, (a, b) in pairs]
        kind = TensorProto.INT64 if two[name].kind == "index" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, sizes)

    w = writer({name: value.shape for name, value in two.items()})
    for op in program.ops:
        w.op = op
        HANDLERS[op.kind](w, op.inputs, op.attrs, {role: program.tensors[n] for role, n in op.tensors.items()}, op.output)
    outputs = list(dict.fromkeys([*program.outputs, *extra]))
    inside = [op.output for op in program.ops if op.output not in outputs]
    graph = helper.make_graph(
        w.nodes, "frostbit", [info(i.name) for i in program.inputs], [info(n) for n in outputs], w.initializers,
        value_info=[info(name) for name in inside],
    )  # fmt: skip
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="frostbit")
    helper.set_model_props(model, {key: json.dumps(value) for key, value in program.info.items() if value is not None})
    return model


def export_onnx(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model as ONNX (opset 17, any batch size) for stock runtimes, checked by onnxruntime on the example.

    Args:
        model: a model, binary or float; hardened for the export, left as it is.
        example_input: a batch, see `frostbit.deploy.save`.
        path: the file.
        labels: see `frostbit.deploy.save`; in the file's metadata.
        preprocess: likewise.
        run: likewise.

    Returns:
        Size and agreement.

    Raises:
        UsageError: the model cannot be exported, or a package is missing.
        RunError: the file disagrees with the model; then none is left behind.
    """
    require("onnx", "onnxruntime")
    program, lowered = program_of(model, example_input, labels=labels, preprocess=preprocess, run=run)
    graph = lowered.graph
    exported = to_model(program, Writer, {"": OPSET})

    def compute(names: Sequence[str], arrays: Sequence[Any]) -> dict[str, Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        checked = to_model(program, Writer, {"": OPSET}, names).SerializeToString()
        session = onnxruntime.InferenceSession(checked, options, providers=["CPUExecutionProvider"])
        inputs = dict(zip((item.name for item in program.inputs), arrays, strict=True))
        return dict(zip(names, session.run(list(names), inputs), strict=True))

    parity = compare(model, example_input, graph.outputs, graph.sites, compute, "the ONNX graph")
    return write(exported, path, parity)


def require(*packages: str) -> None:
    """Raise one sentence if a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"this export needs the package {package!r}: pip install 'frostbit[export]'")


def write(model: Any, path: str | Path, parity: Parity) -> Exported:
    """Write a checked model; the file is there in full or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(model.SerializeToString())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size, parity)
