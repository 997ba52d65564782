"""The bridge from the custom operators to `frostbit_runtime`'s kernels, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

#: prepared kernels by the bits that they were made of, with the bits' version and the geometry
_prepared: Any = WeakTensorKeyDictionary()
_available = importlib.util.find_spec("frostbit_runtime") is not None


def dense(x: Tensor, bits: Tensor, shape: Sequence[int], unpack: Callable[[], Tensor]) -> Tensor | None:
    """Return the sums of a binary dense layer, or ``None`` where no kernel can compute them.

    Args:
        x: ``[..., in]``, real.
        bits: the packed weight; its kernel is kept as long as the tensor lives.
        shape: ``[out, in]``.
        unpack: returns the weight as int8.

    Returns:
        ``[..., out]`` in ``x``'s dtype.
    """
    if not _usable(x):
        return None
    from frostbit_runtime.kernels import BinaryDense

    kernel = _kept(bits, (), lambda: BinaryDense(unpack().numpy()))
    rows = x.detach().float().reshape(-1, shape[1]).contiguous()
    sums = kernel.run(rows.numpy(), threads=torch.get_num_threads())
    return torch.from_numpy(sums).to(x.dtype).reshape(*x.shape[:-1], shape[0])


def conv(
    x: Tensor,
    bits: Tensor,
    unpack: Callable[[], Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int,
) -> Tensor | None:
    """Return the sums of a binary convolution, or ``None`` where no kernel can compute them.

    Args:
        x: ``[N, C, H, W]``, real; convolutions of other dimensions have no kernel.
        bits: the packed weight; its kernel is kept as long as the tensor lives.
        unpack: returns the weight as int8.
        stride: one for each dimension.
        padding: two for each dimension.
        dilation: one for each dimension.
        groups: as in torch.
        pad_value: 0, 1 or −1.

    Returns:
        ``[N, O, H', W']`` in ``x``'s dtype.
    """
    if x.dim() != 4 or not _usable(x):
        return None
    from frostbit_runtime.kernels import BinaryConv

    pairs = (tuple(padding[:2]), tuple(padding[2:]))
    geometry: tuple[Any, ...] = (tuple(stride), pairs, tuple(dilation), groups, pad_value)
    kernel = _kept(bits, geometry, lambda: BinaryConv(unpack().numpy(), *geometry))
    images = x.detach().float().permute(0, 2, 3, 1).contiguous()
    sums = kernel.run(images.numpy(), threads=torch.get_num_threads())
    return torch.from_numpy(sums).permute(0, 3, 1, 2).to(x.dtype, memory_format=torch.contiguous_format)


def _usable(x: Tensor) -> bool:
    # a kernel turns NaN into a sign; the sum tells in one cheap pass that there is none
    return _available and x.device.type == "cpu" and x.numel() > 0 and not bool(x.sum(dtype=torch.float64).isnan())


def _kept(bits: Tensor, geometry: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    version = (0 if bits.is_inference() else bits._version, geometry)
    found = _prepared.get(bits)
    if found is None or found[0] != version:
        found = _prepared[bits] = (version, make())
    return found[1]
