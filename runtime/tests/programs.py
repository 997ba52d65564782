"""Programs for tests: a small builder, two hand-built networks, and random ones."""

from __future__ import annotations

import random

import numpy as np

from frostbit_runtime import Input, Op, Program, ProgramError, Stored, check
from frostbit_runtime.program import KINDS
from frostbit_runtime.reference import infer_call, run_op


class Builder:
    """Collects operations; every method returns the name of the value it adds."""

    def __init__(self, rng):
        self.rng, self.inputs, self.ops, self.tensors = rng, [], [], {}
        self.values = {}

    def input(self, shape, dtype="float32"):
        self.inputs.append(Input(f"x{len(self.inputs)}", tuple(shape), dtype))
        return self.inputs[-1].name

    def op(self, kind, *inputs, attrs=None, **tensors):
        name = f"v{len(self.ops)}"
        roles = {}
        for role, (array, encoding) in tensors.items():
            roles[role] = f"{name}.{role}"
            self.tensors[roles[role]] = Stored.encode(array, encoding)
        self.ops.append(Op(kind, f"op {name}", inputs, name, attrs or {}, roles))
        return name

    def try_op(self, kind, *inputs, attrs=None, **tensors):
        """As `op`, but an operation that does not fit is dropped and gives None."""
        before = dict(self.tensors)
        name = self.op(kind, *inputs, attrs=attrs, **tensors)
        try:
            self.values = check(self.program(name))
        except ProgramError:
            self.ops.pop()
            self.tensors = before
            return None
        return name

    def program(self, *outputs, info=None):
        return Program(tuple(self.inputs), tuple(self.ops), outputs, self.tensors, info or {})

    # weights

    def signs(self, *shape):
        return self.rng.integers(0, 2, shape).astype(np.int8) * 2 - 1, "bits"

    def reals(self, *shape, encoding="float32"):
        return self.rng.standard_normal(shape).astype(np.float32), encoding

    def norm(self, value, channels, axis=1):
        scale, shift = self.reals(channels), self.reals(channels)
        return self.op("affine", value, attrs={"axis": axis}, scale=scale, shift=shift)

    def threshold(self, value, channels, spread, axis=1):
        at = self.rng.integers(-spread, spread + 1, channels), "int16"
        return self.op("threshold", value, attrs={"axis": axis}, at=at, flip=self.signs(channels))


def all_values(program, inputs):
    """Return every value of a program, by the reference; kinds and shapes must be what `check` says."""
    inferred = infer_call(program, inputs)
    values = {item.name: array for item, array in zip(program.inputs, inputs, strict=True)}
    for op in program.ops:
        tensors = {role: program.tensors[name].decode() for role, name in op.tensors.items()}
        values[op.output] = run_op(op, [values[name] for name in op.inputs], tensors)
    for name, array in values.items():
        assert (KINDS[inferred[name].kind], inferred[name].shape) == (array.dtype, array.shape), name
    return values


def conv_attrs(dims=2, stride=1, pad=1, dilation=1, groups=1, **more):
    same = {"stride": [stride] * dims, "dilation": [dilation] * dims, "padding": [[pad, pad]] * dims}
    return {**same, "groups": groups, **more}


def pool_attrs(kernel=2, stride=2, pad=0, dims=2, **more):
    return {"kernel": [kernel] * dims, "stride": [stride] * dims, "padding": [pad] * dims, "ceil_mode": False, **more}


def binarynet(seed=0, width=32, size=14, classes=10):
    """A real first layer, binary convolutions with poolings, binary dense layers; thresholds throughout."""
    b = Builder(np.random.default_rng(seed))
    x = b.op("conv", b.input((None, 3, size, size)), attrs=conv_attrs(pad=0), weight=b.signs(width, 3, 3, 3))
    x = b.op("sign", b.norm(x, width))
    channels, size = width, size - 2
    for index, out in enumerate((width, 2 * width, 2 * width)):
        x = b.op("binary_conv", x, attrs=conv_attrs(pad_value=0), weight=b.signs(out, channels, 3, 3))
        if index % 2 == 0:
            x, size = b.op("max_pool", x, attrs=pool_attrs(dilation=[1, 1])), size // 2
        x, channels = b.threshold(x, out, 10), out
    x = b.op("reshape", x, attrs={"shape": [0, -1]})
    x = b.op("binary_dense", x, weight=b.signs(4 * width, channels * size * size))
    x = b.op("binary_dense", b.threshold(x, 4 * width, 10), weight=b.signs(classes, 4 * width))
    info = {"labels": [f"class {i}" for i in range(classes)], "producer": "test"}
    return b.program(b.norm(x, classes), info=info)


def residual_net(seed=0, width=8, size=17, classes=5):
    """Real stem and shortcuts, binary convolutions whose sums stay real: a small Bi-Real network."""
    b = Builder(np.random.default_rng(seed))
    x = b.op("conv", b.input((None, 3, size, size)), attrs=conv_attrs(stride=2, pad=3), weight=b.reals(width, 3, 7, 7))
    x = b.op("max_pool", b.op("relu", b.norm(x, width)), attrs=pool_attrs(3, 2, 1, dilation=[1, 1]))
    channels = width
    for out, stride in ((width, 1), (2 * width, 2), (2 * width, 1)):
        y = b.op("sign", x)
        attrs = conv_attrs(stride=stride, pad_value=0)
        y = b.norm(b.op("binary_conv", y, attrs=attrs, weight=b.signs(out, channels, 3, 3)), out)
        if stride == 2:
            x = b.op("avg_pool", x, attrs=pool_attrs(count_include_pad=True) | {"ceil_mode": True})
        if out != channels:
            x = b.norm(b.op("conv", x, attrs=conv_attrs(pad=0), weight=b.reals(out, channels, 1, 1)), out)
        x, channels = b.op("add", y, x), out
    x = b.op("mean", x, attrs={"axes": [2, 3], "keepdims": False})
    return b.program(b.op("dense", x, weight=b.reals(classes, channels), bias=b.reals(classes)))


def random_program(rng: random.Random, length: int) -> Program:
    """Return a program of about ``length`` random operations that fit; every value may be read again later."""
    b = Builder(np.random.default_rng(rng.randrange(2**32)))
    dims = rng.choice([0, 1, 2, 2, 2, 2, 3])
    channels = rng.choice([1, 2, 3, 8, 32, 32, 33, 64])
    sizes = [rng.randint(1, 9 if dims < 3 else 4) for _ in range(dims)]
    values = [b.input((None, channels, *sizes))]
    if rng.random() < 0.2:
        values.append(b.input((None, channels, *sizes)))
    b.values = {item.name: None for item in b.inputs}
    # a first operation, so that the inputs' kinds and shapes are known
    values.append(b.try_op("sign", values[0]))
    for _ in range(3 * length):
        if len(b.ops) >= length:
            break
        kind = rng.choice(CHOICES)
        x = values[-1] if rng.random() < 0.7 else rng.choice(values)
        steps = [kind]
        if kind.startswith("binary"):
            steps = [*(["flatten"] if kind == "binary_dense" and rng.random() < 0.5 else []), "sign", kind]
            steps = steps if rng.random() < 0.5 else [*steps[-2:-1], *steps[:-2], kind]
        if kind in LAYERS and rng.random() < 0.8:
            steps += rng.choice(TAILS)
        for step in steps:
            added = extend(b, rng, step, x, values)
            if added is not None:
                values.append(added)
                x = added
    outputs = [values[-1], *(rng.sample(values[1:], 1) if rng.random() < 0.3 else [])]
    return b.program(*dict.fromkeys(outputs))


# convolutions, thresholds and sums come up more often than the rest
CHOICES = [
    *["sign", "binary_conv", "binary_dense", "affine", "threshold", "add"] * 4,
    *["binary_conv_transpose", "conv", "dense", "max_pool", "relu", "flatten"] * 2,
    *["conv_transpose", "dense", "sub", "mul", "prelu", "clip", "gelu", "silu", "sigmoid", "tanh", "softmax"],
    *["layer_norm", "avg_pool", "mean", "reshape", "permute", "expand_dims", "squeeze", "concat", "slice", "pad"],
    *["expand_like", "crop_like", "matmul", "matmul"],
]


LAYERS = {"conv", "binary_conv", "dense", "binary_dense"}
# what a kernel may take along, and what looks alike but must not be
TAILS = [
    *[["affine"], ["affine", "add"], ["add", "relu"], ["affine", "add", "relu"], ["affine", "relu"], ["relu"]],
    *[["threshold"], ["max_pool", "threshold"], ["threshold", "max_pool"], ["max_pool", "affine"]] * 2,
]


def extend(b: Builder, rng: random.Random, kind: str, x: str, values: list[str]) -> str | None:
    """Add one random operation of a kind, or nothing if it does not fit."""
    shape, dims = b.values[x].shape, len(b.values[x].shape) - 2
    channels = shape[1] if len(shape) > 1 else 1
    axis = rng.randrange(-len(shape), len(shape))

    def ints(low: int, high: int) -> list[int]:
        return [rng.randint(low, high) for _ in range(dims)]

    def vector(axis: int) -> tuple[np.ndarray, str]:
        return b.reals(shape[axis], encoding=rng.choice(["float32", "float16", "int8"]))

    if "conv" in kind:
        groups = rng.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
        out, kernel = groups * rng.choice([1, 2, 3, 32 // groups or 1]), ints(1, 3)
        attrs = {"stride": ints(1, 3), "dilation": ints(1, 2), "groups": groups}
        binary = kind.startswith("binary")
        if kind.endswith("transpose"):
            attrs |= {"padding": ints(0, 2), "output_padding": ints(0, 1)}
            size = (channels, out // groups, *kernel)
        else:
            attrs |= {"padding": [[rng.randint(0, 2), rng.randint(0, 2)] for _ in range(dims)]}
            if rng.random() < 0.5:  # keep the shape, so that a residual sum fits
                out, kernel, attrs = channels, [3] * dims, attrs | conv_attrs(dims, groups=groups)
            size = (out, channels // groups, *kernel)
            if binary:
                attrs |= {"pad_value": rng.choice([0, 1, -1])}
        if binary:
            return b.try_op(kind, x, attrs=attrs, weight=b.signs(*size))
        more = {"bias": b.reals(out)} if rng.random() < 0.5 else {}
        weight = b.signs(*size) if rng.random() < 0.3 else b.reals(*size)
        return b.try_op(kind, x, attrs=attrs, weight=weight, **more)
    if kind in ("dense", "binary_dense"):
        size = (rng.choice([1, 5, 32, 40]), shape[-1])
        return b.try_op(kind, x, weight=b.signs(*size) if kind == "binary_dense" else b.reals(*size))
    if kind == "flatten":
        return b.try_op("reshape", x, attrs={"shape": rng.choice([[0, -1], [-1, int(np.prod(shape[1:]))]])})
    if kind == "affine":
        axis = rng.choice([1, 1, -1, axis]) if len(shape) > 1 else axis
        roles = {role: vector(axis) for role in ("scale", "shift") if rng.random() < 0.8}
        return b.try_op(kind, x, attrs={"axis": axis}, **roles)
    if kind == "threshold":
        axis = rng.choice([1, 1, -1]) if len(shape) > 1 else axis
        at = b.rng.integers(-5, 6, shape[axis]), "int16"
        return b.try_op(kind, x, attrs={"axis": axis}, at=at, flip=b.signs(shape[axis]))
    if kind in ("add", "sub", "mul"):
        if rng.random() < 0.3:
            other = [1 if rng.random() < 0.5 else n for n in shape[1:]]
            return b.try_op(kind, x, other=b.reals(*other[rng.randint(0, len(other)) :]))
        alike = [v for v in values if b.values[v].shape == shape and v != x] or [x]
        return b.try_op(kind, *rng.sample([x, rng.choice(alike if rng.random() < 0.8 else values)], 2))
    if kind == "matmul":
        dims = len(shape)
        turned = b.try_op("permute", x, attrs={"axes": [*range(dims - 2), dims - 1, dims - 2]}) if dims > 2 else None
        values += [] if turned is None else [turned]
        alike = [v for v in values if b.values[v].shape[-2:-1] == shape[-1:]]
        return b.try_op(kind, x, rng.choice(alike if rng.random() < 0.8 and alike else values))
    if kind == "concat":
        return b.try_op(kind, x, *rng.choices(values, k=rng.randint(0, 2)), attrs={"axis": axis})
    if kind in ("max_pool", "avg_pool"):
        kernel = ints(1, 3)
        attrs = {"kernel": kernel, "stride": ints(1, 3), "padding": [rng.randint(0, k // 2) for k in kernel]}
        attrs |= {"ceil_mode": rng.random() < 0.5}
        own = {"dilation": ints(1, 2)} if kind == "max_pool" else {"count_include_pad": rng.random() < 0.5}
        return b.try_op(kind, x, attrs=attrs | own)
    if kind == "prelu":
        return b.try_op(kind, x, attrs={"axis": axis}, slope=vector(axis))
    if kind == "layer_norm":
        axes = rng.randint(1, max(1, len(shape) - 1))
        roles = {"weight": b.reals(*shape[-axes:])} if rng.random() < 0.5 else {}
        return b.try_op(kind, x, attrs={"axes": axes, "eps": 1e-5}, **roles)
    if kind == "mean":
        spatial = list(range(2, len(shape))) or [1]
        axes = spatial if rng.random() < 0.6 else [rng.randrange(1, max(2, len(shape)))]
        return b.try_op(kind, x, attrs={"axes": axes, "keepdims": rng.random() < 0.5})
    if kind == "reshape":
        cut = rng.randint(1, len(shape))
        return b.try_op(kind, x, attrs={"shape": [*[0] * cut, -1] if cut < len(shape) else [0] * cut})
    if kind == "permute":
        rest = list(range(1, len(shape)))
        rng.shuffle(rest)
        back = [len(shape) - 1, *range(1, len(shape) - 1)]
        return b.try_op(
            kind, x, attrs={"axes": [0, *rng.choice([rest, [*range(2, len(shape)), 1], back])][: len(shape)]}
        )
    if kind == "slice":
        axis = rng.randrange(1, len(shape)) if len(shape) > 1 else 0
        attrs = {
            "axis": axis,
            "start": rng.randint(-2, 1),
            "stop": rng.choice([None, 3, -1]),
            "step": rng.randint(1, 2),
        }
        return b.try_op(kind, x, attrs=attrs)
    if kind == "pad":
        pads = [[0, 0], *([rng.randint(0, 2), rng.randint(0, 2)] for _ in shape[1:])]
        return b.try_op(kind, x, attrs={"padding": pads, "value": rng.choice([0, -1.5])})
    if kind == "expand_like":
        return b.try_op(kind, x, value=b.reals(1, *shape[1:]))
    if kind == "crop_like":
        at = rng.randrange(1, len(shape)) if len(shape) > 1 else 0
        value = [1, *shape[1:]]
        value[at] += 2
        return b.try_op(kind, x, attrs={"axis": at, "reference_axis": at}, value=b.reals(*value))
    attrs = {
        "clip": {"min": rng.choice([None, -1]), "max": rng.choice([None, 0.5])},
        "gelu": {"approximate": rng.choice(["none", "tanh"])},
    }.get(kind, {"axis": axis} if kind in ("softmax", "expand_dims", "squeeze") else {})
    return b.try_op(kind, x, attrs=attrs)


def token_net(seed=0, width=32, heads=2, vocabulary=20, classes=3):
    """A small transformer over any number of tokens, of which 1 is padding; its dense layers are binary."""
    b = Builder(np.random.default_rng(seed))
    tokens = b.input((None, None), "int64")
    x = b.op("embedding", tokens, weight=b.reals(vocabulary, width, encoding="int8"))
    place = b.op("crop_like", x, attrs={"axis": 1, "reference_axis": 1}, value=b.reals(1, 12, width))
    mask = b.op("differs", tokens, attrs={"value": 1})
    counted = b.op("mul", b.op("cumsum", mask, attrs={"axis": 1}), mask)
    one = b.op("expand_like", tokens, value=(np.ones((1, 1), np.int32), "int16"))
    counted = b.op("embedding", b.op("add", counted, one), weight=b.reals(14, width))
    x = b.op("add", b.op("add", x, place), counted)
    x = b.op("layer_norm", x, attrs={"axes": 1, "eps": 1e-5}, weight=b.reals(width))
    split, q, k, v = {"shape": [0, 0, heads, width // heads]}, *(_project(b, x, width) for _ in range(3))
    q, k, v = (b.op("permute", b.op("reshape", y, attrs=split), attrs={"axes": [0, 2, 1, 3]}) for y in (q, k, v))
    scores = b.op("matmul", q, b.op("permute", k, attrs={"axes": [0, 1, 3, 2]}))
    table = np.array([[-np.inf], [0.0]], np.float32), "float32"
    bias = b.op("squeeze", b.op("embedding", mask, weight=table), attrs={"axis": 2})
    for axis in (1, 2):
        bias = b.op("expand_dims", bias, attrs={"axis": axis})
    scores = b.op("add", scores, bias)
    y = b.op("matmul", b.op("softmax", scores, attrs={"axis": -1}), v)
    y = b.op("reshape", b.op("permute", y, attrs={"axes": [0, 2, 1, 3]}), attrs={"shape": [0, 0, width]})
    x = b.op("add", x, _project(b, y, width))
    x = b.op("gelu", x, attrs={"approximate": "none"})
    first = b.op("squeeze", b.op("slice", x, attrs={"axis": 1, "start": 0, "stop": 1, "step": 1}), attrs={"axis": 1})
    return b.program(b.op("dense", first, weight=b.reals(classes, width), bias=b.reals(classes)))


def _project(b, x, width):
    sums = b.op("binary_dense", b.op("sign", x), weight=b.signs(width, width))
    return b.norm(sums, width, axis=-1)
