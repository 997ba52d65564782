"""Binary layers, and what they leave to torch: convolutions and products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frostbit.deploy.aten.arithmetic import add, mul
from frostbit.deploy.aten.moving import permute
from frostbit.deploy.lower import Lowering, constant, handles, numbers
from frostbit.deploy.values import Size, Value, is_binary

aten = torch.ops.aten
frostbit = torch.ops.frostbit


@handles(frostbit.sign.default)
def sign(low: Lowering, x: Any) -> Value:
    """Take the sign of an activation, and remember that torch does it here."""
    y = low.sign(x)
    low.graph.sites.append(y.name)
    return y


def _signs(low: Lowering, x: Any) -> Value:
    return x if isinstance(x, Value) and x.kind == "sign" else sign(low, x)


@handles(frostbit.binary_linear.default)
def binary_linear(low: Lowering, x: Any, bits: Tensor, shape: list[int]) -> Value:
    """See `frostbit.deploy.ops`."""
    return linear(low, _signs(low, x), frostbit.unpack(bits, shape, torch.float32))


@handles(frostbit.binary_conv.default)
def binary_conv(low: Lowering, x: Any, bits: Tensor, shape: list[int], *geometry: Any) -> Value:
    """See `frostbit.deploy.ops`."""
    stride, padding, dilation, groups, pad_value = geometry
    pairs = [list(padding[i : i + 2]) for i in range(0, len(padding), 2)]
    weight = frostbit.unpack(bits, shape, torch.float32)
    return _convolve(low, _signs(low, x), weight, None, stride, pairs, dilation, groups, pad_value)


@handles(frostbit.binary_conv_transpose.default)
def binary_conv_transpose(low: Lowering, x: Any, bits: Tensor, shape: list[int], *geometry: Any) -> Value:
    """See `frostbit.deploy.ops`."""
    stride, padding, output_padding, dilation, groups = geometry
    weight = frostbit.unpack(bits, shape, torch.float32)
    return _transposed(low, _signs(low, x), weight, None, stride, padding, dilation, output_padding, groups)


@handles(aten.convolution.default)
def convolution(low: Lowering, x: Any, weight: Any, bias: Any, *geometry: Any) -> Value:
    """A convolution of any dimension, transposed or not."""
    stride, padding, dilation, transposed, output_padding, groups = geometry
    w, dims = constant(weight, "weight"), len(stride)
    b = None if bias is None else constant(bias, "bias")
    padding, dilation = numbers(padding, dims), numbers(dilation, dims)
    if transposed:
        return _transposed(low, low.value(x), w, b, stride, padding, dilation, output_padding, groups)
    return _convolve(low, low.value(x), w, b, stride, [[p, p] for p in padding], dilation, groups)


@handles(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def conv(
    low: Lowering,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """The same, not transposed."""
    strides = numbers(stride, constant(weight, "weight").dim() - 2)
    return convolution(low, x, weight, bias, strides, padding, dilation, False, [], groups)


def _convolve(
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
    padded = _padded_signs(low, x) if binary and not any(map(any, pairs)) else None
    if padded is not None:
        x, pairs, pad_value = padded
    attrs = {"stride": list(stride), "dilation": list(dilation), "groups": groups, "padding": pairs}
    if x.kind == "sign" and binary:
        sums = low.emit(
            "binary_conv", [x], {**attrs, "pad_value": pad_value}, {"weight": weight}, bound=weight[0].numel()
        )
        return _with_bias(low, sums, 1, bias)
    return low.emit("conv", [x], attrs, {"weight": weight, "bias": bias})


def _padded_signs(low: Lowering, x: Value) -> tuple[Value, list[list[int]], int] | None:
    """Return signs, how they are padded and with what, if ``x`` is a `pad` of signs that a convolution can do."""
    node = next((node for node in reversed(low.graph.nodes) if node.output == x.name), None)
    if node is None or node.kind != "pad" or node.attrs["value"] not in (0, 1, -1):
        return None
    source, pairs = low.graph.values[node.inputs[0]], node.attrs["padding"]
    return (
        (source, pairs[2:], int(node.attrs["value"]))
        if source.kind == "sign" and not any(map(any, pairs[:2]))
        else None
    )


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
        return _with_bias(low, low.emit("binary_conv_transpose", [x], attrs, {"weight": weight}, bound=bound), 1, bias)
    return low.emit("conv_transpose", [x], attrs, {"weight": weight, "bias": bias})


def _with_bias(low: Lowering, sums: Value, axis: int, bias: Tensor | None) -> Value:
    return sums if bias is None else low.affine(sums, axis, None, bias, lambda v: v + bias[:, None])


@handles(aten.linear.default)
def linear(low: Lowering, x: Any, weight: Any, bias: Any = None) -> Value:
    """``x @ weightᵀ + bias``."""
    value = low.value(x)
    if isinstance(weight, Value):
        y = matmul(low, value, permute(low, weight, [1, 0]))
        return y if bias is None else add(low, y, bias)
    w = constant(weight, "weight")
    b, shape = None if bias is None else constant(bias, "bias"), (*value.shape[:-1], w.shape[0])
    if value.kind == "sign" and is_binary(w):
        sums = low.emit("binary_dense", [value], {}, {"weight": w}, bound=w.shape[1], shape=shape)
        return _with_bias(low, sums, sums.rank - 1, b)
    return low.emit("dense", [value], {}, {"weight": w, "bias": b}, shape=shape)


@handles(aten.mm.default, aten.bmm.default, aten.matmul.default)
def matmul(low: Lowering, x: Any, y: Any) -> Value:
    """Products of matrices; a constant matrix makes a dense layer of them."""
    if isinstance(y, Tensor) and y.dim() == 2:
        return linear(low, x, y.t())
    if isinstance(x, Tensor) and x.dim() == 2 and isinstance(y, Value) and y.rank > 2:
        swap = [*range(y.rank - 2), y.rank - 1, y.rank - 2]
        return permute(low, linear(low, permute(low, y, swap), x), swap)
    left, right = low.value(x), low.value(y)
    return low.emit("matmul", [left, right], shape=product_shape(left, right))


def product_shape(x: Value, y: Value) -> list[Size]:
    """Return the shape of a product of matrices whose leading sizes are equal or 1."""
    longer = max(x.shape[:-2], y.shape[:-2], key=len)
    pairs = list(zip(x.shape[:-2][::-1], y.shape[:-2][::-1], strict=False))[::-1]
    lead = [b if a == 1 else a for a, b in pairs]
    return [*longer[: len(longer) - len(lead)], *lead, x.shape[-2], y.shape[-1]]


@handles(aten.addmm.default, aten.baddbmm.default)
def addmm(low: Lowering, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Value:
    """``beta · bias + alpha · x @ y``."""
    product = matmul(low, x, y)
    product = product if alpha == 1 else mul(low, product, alpha)
    return product if beta == 0 else add(low, product, bias, beta)
