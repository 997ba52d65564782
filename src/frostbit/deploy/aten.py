"""The table: what becomes of each ATen operator that a packed network may contain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frostbit.deploy.lower import POINTWISE, Lowering, Unsupported, handles
from frostbit.deploy.values import Partial, Size, Value, is_binary

aten = torch.ops.aten
frostbit = torch.ops.frostbit


def constant(x: Any, what: str) -> Tensor:
    """Return ``x`` if it is a constant."""
    if not isinstance(x, Tensor):
        raise Unsupported(f"its {what} is computed at run time, expected a constant")
    return x


def numbers(value: Any, count: int) -> list[int]:
    """Return one number for each of ``count`` dimensions, as torch reads a number or a list of one."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


# --- binary layers and what they leave to torch


def site(low: Lowering, x: Any) -> Value:
    """Return the sign of an activation, and remember that torch takes it here."""
    y = low.sign(x)
    low.graph.sites.append(y.name)
    return y


@handles(frostbit.sign.default)
def _sign(low: Lowering, x: Any) -> Value:
    return site(low, x)


def _read_signs(low: Lowering, x: Any) -> Value:
    return x if isinstance(x, Value) and x.kind == "sign" else site(low, x)


@handles(frostbit.binary_linear.default)
def _binary_linear(low: Lowering, x: Any, bits: Tensor, shape: list[int]) -> Value:
    weight = frostbit.unpack(bits, shape, torch.float32)
    return low.emit("binary_dense", [_read_signs(low, x)], {}, {"weight": weight}, bound=shape[1])


@handles(frostbit.binary_conv.default)
def _binary_conv(low: Lowering, x: Any, bits: Tensor, shape: list[int], *geometry: Any) -> Value:
    stride, padding, dilation, groups, pad_value = geometry
    pairs = [list(padding[i : i + 2]) for i in range(0, len(padding), 2)]
    weight = frostbit.unpack(bits, shape, torch.float32)
    return convolve(low, _read_signs(low, x), weight, None, stride, pairs, dilation, groups, pad_value)


@handles(frostbit.binary_conv_transpose.default)
def _binary_conv_transpose(low: Lowering, x: Any, bits: Tensor, shape: list[int], *geometry: Any) -> Value:
    stride, padding, output_padding, dilation, groups = geometry
    weight = frostbit.unpack(bits, shape, torch.float32)
    return _transposed(low, _read_signs(low, x), weight, None, stride, padding, dilation, output_padding, groups)


def convolve(
    low: Lowering,
    x: Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pairs: list[list[int]],
    dilation: Sequence[int],
    groups: int,
    pad_value: int = 0,
) -> Value:
    """Return a convolution, binary if both operands are; a padding of signs in front of it becomes its own."""
    binary = is_binary(weight)
    padded = _unpadded(low, x) if binary and x.kind == "real" and not any(map(any, pairs)) else None
    if padded is not None:
        x, pairs, pad_value = padded
    attrs = {"stride": list(stride), "dilation": list(dilation), "groups": groups, "padding": pairs}
    if x.kind == "sign" and binary:
        attrs["pad_value"] = pad_value
        y = low.emit("binary_conv", [x], attrs, {"weight": weight}, bound=weight[0].numel())
        return y if bias is None else low.affine(y, 1, None, bias, lambda v: v + bias[:, None])
    return low.emit("conv", [x], attrs, {"weight": weight, "bias": bias})


def _unpadded(low: Lowering, x: Value) -> tuple[Value, list[list[int]], int] | None:
    """Return signs, how they were padded and with what, if ``x`` is a `pad` of signs that a convolution can do."""
    node = next((node for node in reversed(low.graph.nodes) if node.output == x.name), None)
    if node is None or node.kind != "pad" or node.attrs["value"] not in (0, 1, -1):
        return None
    source, pairs = low.graph.values[node.inputs[0]], node.attrs["padding"]
    if source.kind != "sign" or any(map(any, pairs[:2])):
        return None
    return source, pairs[2:], int(node.attrs["value"])


@handles(aten.convolution.default)
def _convolution(low: Lowering, x: Any, weight: Any, bias: Any, *geometry: Any) -> Value:
    stride, padding, dilation, transposed, output_padding, groups = geometry
    weight, dims = constant(weight, "weight"), len(stride)
    x, bias = low.value(x), None if bias is None else constant(bias, "bias")
    padding, dilation = numbers(padding, dims), numbers(dilation, dims)
    if transposed:
        return _transposed(low, x, weight, bias, stride, padding, dilation, output_padding, groups)
    return convolve(low, x, weight, bias, stride, [[p, p] for p in padding], dilation, groups)


def _transposed(
    low: Lowering,
    x: Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    lists = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
    attrs = {**{name: list(values) for name, values in lists.items()}, "groups": groups}
    if x.kind == "sign" and is_binary(weight):
        bound = weight[:, 0].numel() // groups
        y = low.emit("binary_conv_transpose", [x], attrs, {"weight": weight}, bound=bound)
        return y if bias is None else low.affine(y, 1, None, bias, lambda v: v + bias[:, None])
    return low.emit("conv_transpose", [x], attrs, {"weight": weight, "bias": bias})


@handles(aten.linear.default)
def _linear(low: Lowering, x: Any, weight: Any, bias: Any = None) -> Value:
    x = low.value(x)
    if isinstance(weight, Value):
        y = _matmul(low, x, _permute(low, weight, [1, 0]))
        return y if bias is None else _add(low, y, bias)
    weight = constant(weight, "weight")
    if x.kind == "sign" and is_binary(weight):
        y = low.emit("binary_dense", [x], {}, {"weight": weight}, bound=weight.shape[1])
        return y if bias is None else low.affine(y, y.rank - 1, None, bias, lambda v: v + bias[:, None])
    return low.emit("dense", [x], {}, {"weight": weight, "bias": bias})


@handles(aten.mm.default, aten.bmm.default, aten.matmul.default)
def _matmul(low: Lowering, x: Any, y: Any) -> Value:
    if isinstance(y, Tensor) and y.dim() == 2:
        return _linear(low, x, y.t())
    if isinstance(x, Tensor) and x.dim() == 2 and isinstance(y, Value) and y.rank >= 2:
        swap = [*range(y.rank - 2), y.rank - 1, y.rank - 2]
        turned = _permute(low, y, swap)
        product = low.emit("dense", [turned], {}, {"weight": x}, shape=(*turned.shape[:-1], x.shape[0]))
        return _permute(low, product, swap)
    shape = None if isinstance(x, Tensor) or isinstance(y, Tensor) else product_shape(x, y)
    return low.emit("matmul", [x, y], shape=shape)


def product_shape(x: Value, y: Value) -> list[Size]:
    """Return the shape of a product of matrices whose leading dimensions are equal or 1."""
    pairs = zip(x.shape[:-2][::-1], y.shape[:-2][::-1], strict=False)
    longer = max(x.shape[:-2], y.shape[:-2], key=len)
    lead = [b if a == 1 else a for a, b in pairs][::-1]
    return [*longer[: len(longer) - len(lead)], *lead, x.shape[-2], y.shape[-1]]


@handles(aten.addmm.default, aten.baddbmm.default)
def _addmm(low: Lowering, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Value:
    product = _matmul(low, x, y)
    product = product if alpha == 1 else _mul(low, product, alpha)
    if beta == 0:
        return product
    return _add(low, product, bias if beta == 1 else _mul(low, bias, beta))


# --- norms


@handles(aten._native_batch_norm_legit_no_training.default)
def _batch_norm_node(low: Lowering, x: Any, *args: Any) -> list[Any]:
    weight, bias, mean, var, _, eps = args
    return [batch_norm(low, x, weight, bias, mean, var, eps), None, None]


def batch_norm(low: Lowering, x: Any, weight: Any, bias: Any, mean: Tensor, var: Tensor, eps: float) -> Value:
    """Return a batch norm as the affine map it is, with torch's own scale and the shift rounded once."""
    if not all(bool(t.isfinite().all()) for t in (mean, var, weight, bias) if t is not None):
        raise Unsupported("its parameters or running statistics are not finite")
    scale = 1 / torch.sqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean.double() * scale.double()
    shift = shift if bias is None else shift + bias

    def exact(v: Tensor) -> Tensor:
        return F.batch_norm(v, mean, var, weight, bias, False, 0.0, eps)

    return low.affine(x, 1, scale, shift, exact)


@handles(aten.layer_norm.default)
def _layer_norm(low: Lowering, x: Any, shape: Any, weight: Any = None, bias: Any = None, *rest: Any) -> Value:
    eps = rest[0] if rest else 1e-5
    return low.emit("layer_norm", [x], {"axes": len(shape), "eps": eps}, {"weight": weight, "bias": bias})


@handles(aten.native_layer_norm.default)
def _native_layer_norm(low: Lowering, x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> list[Any]:
    attrs, roles = {"axes": len(shape), "eps": eps}, {"weight": weight, "bias": bias}
    return [low.emit("layer_norm", [x], attrs, roles, shape=low.value(x).shape), None, None]


@handles(aten.group_norm.default)
def _group_norm(low: Lowering, x: Any, groups: int, weight: Any = None, bias: Any = None, *rest: Any) -> Value:
    eps, value = rest[0] if rest else 1e-5, low.value(x)
    rows = reshape(low, value, (value.shape[0], groups, value.shape[1] // groups * _product(value.shape[2:])))
    rows = low.emit("layer_norm", [rows], {"axes": 1, "eps": eps}, shape=rows.shape)
    y = reshape(low, rows, value.shape)
    return y if weight is None and bias is None else low.affine(y, 1, weight, bias)


def _product(sizes: Sequence[Size]) -> Size:
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


# --- arithmetic


def _channel_axis(x: Value, c: Tensor) -> int | None:
    """Return the one axis of ``x`` along which ``c`` has entries, −1 for a single number, ``None`` for neither."""
    if c.numel() == 1 and c.dim() <= x.rank:
        return -1
    axes = [axis - c.dim() + x.rank for axis, size in enumerate(c.shape) if size != 1]
    fits = c.dim() <= x.rank and len(axes) == 1 and axes[0] > 0 and x.shape[axes[0]] == c.numel()
    return axes[0] if fits else None


def _with_constant(low: Lowering, operation: str, x: Any, c: Any, exact: Any) -> Value:
    """Return ``x`` add or mul a constant: an affine map for a number or one number per channel."""
    x = low.value(x)
    if isinstance(c, Partial):
        # what is only repeated broadcasts by itself
        shape = tuple(1 if n == 1 else size for n, size in zip(c.full.shape, c.shape, strict=True))
        if shape != tuple(c.full.shape):
            return low.emit(operation, [x, Partial(c.full, shape)])
        c = c.full
    c = c.double() if isinstance(c, Tensor) else torch.tensor(float(c), dtype=torch.float64)
    axis = _channel_axis(x, c)
    if axis is None:
        return low.emit(operation, [x], {}, {"other": c})
    scale, shift = (c, None) if operation == "mul" else (None, c)

    def per_channel(v: Tensor) -> Tensor:
        y: Tensor = exact(v, c.float().reshape(-1, 1) if axis >= 0 else c.float().reshape(()))
        return y

    return low.affine(x, None if axis < 0 else axis, scale, shift, per_channel)


def _is_value(x: Any) -> bool:
    return isinstance(x, Value)


@handles(aten.add.Tensor, aten.add.Scalar)
def _add(low: Lowering, x: Any, y: Any, alpha: float = 1) -> Value:
    y = y if alpha == 1 else _mul(low, y, alpha) if _is_value(y) else y * alpha
    if _is_value(x) and _is_value(y):
        return low.emit("add", [x, y])
    x, y = (x, y) if _is_value(x) else (y, x)
    return _with_constant(low, "add", x, y, torch.add)


@handles(aten.sub.Tensor, aten.sub.Scalar)
def _sub(low: Lowering, x: Any, y: Any, alpha: float = 1) -> Value:
    y = y if alpha == 1 else _mul(low, y, alpha) if _is_value(y) else y * alpha
    if _is_value(x) and _is_value(y):
        return low.emit("sub", [x, y])
    if _is_value(x):
        return _with_constant(low, "add", x, _negative(y), torch.add)
    return _with_constant(low, "add", _neg(low, y), x, torch.add)


def _negative(c: Any) -> Any:
    return Partial(-c.full, c.shape) if isinstance(c, Partial) else -c


@handles(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(low: Lowering, x: Any, y: Any, alpha: float = 1) -> Value:
    return _sub(low, y, x, alpha)


@handles(aten.mul.Tensor, aten.mul.Scalar)
def _mul(low: Lowering, x: Any, y: Any) -> Value:
    if _is_value(x) and _is_value(y):
        return low.emit("mul", [x, y])
    x, y = (x, y) if _is_value(x) else (y, x)
    return _with_constant(low, "mul", x, y, torch.mul)


@handles(aten.div.Tensor, aten.div.Scalar)
def _div(low: Lowering, x: Any, y: Any) -> Value:
    if isinstance(y, (Value, Partial)):
        raise Unsupported("it divides by something computed at run time")
    c = y.double() if isinstance(y, Tensor) else torch.tensor(float(y), dtype=torch.float64)
    return _with_constant(low, "mul", x, 1 / c, lambda v, inverse: v / (1 / inverse.double()).float())


@handles(aten.neg.default)
def _neg(low: Lowering, x: Any) -> Value:
    return _mul(low, x, -1)


@handles(aten.pow.Tensor_Scalar)
def _pow(low: Lowering, x: Any, exponent: float) -> Value:
    if exponent != 2:
        raise Unsupported(f"its exponent is {exponent}, expected 2")
    return low.emit("mul", [x, x])


# --- activation functions


@handles(aten.relu.default)
def _relu(low: Lowering, x: Any) -> Value:
    return low.elementwise("relu", x)


@handles(aten.hardtanh.default)
def _hardtanh(low: Lowering, x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Value:
    return low.elementwise("clip", x, min=_finite(min_val), max=_finite(max_val))


@handles(aten.clamp.default)
def _clamp(low: Lowering, x: Any, min: Any = None, max: Any = None) -> Value:
    return low.elementwise("clip", x, min=_finite(min), max=_finite(max))


def _finite(end: Any) -> float | None:
    return None if end is None or abs(end) == float("inf") else float(end)


@handles(aten.silu.default)
def _silu(low: Lowering, x: Any) -> Value:
    return low.elementwise("silu", x)


@handles(aten.sigmoid.default)
def _sigmoid(low: Lowering, x: Any) -> Value:
    return low.elementwise("sigmoid", x)


@handles(aten.tanh.default)
def _tanh(low: Lowering, x: Any) -> Value:
    return low.elementwise("tanh", x)


@handles(aten.gelu.default)
def _gelu(low: Lowering, x: Any, approximate: str = "none") -> Value:
    return low.elementwise("gelu", x, approximate=approximate)


@handles(aten.leaky_relu.default)
def _leaky_relu(low: Lowering, x: Any, slope: float = 0.01) -> Value:
    return _prelu(low, x, torch.tensor([slope]))


@handles(aten.prelu.default)
def _prelu(low: Lowering, x: Any, slope: Any) -> Value:
    value, slope = low.value(x), constant(slope, "slope").flatten()
    channels = value.shape[1]
    if not isinstance(channels, int):
        raise Unsupported("its channels are not known before it runs")
    slope = slope.expand(channels)
    return low.emit("prelu", [value], {"axis": 1}, {"slope": slope}, exact=lambda v: F.prelu(v, slope))


@handles(aten.softmax.int, aten._softmax.default)
def _softmax(low: Lowering, x: Any, axis: int, *_: Any, **__: Any) -> Value:
    return low.emit("softmax", [x], {"axis": axis % low.value(x).rank})


@handles(aten.scaled_dot_product_attention.default)
def _attention(
    low: Lowering,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    q, k, v = low.value(query), low.value(key), low.value(value)
    if dropout or enable_gqa:
        raise Unsupported("dropout and grouped queries have no counterpart")
    turned = _permute(low, k, [*range(k.rank - 2), k.rank - 1, k.rank - 2])
    scores = low.emit("matmul", [q, turned], shape=product_shape(q, turned))
    scores = low.affine(scores, None, torch.tensor(q.shape[-1] ** -0.5 if scale is None else scale), None)
    if is_causal:
        if not all(isinstance(size, int) for size in scores.shape[-2:]):
            raise Unsupported("a causal mask needs a fixed sequence length")
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = _masked(low, scores, mask)
    weights = low.emit("softmax", [scores], {"axis": scores.rank - 1}, shape=scores.shape)
    return low.emit("matmul", [weights, v])


def _masked(low: Lowering, scores: Value, mask: Any) -> Value:
    """Return the scores with −inf added where a boolean mask is false, or with an additive mask added."""
    if isinstance(mask, Value) and mask.kind == "index":
        mask = _look_up(low, mask, float("-inf"), 0.0)
    full = mask.full if isinstance(mask, Partial) else mask
    if isinstance(full, Tensor) and full.dtype == torch.bool:
        if bool(full.all()):
            return scores
        full = torch.zeros(full.shape).masked_fill(~full, float("-inf"))
        mask = Partial(full, mask.shape) if isinstance(mask, Partial) else full
    inputs, roles = ([scores], {"other": mask}) if isinstance(mask, Tensor) else ([scores, mask], {})
    return low.emit("add", inputs, {}, roles, shape=scores.shape)


def _look_up(low: Lowering, mask: Value, no: float, yes: float) -> Value:
    """Return ``yes`` where a mask of zeros and ones is 1, else ``no``; the runtime refuses any other number."""
    table = torch.tensor([[no], [yes]])
    column = low.emit("embedding", [mask], {}, {"weight": table}, shape=(*mask.shape, 1))
    return low.emit("squeeze", [column], {"axis": mask.rank}, shape=mask.shape)


@handles(aten.index.Tensor)
def _index(low: Lowering, x: Any, indices: Sequence[Any]) -> Value:
    """Handle ``mask[all of the batch][..., all positions]``, as transformers spread a padding mask."""
    value = low.value(x)
    whole = len(indices) == value.rank == 2 and all(isinstance(i, Partial) for i in indices)
    for axis, index in enumerate(indices if whole else ()):
        counts = torch.equal(index.full.flatten(), torch.arange(index.full.numel()))
        others = [size for size in index.shape if size != 1]
        whole = whole and counts and others == [value.shape[axis]]
    if not whole:
        raise Unsupported("entries are picked one by one")
    for axis in range(1, len(low.sizes(low.node.meta["val"])) - 1):
        value = _unsqueeze(low, value, axis)
    return value


@handles(aten.bitwise_and.Tensor, aten.logical_and.default)
def _and(low: Lowering, x: Any, y: Any) -> Any:
    value, other = (x, y) if _is_value(x) else (y, x)
    full = other.full if isinstance(other, Partial) else other
    if not isinstance(full, Tensor) or not bool(full.all()):
        raise Unsupported("two masks are combined at run time")
    return value


@handles(aten.masked_fill.Scalar)
def _masked_fill(low: Lowering, x: Any, mask: Any, value: float) -> Value:
    if value > -1e4 or not isinstance(mask, Tensor):
        raise Unsupported("only a constant mask that fills with a very low number can be added instead")
    return low.emit("add", [x], {}, {"other": torch.zeros(mask.shape).masked_fill(mask, value)})


# --- pooling


def _pooling(low: Lowering, x: Any, kernel: Any, stride: Any, padding: Any) -> tuple[Value, dict[str, list[int]]]:
    value = low.value(x)
    dims = value.rank - 2
    if dims < 1 or len(numbers(kernel, dims)) != dims:
        raise Unsupported(f"its input has {value.rank} dimensions, expected a batch of images or signals")
    kernel = numbers(kernel, dims)
    stride = numbers(stride, dims) if stride else kernel
    return value, {"kernel": kernel, "stride": stride, "padding": numbers(padding, dims)}


@handles(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def _max_pool(
    low: Lowering, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Value:
    value, attrs = _pooling(low, x, kernel, stride, padding)
    rest = {"dilation": numbers(dilation, value.rank - 2), "ceil_mode": ceil_mode}
    return low.emit("max_pool", [value], {**attrs, **rest})


@handles(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def _avg_pool(
    low: Lowering,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Value:
    if divisor is not None:
        raise Unsupported("divisor_override has no counterpart")
    value, attrs = _pooling(low, x, kernel, stride, padding)
    return low.emit("avg_pool", [value], {**attrs, "ceil_mode": ceil_mode, "count_include_pad": count_include_pad})


@handles(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
def _adaptive_avg_pool(low: Lowering, x: Any, wanted: Any) -> Value:
    value = low.value(x)
    wanted = numbers(wanted, value.rank - 2)
    axes = list(range(2, value.rank))
    if all(size == 1 for size in wanted):
        return low.emit("mean", [value], {"axes": axes, "keepdims": True})
    sizes = value.shape[2:]
    if not all(isinstance(n, int) and n % size == 0 for n, size in zip(sizes, wanted, strict=True)):
        raise Unsupported(f"sizes {list(sizes)} are no multiples of {wanted}")
    kernel = [n // size for n, size in zip(sizes, wanted, strict=True)]
    return _avg_pool(low, value, kernel)


@handles(aten.mean.dim)
def _mean(low: Lowering, x: Any, axes: Any, keepdim: bool = False, dtype: Any = None) -> Value:
    value = low.value(x)
    axes = sorted(axis % value.rank for axis in (axes or range(value.rank)))
    if 0 in axes:
        raise Unsupported("it averages over the batch")
    return low.emit("mean", [value], {"axes": axes, "keepdims": keepdim})


@handles(aten.sum.dim_IntList)
def _sum(low: Lowering, x: Any, axes: Any, keepdim: bool = False, dtype: Any = None) -> Value:
    value = low.value(x)
    count = _product([value.shape[axis] for axis in (axes or range(value.rank))])
    if not isinstance(count, int):
        raise Unsupported("it adds up a dimension of open size")
    return low.affine(_mean(low, value, axes, keepdim), None, torch.tensor(float(count)), None)


# --- moving values


@handles(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints)
@handles(aten.unflatten.int, aten.view_copy.default)
def _view(low: Lowering, x: Any, *_: Any) -> Value:
    return reshape(low, low.value(x), low.sizes(low.node.meta["val"]))


def reshape(low: Lowering, x: Value, shape: Sequence[Size]) -> Value:
    """Return the entries of ``x`` in row-major order in another shape with at most one unknown size."""
    if tuple(shape) == x.shape:
        return x
    wanted = [
        size if isinstance(size, int) else 0 if i < x.rank and x.shape[i] == size else -1
        for i, size in enumerate(shape)
    ]
    if wanted.count(-1) > 1:
        raise Unsupported(f"it turns {list(x.shape)} into {list(shape)}, with more than one size open")
    return low.emit("reshape", [x], {"shape": wanted}, shape=shape)


@handles(aten.permute.default)
def _permute(low: Lowering, x: Any, axes: Sequence[int]) -> Value:
    value = low.value(x)
    axes = [axis % value.rank for axis in axes]
    if axes == sorted(axes):
        return value
    return low.emit("permute", [value], {"axes": axes}, shape=[value.shape[axis] for axis in axes])


@handles(aten.transpose.int)
def _transpose(low: Lowering, x: Any, first: int, second: int) -> Value:
    value = low.value(x)
    axes = list(range(value.rank))
    axes[first], axes[second] = axes[second], axes[first]
    return _permute(low, value, axes)


@handles(aten.t.default)
def _t(low: Lowering, x: Any) -> Value:
    return _permute(low, x, list(range(low.value(x).rank))[::-1])


@handles(aten.movedim.intlist, aten.movedim.int)
def _movedim(low: Lowering, x: Any, source: Any, target: Any) -> Value:
    order = torch.arange(low.value(x).rank)
    places = torch.empty([1] * len(order)).expand(*range(2, 2 + len(order))).movedim(source, target).shape
    return _permute(low, x, [size - 2 for size in places])


@handles(aten.unsqueeze.default)
def _unsqueeze(low: Lowering, x: Any, axis: int) -> Value:
    value = low.value(x)
    axis %= value.rank + 1
    shape = (*value.shape[:axis], 1, *value.shape[axis:])
    return low.emit("expand_dims", [value], {"axis": axis}, shape=shape)


@handles(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def _squeeze(low: Lowering, x: Any, axes: Any = None) -> Value:
    value = low.value(x)
    chosen = range(value.rank) if axes is None else [axis % value.rank for axis in numbers(axes, 1)]
    for axis in sorted(chosen, reverse=True):
        if value.shape[axis] == 1:
            shape = (*value.shape[:axis], *value.shape[axis + 1 :])
            value = low.emit("squeeze", [value], {"axis": axis}, shape=shape)
    return value


@handles(aten.slice.Tensor)
def _slice(low: Lowering, x: Any, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    sizes = low.sizes(low.node.meta["val"])
    if isinstance(x, (Tensor, Partial)):
        full = x if isinstance(x, Tensor) else x.full
        if start not in (None, 0) or step != 1:
            raise Unsupported("a constant cut at sizes known at run time must be cut from its start")
        return Partial(full, sizes)
    axis %= x.rank
    size = x.shape[axis]
    if sizes[axis] == size and step == 1:
        return x
    start = _bound(start or 0, size)
    stop = None if stop is None or stop == size or (isinstance(stop, int) and stop > 2**31) else _bound(stop, size)
    if axis == 0:
        raise Unsupported("it takes a part of the batch")
    return low.emit("slice", [x], {"axis": axis, "start": start, "stop": stop, "step": step}, shape=sizes)


def _bound(bound: Size, size: Size) -> int:
    """Return a bound as a number, counted from the end if it moves with the size."""
    from_end = bound if isinstance(bound, int) else bound - size
    if not isinstance(from_end, int) and not getattr(from_end, "is_Integer", False):
        raise Unsupported(f"it cuts {size} entries at {bound}")
    if isinstance(bound, int) or int(from_end) < 0:
        return int(from_end)
    raise Unsupported(f"it cuts {size} entries at {bound}")


@handles(aten.select.int)
def _select(low: Lowering, x: Any, axis: int, index: int) -> Value:
    value = low.value(x)
    axis %= value.rank
    if axis == 0 and not isinstance(value.shape[0], int):
        raise Unsupported("it picks one entry of the batch")
    stop = None if index == -1 else index + 1
    shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
    part = low.emit("slice", [value], {"axis": axis, "start": index, "stop": stop, "step": 1}, shape=shape)
    return low.emit("squeeze", [part], {"axis": axis})


@handles(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes)
def _split(low: Lowering, x: Any, _: Any, axis: int = 0) -> list[Value]:
    value, start, parts = low.value(x), 0, []
    axis %= value.rank
    for tensor in low.node.meta["val"]:
        shape = low.sizes(tensor)
        if axis == 0 or not isinstance(shape[axis], int):
            raise Unsupported("it splits along a dimension of open size")
        attrs = {"axis": axis, "start": start, "stop": start + shape[axis], "step": 1}
        parts.append(low.emit("slice", [value], attrs, shape=shape))
        start += shape[axis]
    return parts


@handles(aten.unbind.int)
def _unbind(low: Lowering, x: Any, axis: int = 0) -> list[Value]:
    value = low.value(x)
    axis, parts = axis % value.rank, []
    for index, tensor in enumerate(low.node.meta["val"]):
        shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
        attrs = {"axis": axis, "start": index, "stop": index + 1, "step": 1}
        part = low.emit("slice", [value], attrs, shape=shape)
        parts.append(low.emit("squeeze", [part], {"axis": axis}, shape=low.sizes(tensor)))
    return parts


@handles(aten.cat.default)
def _cat(low: Lowering, parts: Sequence[Any], axis: int = 0) -> Value:
    values = [low.value(part) for part in parts]
    if len({value.kind for value in values}) > 1:
        values = [low.affine(v, None, None, None) if v.kind in ("sign", "int") else v for v in values]
    return low.emit("concat", values, {"axis": axis % values[0].rank})


@handles(aten.stack.default)
def _stack(low: Lowering, parts: Sequence[Any], axis: int = 0) -> Value:
    axis %= low.value(parts[0]).rank + 1
    return _cat(low, [_unsqueeze(low, part, axis) for part in parts], axis)


@handles(aten.constant_pad_nd.default)
def _pad(low: Lowering, x: Any, sides: Sequence[int], number: float = 0.0) -> Value:
    value = low.value(x)
    pairs = [[0, 0]] * (value.rank - len(sides) // 2)
    pairs += [list(sides[i : i + 2]) for i in range(len(sides) - 2, -1, -2)]
    for axis, (before, after) in enumerate(pairs):
        if min(before, after) < 0:  # torch's way to cut
            attrs = {"axis": axis, "start": max(-before, 0), "stop": min(after, 0) or None, "step": 1}
            size = value.shape[axis] + min(before, 0) + min(after, 0)
            shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
            value = low.emit("slice", [value], attrs, shape=shape)
    pairs = [[max(before, 0), max(after, 0)] for before, after in pairs]
    if not any(map(any, pairs)):
        return value
    return low.emit("pad", [value], {"padding": pairs, "value": float(number)})


@handles(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
@handles(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def _pad_with_copies(low: Lowering, x: Any, sides: Sequence[int]) -> Value:
    value = low.value(x)
    reflect = "reflection" in str(low.node.target)
    for count in range(len(sides) // 2):
        axis, (before, after) = value.rank - 1 - count, sides[2 * count : 2 * count + 2]
        size = value.shape[axis]
        if not isinstance(size, int):
            raise Unsupported("it pads a dimension of open size")
        front = [i if reflect else 0 for i in range(before, 0, -1)]
        back = [size - 1 - (i if reflect else 0) for i in range(1, after + 1)]

        def one(index: int, axis: int = axis, value: Value = value) -> Value:
            shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
            attrs = {"axis": axis, "start": index, "stop": index + 1, "step": 1}
            return low.emit("slice", [value], attrs, shape=shape)

        shape = (*value.shape[:axis], size + before + after, *value.shape[axis + 1 :])
        parts = [*map(one, front), value, *map(one, back)]
        value = low.emit("concat", parts, {"axis": axis}, shape=shape)
    return value


@handles(aten.expand.default)
def _expand(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    sizes = low.sizes(low.node.meta["val"])
    if isinstance(x, Value):
        if x.shape != sizes and x.kind != "index":  # a mask broadcasts where it is added
            raise Unsupported(f"it repeats {list(x.shape)} to {list(sizes)}")
        return x
    full, shape = (x, tuple(x.shape)) if isinstance(x, Tensor) else (x.full, x.shape)
    lead = len(sizes) - len(shape)
    return Partial(full.reshape([1] * lead + list(full.shape)), sizes)


@handles(aten.full.default)
def _full(low: Lowering, sizes: Sequence[Size], number: float, **_: Any) -> Partial:
    value = low.node.meta["val"]
    return Partial(torch.full([1] * len(sizes), number, dtype=value.dtype), low.sizes(value))


@handles(aten.full_like.default)
def _full_like(low: Lowering, x: Any, number: float, **_: Any) -> Partial:
    return _full(low, x.shape, number)


_LONGEST = 65_536


@handles(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(low: Lowering, *args: Any, **_: Any) -> Partial:
    start = 0 if len(args) == 1 else args[0]
    if start != 0 or (len(args) == 3 and args[2] != 1):
        raise Unsupported("positions must count from 0 in steps of 1")
    return Partial(torch.arange(_LONGEST), low.sizes(low.node.meta["val"]))


@handles(aten.embedding.default)
def _embedding(low: Lowering, weight: Any, index: Any, *_: Any) -> Any:
    weight = constant(weight, "weight")
    if isinstance(index, Partial):
        rows, full = len(weight), index.full
        if full.shape[-1] == _LONGEST:  # positions: no more than the table has
            full = full[..., :rows]
        return Partial(F.embedding(full, weight), low.sizes(low.node.meta["val"]))
    return low.emit("embedding", [index], {}, {"weight": weight})


@handles(
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
    aten.dropout.default,
    aten.feature_dropout.default,
)
def _same(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    return x


@handles(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)
def _to(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    after = low.node.meta["val"].dtype
    if isinstance(x, Value) and x.kind == "index" and after.is_floating_point:
        return _look_up(low, x, 0.0, 1.0)
    if isinstance(x, Value) and x.kind != "index" and not after.is_floating_point:
        raise Unsupported(f"it makes {after} of real numbers")
    return x


POINTWISE |= {
    aten.ge.Scalar,
    aten.bitwise_and.Tensor,
    aten.logical_and.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.unsqueeze.default,
    aten._to_copy.default,
    aten.clone.default,
    aten.gather.default,
}
