"""One autograd function for every binary layer: quantize input and weight, apply a bilinear map, save little.

The plain composition ``conv(quantize(x), quantize(w))`` (`reference_map`) keeps a float copy of the quantized
input for the weight's gradient, beside what the quantizer keeps for its own. `quantized_map` rebuilds both in the
backward pass from the quantizer's one-byte stand-in (`Quantizer.encode`), and the quantized weight from the
weight itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from frostbit.nn.accumulator import Accumulator
from frostbit.quantizers import Quantizer, hard
from frostbit.quantizers.base import check_backward, with_scale

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class BilinearMap(Protocol):
    """A map that is linear in its input and in its weight, with its transpose."""

    def __call__(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output."""

    def backward(self, grad: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool]) -> Gradients:
        """Return the gradients of ``x``, ``w`` and ``bias``, ``None`` where not needed."""

    def spread(self, values: Tensor) -> Tensor:
        """Return a view of one value for each output channel that broadcasts against the output."""

    def per_output(self, scale: Tensor) -> Tensor:
        """Return a scale that broadcasts against the weight, one value for each filter, as a vector."""


@dataclass(frozen=True)
class Dense:
    """``x @ wᵀ + bias`` with ``x`` of shape ``[..., in]`` and ``w`` of shape ``[out, in]``."""

    def __call__(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output, ``[..., out]``."""
        return F.linear(x, w, bias)

    def backward(self, grad: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool]) -> Gradients:
        """See `BilinearMap.backward`."""
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ w if needs[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if needs[1] else None,
            rows.sum(0) if needs[2] else None,
        )

    def spread(self, values: Tensor) -> Tensor:
        """See `BilinearMap.spread`."""
        return values

    def per_output(self, scale: Tensor) -> Tensor:
        """See `BilinearMap.per_output`."""
        return scale.flatten()


@dataclass(frozen=True)
class Convolution:
    """A convolution of any dimension, transposed or not, with zero padding."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def _geometry(self) -> tuple[Any, ...]:
        output_padding = self.output_padding or (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, self.transposed, output_padding, self.groups

    def __call__(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output for a batched ``x``."""
        y: Tensor = torch.ops.aten.convolution(x, w, bias, *self._geometry)
        return y

    def backward(self, grad: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool]) -> Gradients:
        """See `BilinearMap.backward`."""
        bias_sizes = [grad.shape[1]] if needs[2] else None
        gradients: Gradients = torch.ops.aten.convolution_backward(grad, x, w, bias_sizes, *self._geometry, list(needs))
        return gradients

    def spread(self, values: Tensor) -> Tensor:
        """See `BilinearMap.spread`."""
        return values.view(-1, *(1,) * len(self.stride))

    def per_output(self, scale: Tensor) -> Tensor:
        """See `BilinearMap.per_output`."""
        return (scale.unflatten(0, (self.groups, -1))[:, 0] if self.transposed else scale).flatten()


def quantized_map(
    op: BilinearMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_quantizer: Quantizer | None,
    weight_quantizer: Quantizer | None,
    scale: Tensor | None = None,
    accumulator: Accumulator | None = None,
) -> Tensor:
    """Return ``op(Q_x(x), Q_w(weight), bias)``, with the quantizers' gradients and few bytes saved.

    A quantizer that blocks (fully frozen, STE-free) takes its operand out of the backward pass altogether.

    Args:
        op: the bilinear map.
        x: the layer's input.
        weight: the latent weight.
        bias: a real bias, or ``None``.
        input_quantizer: ``None`` for a real input.
        weight_quantizer: ``None`` for a real weight.
        scale: a factor on hard weight entries, see `Quantizer.value`.
        accumulator: what holds the sums of ±1 products, before scale and bias; only where both operands are signs.

    Returns:
        The output, in autocast's dtype where autocast is on.

    Raises:
        TypeError: without autocast, ``x`` and ``weight`` differ in dtype.
    """
    if accumulator is not None and bias is not None:
        y = quantized_map(op, x, weight, None, input_quantizer, weight_quantizer, scale, accumulator)
        return y + op.spread(bias.to(y.dtype))
    if weight_quantizer is not None and weight_quantizer.bypassed:
        weight_quantizer = None
    if input_quantizer is not None and input_quantizer.blocks:
        x = x.detach()
    if weight_quantizer is not None and weight_quantizer.blocks:
        weight = weight.detach()
    dtype = _compute_dtype(x, weight)
    if not torch.is_grad_enabled():
        if accumulator is not None:
            return _hold(op, _quantize(input_quantizer, x).to(dtype), weight, scale, accumulator)[0]
        bias = bias if bias is None else bias.to(dtype)
        if scale is not None and weight_quantizer is not None and weight_quantizer.is_sign:
            # signs are summed and the sums scaled: exact, so that a sum of 0 is 0 here and in a packed network
            y = op(_quantize(input_quantizer, x).to(dtype), hard(weight).to(dtype), None)
            y = y * op.spread(op.per_output(scale).to(dtype))
            return y if bias is None else y + op.spread(bias)
        return op(_quantize(input_quantizer, x).to(dtype), _quantize(weight_quantizer, weight, scale).to(dtype), bias)
    result: Tensor = _QuantizedMap.apply(
        x, weight, bias, scale, op, input_quantizer, weight_quantizer, dtype, accumulator
    )
    return result


def reference_map(
    op: BilinearMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_quantizer: Quantizer | None,
    weight_quantizer: Quantizer | None,
    scale: Tensor | None = None,
    accumulator: Accumulator | None = None,
) -> Tensor:
    """The plain composition that `quantized_map` is held against by the tests; same arguments and value."""
    x = x if input_quantizer is None else input_quantizer(x)
    quantized = weight if weight_quantizer is None else weight_quantizer(weight, scale)
    if accumulator is None:
        return op(x, quantized, bias)
    y = op(x, quantized, None)
    held, sums = _hold(op, x, weight, scale, accumulator)
    y = torch.where(accumulator.inside(sums), y, y.detach()) + (held - y).detach()
    return y if bias is None else y + op.spread(bias)


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    if x.dtype != weight.dtype:  # a cast would make integers of real weights
        raise TypeError(f"input and weight must have one dtype, found {x.dtype} and {weight.dtype}")
    return x.dtype


def _quantize(quantizer: Quantizer | None, x: Tensor, scale: Tensor | None = None) -> Tensor:
    return x if quantizer is None else quantizer.value(x, scale)


def _hold(
    op: BilinearMap, signs: Tensor, weight: Tensor, scale: Tensor | None, accumulator: Accumulator
) -> tuple[Tensor, Tensor]:
    """Return the held and scaled sums, and the sums; a scaled weight's signs are summed, so that these are exact."""
    sums = op(signs, hard(weight).to(signs.dtype), None)
    held = accumulator.hold(sums)
    return held if scale is None else held * op.spread(op.per_output(scale).to(held.dtype)), sums


def _moment(*quantizers: Quantizer | None) -> object:
    if torch.compiler.is_compiling():
        return None
    return [None if quantizer is None else quantizer.moment for quantizer in quantizers]


class _QuantizedMap(torch.autograd.Function):
    """Autograd's view of `quantized_map`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        op: BilinearMap,
        input_quantizer: Quantizer | None,
        weight_quantizer: Quantizer | None,
        dtype: torch.dtype,
        accumulator: Accumulator | None,
    ) -> Tensor:
        needs_x, needs_w = ctx.needs_input_grad[:2]
        ctx.plan = (op, input_quantizer, weight_quantizer, dtype)
        ctx.moment = _moment(input_quantizer, weight_quantizer)
        ctx.x_like = (x.shape, x.dtype)
        kept: Tensor | None
        if input_quantizer is not None and (needs_x or needs_w):
            xq, kept = input_quantizer.encode(x)
        else:
            xq, kept = _quantize(input_quantizer, x), x if needs_w else None
        if accumulator is not None:
            y, sums = _hold(op, xq.to(dtype), weight, scale, accumulator)
            ctx.save_for_backward(kept, weight, scale, accumulator.inside(sums))
            return y
        ctx.save_for_backward(kept, weight, scale, None)
        wq = _quantize(weight_quantizer, weight, scale).to(dtype)
        return op(xq.to(dtype), wq, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, scale, inside = ctx.saved_tensors
        op, input_quantizer, weight_quantizer, dtype = ctx.plan
        check_backward(ctx.moment, _moment(input_quantizer, weight_quantizer))
        shape, x_dtype = ctx.x_like
        needs = tuple(ctx.needs_input_grad[:3])
        if inside is not None:
            grad = grad * inside
        if kept is None:  # only the input's shape is asked for
            xq = grad.new_empty(1).expand(shape)
        else:
            xq = kept if input_quantizer is None else input_quantizer.decode(kept, x_dtype)
        wq = _quantize(weight_quantizer, weight, scale)
        xq, wq = xq.to(dtype), wq.to(dtype)
        # new tensors, which nobody else holds: quantizers may overwrite them
        grad_x, grad_w, grad_bias = op.backward(grad, xq, wq, needs)
        if grad_x is not None:
            grad_x = grad_x.to(x_dtype)
            grad_x = grad_x if input_quantizer is None else input_quantizer.pull(grad_x, kept, overwrite=True)
        if grad_w is not None:
            grad_w = grad_w.to(weight.dtype)
            if weight_quantizer is not None:
                grad_w = weight_quantizer.pull(with_scale(grad_w, weight_quantizer, scale), weight, overwrite=True)
        return grad_x, grad_w, grad_bias, None, None, None, None, None, None
