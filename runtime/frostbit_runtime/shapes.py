"""Shape functions: from the operands of an operation to the kind and shape of its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from frostbit_runtime.faults import require
from frostbit_runtime.program import Shape, Spec, Value

#: At batch 1 no program may need more values than this at once (1 GiB of float32), nor may a kernel for its tables.
MAX_VALUES = 2**28
#: Groups of a convolution, and positions of a kernel times outputs along one axis: the kernels list them.
MAX_GROUPS = 2**16
MAX_WINDOWS = 2**26
MAX_DIMS = 8

Values = Sequence[Value]
Attrs = Mapping[str, Any]
Specs = Mapping[str, Spec]


def axis_of(axis: int, dims: int) -> int:
    """Return the axis counted from the front, checked."""
    require(-dims <= axis < dims, f"axis {axis} does not exist in {dims} dimensions")
    return axis % dims


def axes_of(axes: Sequence[int], dims: int) -> tuple[int, ...]:
    """Return distinct axes counted from the front, checked."""
    found = tuple(axis_of(axis, dims) for axis in axes)
    require(len(set(found)) == len(found), f"axes {list(axes)} name one axis twice")
    return found


def _spatial(x: Value, attrs: Attrs, *names: str) -> Shape:
    require(3 <= len(x.shape) <= 5, f"expects [N, C, 1 to 3 sizes], found {list(x.shape)}")
    sizes = x.shape[2:]
    for name in names:
        require(len(attrs[name]) == len(sizes), f"attribute {name!r} needs {len(sizes)} entries, found {attrs[name]}")
    return sizes


def _kernel(x: Value, weight: Spec, groups: int, out_first: bool) -> tuple[int, Shape]:
    """Return output channels and kernel sizes of a (transposed) convolution's weight, checked."""
    shape, channels = weight.shape, x.shape[1]
    require(len(shape) == len(x.shape), f"weight {list(shape)} does not fit input {list(x.shape)}")
    out, inner = (shape[0], shape[1] * groups) if out_first else (shape[1] * groups, shape[0])
    require(inner == channels, f"weight {list(shape)} with {groups} groups reads {inner} channels, found {channels}")
    require(channels % groups == 0 and out % groups == 0, f"{groups} groups do not divide the channels")
    require(groups <= MAX_GROUPS, f"{groups} groups are more than {MAX_GROUPS}")
    _prepared(weight, out, groups)
    return out, shape[2:]


def _prepared(weight: Spec, out: int, groups: int = 1) -> None:
    """Bound what the kernels make of a weight: the filters of each group are filled up to whole panels of 32."""
    filters = out // groups
    panels = weight.size // filters * (-(-filters // 32) * 32)
    if groups == out and weight.size == out * math.prod(weight.shape[2:]):
        panels = weight.size  # depthwise: groups lie side by side
    most = max(MAX_VALUES, 2 * weight.size)
    require(weight.size < 2**31 and panels <= most, f"weight {list(weight.shape)} is too large")


def _tables(sizes: Sequence[int], kernel: Shape, pads: Sequence[Sequence[int]], steps: Sequence[int], out: int) -> None:
    """Bound the tables that a convolution's kernel makes: which positions lie in the border, for each place near it."""
    near = [min(n, -(-a // s) + -(-b // s) + 1) for n, (a, b), s in zip(sizes, pads, steps, strict=True)]
    total = math.prod(near) * (math.prod(kernel) + out + 31)
    require(total <= MAX_VALUES, f"kernel {list(kernel)} with padding {list(map(list, pads))} is too large")
    windows = max(n * k for n, k in zip(sizes, kernel, strict=True))
    require(windows <= MAX_WINDOWS, f"kernel {list(kernel)} on {list(sizes)} outputs is too large")


def _bounded(channels: int, sizes: Sequence[int], what: str) -> None:
    """Refuse what an operation would hold for one sample beyond its operands, if it is too large to be meant."""
    total = channels * math.prod(sizes)
    require(total <= MAX_VALUES, f"{what} would hold {total} values, at most {MAX_VALUES} are allowed")


def conv(kind: str) -> Any:
    """Return the shape function of a convolution with results of ``kind``."""

    def shape(values: Values, attrs: Attrs, specs: Specs) -> Value:
        (x,) = values
        sizes = _spatial(x, attrs, "stride", "dilation", "padding")
        out, kernel = _kernel(x, specs["weight"], attrs["groups"], out_first=True)
        padded = [size + sum(pair) for size, pair in zip(sizes, attrs["padding"], strict=True)]
        _bounded(x.shape[1], padded, "the padded input")
        spans = [d * (k - 1) + 1 for d, k in zip(attrs["dilation"], kernel, strict=True)]
        require(all(p >= s for p, s in zip(padded, spans, strict=True)), f"kernel {spans} exceeds input {padded}")
        result = [(p - s) // step + 1 for p, s, step in zip(padded, spans, attrs["stride"], strict=True)]
        _tables(result, kernel, attrs["padding"], attrs["stride"], out)
        vector(specs, "bias", out)
        return Value(kind, (x.shape[0], out, *result))

    return shape


def conv_transpose(kind: str) -> Any:
    """Return the shape function of a transposed convolution with results of ``kind``."""

    def shape(values: Values, attrs: Attrs, specs: Specs) -> Value:
        (x,) = values
        sizes = _spatial(x, attrs, "stride", "dilation", "padding", "output_padding")
        out, kernel = _kernel(x, specs["weight"], attrs["groups"], out_first=False)
        full, result = [], []
        for index, (size, k) in enumerate(zip(sizes, kernel, strict=True)):
            stride, dilation, extra = (attrs[name][index] for name in ("stride", "dilation", "output_padding"))
            require(extra < max(stride, dilation), f"output_padding {extra} must be below stride or dilation")
            full.append((size - 1) * stride + dilation * (k - 1) + 1 + extra)
            result.append(full[-1] - 2 * attrs["padding"][index])
        require(min(result) >= 1, f"padding {list(attrs['padding'])} leaves nothing of {full}")
        # its phases are plain convolutions over the input, padded by up to the kernel on both sides
        reach = [(d * k, d * k) for k, d in zip(kernel, attrs["dilation"], strict=True)]
        _tables([n + a + b for n, (a, b) in zip(sizes, reach, strict=True)], kernel, reach, [1] * len(sizes), out)
        require(math.prod(attrs["stride"]) <= MAX_GROUPS, f"stride {list(attrs['stride'])} has too many phases")
        _bounded(out, full, "the output before its padding is cut")
        vector(specs, "bias", out)
        return Value(kind, (x.shape[0], out, *result))

    return shape


def dense(kind: str) -> Any:
    """Return the shape function of a dense layer ``[..., I] -> [..., O]``."""

    def shape(values: Values, attrs: Attrs, specs: Specs) -> Value:
        (x,), weight = values, specs["weight"]
        require(len(x.shape) >= 2, f"expects [N, ..., features], found {list(x.shape)}")
        fits = len(weight.shape) == 2 and weight.shape[1] == x.shape[-1]
        require(fits, f"weight {list(weight.shape)} does not fit input {list(x.shape)}")
        _prepared(weight, weight.shape[0])
        vector(specs, "bias", weight.shape[0])
        return Value(kind, (*x.shape[:-1], weight.shape[0]))

    return shape


def vector(specs: Specs, role: str, length: int) -> None:
    """Check that an optional role holds one entry per channel."""
    if role in specs:
        found = list(specs[role].shape)
        require(found == [length], f"{role} must have shape [{length}], found {found}")


def per_channel(kind: str, *roles: str) -> Any:
    """Return the shape function of an operation with vectors along ``axis``; the shape stays."""

    def shape(values: Values, attrs: Attrs, specs: Specs) -> Value:
        length = values[0].shape[axis_of(attrs["axis"], len(values[0].shape))]
        for role in roles:
            vector(specs, role, length)
        return Value(kind, values[0].shape)

    return shape


def same(kind: str = "real") -> Any:
    """Return the shape function of an elementwise operation."""

    def shape(values: Values, attrs: Attrs, specs: Specs) -> Value:
        if "axis" in attrs:
            axis_of(attrs["axis"], len(values[0].shape))
        return Value(kind, values[0].shape)

    return shape


def broadcast(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Two values, or one value and the role ``other``, by numpy's rules; indices go with indices alone."""
    require((len(values) == 2) != ("other" in specs), "needs two inputs, or one input and the role 'other'")
    left, right = values[0].shape, values[1].shape if len(values) == 2 else specs["other"].shape
    kinds = [value.kind for value in values] + ["real"] * len(specs)
    require("index" not in kinds or kinds == ["index", "index"], f"cannot combine {' and '.join(kinds)}")
    return Value("index" if "index" in kinds else "real", _broadcast(left, right))


def _broadcast(left: Shape, right: Shape) -> Shape:
    dims = max(len(left), len(right))
    pairs = list(zip((1,) * (dims - len(left)) + left, (1,) * (dims - len(right)) + right, strict=True))
    fits = all(a == b or 1 in (a, b) for a, b in pairs)
    require(fits, f"shapes {list(left)} and {list(right)} do not broadcast")
    return tuple(max(pair) for pair in pairs)


def matmul(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Matrices in the last two axes, the others broadcast."""
    left, right = values[0].shape, values[1].shape
    fits = len(left) >= 2 and len(right) >= 2 and left[-1] == right[-2]
    require(fits, f"shapes {list(left)} and {list(right)} do not multiply")
    return Value("real", (*_broadcast(left[:-2], right[:-2]), left[-2], right[-1]))


def layer_norm(values: Values, attrs: Attrs, specs: Specs) -> Value:
    """Over the last ``axes`` dimensions; weight and bias have exactly their shape."""
    shape, axes = values[0].shape, attrs["axes"]
    require(axes < len(shape), f"{axes} trailing dimensions leave no batch in {list(shape)}")
    for role in specs:
        found = specs[role].shape
        require(found == shape[-axes:], f"{role} must have shape {list(shape[-axes:])}, found {list(found)}")
    return Value("real", shape)


def pool(kind: str | None) -> Any:
    """Return the shape function of a pooling; ``None`` keeps the kind."""

    def shape(values: Values, attrs: Attrs, specs: Specs) -> Value:
        (x,) = values
        names = [name for name in ("kernel", "stride", "padding", "dilation") if name in attrs]
        sizes, result = _spatial(x, attrs, *names), []
        for index, size in enumerate(sizes):
            k, stride, pad = (attrs[name][index] for name in ("kernel", "stride", "padding"))
            dilation = attrs["dilation"][index] if "dilation" in attrs else 1
            require(pad <= k // 2, f"padding {pad} exceeds half of kernel {k}")
            # then every window holds a real position
            require(pad == 0 or size >= dilation, f"dilation {dilation} exceeds input {size}")
            result.append(pooled_size(size, k, stride, pad, dilation, attrs["ceil_mode"]))
            require(result[-1] >= 1, f"kernel {k} exceeds input {size} with padding {pad}")
        _bounded(x.shape[1], [pooled_span(attrs, i, n) for i, n in enumerate(result)], "the padded input")
        positions = math.prod(result) * math.prod(attrs["kernel"])
        require(positions <= MAX_VALUES, f"kernel {list(attrs['kernel'])} on {result} outputs is too large")
        return Value(kind or x.kind, (*x.shape[:2], *result))

    return shape


def pooled_size(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    """Number of windows along one axis; as in torch the last one starts inside the input or its front padding."""
    room = size + 2 * pad - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + pad else count


def pooled_span(attrs: Attrs, index: int, count: int) -> int:
    """Positions along one axis that ``count`` windows reach over, the padding included."""
    dilation = attrs["dilation"][index] if "dilation" in attrs else 1
    return int((count - 1) * attrs["stride"][index] + dilation * (attrs["kernel"][index] - 1) + 1)
