"""Layers whose binary weight is a buffer of bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostbit import nn as fnn
from frostbit.deploy import ops
from frostbit.errors import UsageError
from frostbit.nn import Accumulator, BinaryLayer
from frostbit.quantizers import Quantizer

# of the module that it is a method of it reads `output_padding` alone
_output_padding: Callable[..., list[int]] = nn.modules.conv._ConvTransposeNd._output_padding


class PackedSign(Quantizer):
    """The sign, in the place of any quantizer of activations."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the sign of ``x``, times ``scale`` if there is one."""
        y: Tensor = ops.sign(x)
        return y if scale is None else y * scale

    value = forward


class PackedLayer(nn.Module):
    """What packed layers share.

    Args:
        weight: the latent weight.
        scale: the factor of each output channel ``[O]``, or ``None``.
        bias: a real bias ``[O]``, or ``None``.
        binary_input: whether the layer takes the sign of its input.
        accumulator: what holds the sums, before scale and bias.

    Attributes:
        bits: the weight, uint8 ``[⌈n / 8⌉]``, see `frostbit.deploy.ops`.
    """

    bits: Tensor
    like: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        binary_input: bool,
        accumulator: Accumulator | None = None,
    ) -> None:
        super().__init__()
        self.accumulator = accumulator
        self.shape = list(weight.shape)
        # follows the module's own moves, as the weight would
        self.register_buffer("like", weight.detach().new_empty(0), persistent=False)
        self.binary_input = binary_input
        self.register_buffer("bits", ops.pack(weight))
        self.register_buffer("scale", None if scale is None else scale.detach().flatten().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The weight as ±1, without its scale; for code that asks a layer for its weight's dtype or shape."""
        weight: Tensor = ops.unpack(self.bits, self.shape, self.like.dtype)
        return weight

    def finish(self, y: Tensor, dims: int) -> Tensor:
        """Hold the sums, apply scale and bias along the channel axis, behind which come ``dims`` further dimensions."""
        tail = [1] * dims
        y = y if self.accumulator is None else self.accumulator.hold(y)
        y = y if self.scale is None else y * self.scale.to(y.dtype).reshape(-1, *tail)
        return y if self.bias is None else y + self.bias.to(y.dtype).reshape(-1, *tail)


class PackedLinear(PackedLayer):
    """A binary linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        if self.binary_input:
            return self.finish(ops.binary_linear(input, self.bits, self.shape), 0)
        return self.finish(F.linear(input, ops.unpack(self.bits, self.shape, input.dtype)), 0)


class PackedConv(PackedLayer):
    """A binary convolution of 1, 2 or 3 dimensions."""

    def __init__(self, layer: BinaryLayer) -> None:
        assert isinstance(layer, nn.modules.conv._ConvNd)
        accumulator = layer.accumulator(layer.weight[0].numel())
        super().__init__(layer.weight, layer.scale(), layer.bias, layer.input_quantizer is not None, accumulator)
        self.stride, self.dilation, self.groups = list(layer.stride), list(layer.dilation), layer.groups
        self.sides = list(layer._reversed_padding_repeated_twice)  # as F.pad wants them: the last dimension first
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.pad_value = int(layer.pad_value)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution, shapes as in torch."""
        batched = input.dim() == len(self.shape)
        x = input if batched else input.unsqueeze(0)
        dims = len(self.stride)
        sides, none = self.sides, [0] * dims
        if self.mode != "constant":
            x = F.pad(ops.sign(x) if self.binary_input else x, sides, self.mode)
            sides = none * 2
        if self.binary_input:
            pairs = [sides[2 * (dims - 1 - i) + side] for i in range(dims) for side in (0, 1)]
            geometry = (self.stride, pairs, self.dilation, self.groups, self.pad_value)
            y = ops.binary_conv(x, self.bits, self.shape, *geometry)
        else:
            if self.pad_value != 0 or sides[::2] != sides[1::2]:
                x, sides = F.pad(x, sides, value=self.pad_value), none * 2
            weight = ops.unpack(self.bits, self.shape, x.dtype)
            before = sides[::-2]
            y = torch.ops.aten.convolution(
                x, weight, None, self.stride, before, self.dilation, False, none, self.groups
            )
        y = self.finish(y, dims)
        return y if batched else y.squeeze(0)


class PackedConvTranspose(PackedLayer):
    """A binary transposed convolution of 1, 2 or 3 dimensions."""

    def __init__(self, layer: BinaryLayer) -> None:
        assert isinstance(layer, nn.modules.conv._ConvTransposeNd)
        scale = layer.scale()
        if scale is not None:  # equal in all input channels of a group
            scale = scale.unflatten(0, (layer.groups, -1))[:, 0]
        accumulator = layer.accumulator(layer.weight.numel() // layer.out_channels)
        super().__init__(layer.weight, scale, layer.bias, layer.input_quantizer is not None, accumulator)
        self.stride, self.dilation, self.groups = list(layer.stride), list(layer.dilation), layer.groups
        self.padding = [int(side) for side in layer.padding]  # torch takes no words here
        self.output_padding = layer.output_padding
        self.kernel_size = list(layer.kernel_size)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution, shapes as in torch."""
        batched = input.dim() == len(self.shape)
        x = input if batched else input.unsqueeze(0)
        dims = len(self.stride)
        extra = _output_padding(
            self,
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            dims,
            self.dilation,
        )
        if self.binary_input:
            sides = (self.stride, self.padding, list(extra), self.dilation, self.groups)
            y = ops.binary_conv_transpose(x, self.bits, self.shape, *sides)
        else:
            weight = ops.unpack(self.bits, self.shape, x.dtype)
            geometry = (self.stride, self.padding, self.dilation, True, list(extra), self.groups)
            y = torch.ops.aten.convolution(x, weight, None, *geometry)
        y = self.finish(y, dims)
        return y if batched else y.squeeze(0)


class PackedEmbedding(PackedLayer):
    """A binary embedding."""

    def __init__(self, layer: BinaryLayer) -> None:
        assert isinstance(layer, fnn.Embedding)
        if layer.max_norm is not None:
            raise UsageError("an Embedding with max_norm changes its weight while it runs, which bits cannot")
        super().__init__(layer.weight, layer.scale(), None, False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the vectors of integer ``input`` ``[...]``, as ``[..., dim]``."""
        y = F.embedding(input, ops.unpack(self.bits, self.shape, self.like.dtype))
        return y if self.scale is None else y * F.embedding(input, self.scale[:, None])


class PackedAttention(fnn.MultiheadAttention):
    """Multi-head attention with packed projections for query, key and value."""

    projections: nn.ModuleList

    @classmethod
    def of(cls, attention: fnn.MultiheadAttention) -> fnn.MultiheadAttention:
        """Turn a binary attention module into this one, in place; its ``out_proj`` is a layer of its own."""
        latents = [parameter for _, parameter, _ in attention.latents()]
        quantizers = [quantizer for _, _, quantizer in attention.latents()]
        weights = list(latents[0].chunk(3)) if len(latents) == 1 else latents
        biases = [None] * 3 if attention.in_proj_bias is None else list(attention.in_proj_bias.chunk(3))
        scales = [None if attention.weight_scale is None else w.detach().abs().mean(1) for w in weights]
        binary_input = attention.input_quantizer is not None
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            attention.register_parameter(name, None)
        projections = nn.ModuleList(
            PackedLinear(w, s, b, binary_input, attention.accumulator(w.shape[1], quantizers[0]))
            for w, s, b in zip(weights, scales, biases, strict=True)
        )
        attention.weight_quantizer = attention.input_quantizer = None
        attention.projection_quantizers = nn.ModuleDict()
        attention.projections = projections
        attention.__class__ = cls
        return attention

    def _project(self, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        read: list[Tensor] = list(inputs)
        first = self.projections[0]
        assert isinstance(first, PackedLinear)
        if first.binary_input:  # here, so that three projections of one tensor take its sign once
            same = inputs[0] is inputs[1] is inputs[2]
            read = [ops.sign(inputs[0])] * 3 if same else [ops.sign(x) for x in inputs]
        return [projection(x) for projection, x in zip(self.projections, read, strict=True)]


def linear(layer: BinaryLayer) -> PackedLinear:
    """Return the packed form of a binary linear layer."""
    assert isinstance(layer, fnn.Linear)
    accumulator = layer.accumulator(layer.in_features)
    return PackedLinear(layer.weight, layer.scale(), layer.bias, layer.input_quantizer is not None, accumulator)
