"""Custom operators of packed layers: ±1 weights as bits, so that torch.compile and torch.export see one node each.

A weight is a uint8 tensor of ``⌈n / 8⌉`` bytes: the signs of its ``n`` entries in row-major order, 1 for +1, the first
entry in a byte's highest bit (numpy's ``packbits``). The binary operators take a real input and use its sign, +1 where
``x >= 0``; their sums are exact integers, returned in the input's dtype. On a CPU they run on `frostbit_runtime`'s
kernels where it is installed and has one, else on torch's own convolution of unpacked weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from frostbit.deploy import kernels
from frostbit.quantizers import hard


def pack(signs: Tensor) -> Tensor:
    """Return the sign bits of a tensor, uint8 ``[⌈n / 8⌉]``; −0.0 counts as +1."""
    flat = (signs.detach().reshape(-1) >= 0).to(torch.uint8)
    flat = F.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    return (flat << torch.arange(7, -1, -1, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


@torch.library.custom_op("frostbit::unpack", mutates_args=())
def unpack(bits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the ±1 tensor of ``shape`` and ``dtype`` that `pack` made ``bits`` of."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    ones = (bits[:, None] >> shifts) & 1
    return ones.flatten()[: math.prod(shape)].reshape(list(shape)).to(dtype) * 2 - 1


@unpack.register_fake
def _(bits: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return bits.new_empty(list(shape), dtype=dtype)


@torch.library.custom_op("frostbit::sign", mutates_args=())
def sign(x: Tensor) -> Tensor:
    """Return +1 where ``x >= 0``, else −1, in ``x``'s dtype; NaN stays NaN."""
    return hard(x)


@sign.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("frostbit::binary_linear", mutates_args=())
def binary_linear(x: Tensor, bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``sign(x) @ Wᵀ`` for ``x`` of shape ``[..., in]`` and a packed W of ``shape`` ``[out, in]``."""
    fast = kernels.dense(x, bits, shape, lambda: unpack(bits, shape, torch.int8))
    if fast is not None:
        return fast
    return F.linear(hard(x).float(), unpack(bits, shape, torch.float32)).to(x.dtype)


@binary_linear.register_fake
def _(x: Tensor, bits: Tensor, shape: Sequence[int]) -> Tensor:
    torch._check(x.shape[-1] == shape[1])
    return x.new_empty([*x.shape[:-1], shape[0]])


@torch.library.custom_op("frostbit::binary_conv", mutates_args=())
def binary_conv(
    x: Tensor,
    bits: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
) -> Tensor:
    """Return the convolution of ``sign(x)`` with ±1 weights.

    Args:
        x: ``[N, C, *sizes]``.
        bits: the packed weight.
        shape: its shape ``[O, C/groups, *kernel]``.
        stride: one for each dimension.
        padding: two for each dimension, before and after, first dimension first.
        dilation: one for each dimension.
        groups: as in torch.
        pad_value: what the signs are padded with: 0, 1 or −1.

    Returns:
        The sums, ``[N, O, *sizes]``.
    """
    weight = partial(unpack, bits, shape)
    fast = kernels.conv(x, bits, partial(weight, torch.int8), stride, padding, dilation, groups, pad_value)
    if fast is not None:
        return fast
    signs = hard(x).float()
    sides = list(padding[::2])
    if pad_value != 0 or sides != list(padding[1::2]):
        pairs = [padding[i + side] for i in range(len(padding) - 2, -1, -2) for side in (0, 1)]
        signs, sides = F.pad(signs, pairs, value=float(pad_value)), [0] * len(sides)
    none = [0] * len(sides)
    y: Tensor = torch.ops.aten.convolution(
        signs, weight(torch.float32), None, stride, sides, dilation, False, none, groups
    )
    return y.to(x.dtype)


@binary_conv.register_fake
def _(
    x: Tensor,
    bits: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
) -> Tensor:
    torch._check(x.shape[1] == shape[1] * groups)
    sizes = [
        (x.shape[2 + i] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(len(stride))
    ]
    return x.new_empty([x.shape[0], shape[0], *sizes])


@torch.library.custom_op("frostbit::binary_conv_transpose", mutates_args=())
def binary_conv_transpose(
    x: Tensor,
    bits: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return the transposed convolution of ``sign(x)`` with ±1 weights of ``shape`` ``[C, O/groups, *kernel]``."""
    signs, weight = hard(x).float(), unpack(bits, shape, torch.float32)
    geometry = (stride, padding, dilation, True, output_padding, groups)
    y: Tensor = torch.ops.aten.convolution(signs, weight, None, *geometry)
    return y.to(x.dtype)


@binary_conv_transpose.register_fake
def _(
    x: Tensor,
    bits: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    torch._check(x.shape[1] == shape[0])
    sizes = [
        (x.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (shape[2 + i] - 1) + output_padding[i] + 1
        for i in range(len(stride))
    ]
    return x.new_empty([x.shape[0], shape[1] * groups, *sizes])
