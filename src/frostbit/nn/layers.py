"""Binary layers: real subclasses of torch's own, same constructor and parameter names, quantizers by keyword."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostbit.errors import UsageError
from frostbit.nn.accumulator import Accumulator, check_bits
from frostbit.nn.functional import Convolution, Dense, quantized_map
from frostbit.quantizers import Quantizer, Spec, hard, resolve
from frostbit.registry import check_choice

WeightScale = Literal["mean_abs"] | None


def _for_activations(spec: Spec) -> Quantizer | None:
    # An instance is taken as it is, so that layers reading one tensor can share its quantizer.
    quantizer = spec if isinstance(spec, Quantizer) else resolve(spec)
    if quantizer is not None and quantizer.direct:
        raise UsageError("'direct' is for weights, which a flip optimizer moves: an input needs 'ste_identity', say")
    return quantizer


class BinaryLayer(nn.Module):
    """What every binary layer has beside its torch base class, whose constructor arguments it takes unchanged.

    Args:
        *args: as the torch layer's.
        weight_quantizer: a quantizer, its name, or ``None`` for a real weight.
        input_quantizer: the same for the layer's input.
        weight_scale: ``"mean_abs"`` multiplies hard weight entries by the detached ``mean|w|`` of their filter.
        pad_value: what a convolution pads its quantized input with: 0 (torch's), −1 or +1.
        latent_clip: latent weights are kept in ``[−c, c]`` by `frostbit.clip_latents_` after each step.
        accumulator_bits: sums of ±1 products are rounded and saturated to that many bits before scale and bias, see
            `frostbit.nn.Accumulator`; while an operand is soft there is no such sum and nothing is done.
        **kwargs: as the torch layer's.
    """

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def __init__(
        self,
        *args: Any,
        weight_quantizer: Spec = "ste_clip",
        input_quantizer: Spec = "ste_clip",
        weight_scale: WeightScale = None,
        pad_value: float = 0.0,
        latent_clip: float | None = None,
        accumulator_bits: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.set_binary(
            weight_quantizer=weight_quantizer,
            input_quantizer=input_quantizer,
            weight_scale=weight_scale,
            pad_value=pad_value,
            latent_clip=latent_clip,
            accumulator_bits=accumulator_bits,
        )
        self.sign_direct_()

    @classmethod
    def from_float(cls, module: nn.Module, **binary: Any) -> Self:
        """Turn a torch layer into this binary layer in place: same object, parameters, hooks and names.

        Args:
            module: an instance of exactly this class's torch base.
            **binary: the keyword arguments of this class beyond the torch layer's.

        Returns:
            The same object, now of this class.
        """
        module.__class__ = cls
        assert isinstance(module, cls)
        module.set_binary(**binary)
        module.sign_direct_()
        return module

    def set_binary(
        self,
        *,
        weight_quantizer: Spec = "ste_clip",
        input_quantizer: Spec = "ste_clip",
        weight_scale: WeightScale = None,
        pad_value: float = 0.0,
        latent_clip: float | None = None,
        accumulator_bits: int | None = None,
    ) -> None:
        """Set the binary side of the layer; arguments as in the class."""
        if weight_scale is not None:
            check_choice("weight_scale", weight_scale, ["mean_abs"])
        if pad_value not in (0.0, 1.0, -1.0):
            raise UsageError(f"pad_value must be 0, 1 or -1, found {pad_value}")
        if latent_clip is not None and not latent_clip > 0:
            raise UsageError(f"latent_clip must be positive, found {latent_clip}")
        self.weight_quantizer = resolve(weight_quantizer)
        self.input_quantizer = _for_activations(input_quantizer)
        for quantizer in (self.weight_quantizer, self.input_quantizer):
            if quantizer is not None:
                quantizer.train(self.training)
        self.weight_scale = weight_scale
        self.pad_value = pad_value
        self.latent_clip = latent_clip
        self.accumulator_bits = check_bits(accumulator_bits)
        if accumulator_bits is not None and (self.weight_quantizer is None or self.input_quantizer is None):
            real = "weight" if self.weight_quantizer is None else "input"
            raise UsageError(f"accumulator_bits={accumulator_bits} is for sums of ±1 products: the {real} is real here")
        both = self.weight_quantizer, self.input_quantizer
        if accumulator_bits is not None and not all(q is None or q.binary for q in both):
            raise UsageError(f"accumulator_bits={accumulator_bits} is for sums of ±1 products: a ternary one may be 0")
        direct = self.weight_quantizer is not None and self.weight_quantizer.direct
        if direct and (weight_scale is not None or latent_clip is not None):
            option = "weight_scale" if weight_scale is not None else "latent_clip"
            raise UsageError(f"a direct weight is always -1 or +1: {option} has nothing to act on")

    def sign_direct_(self) -> None:
        """Turn direct weights (`frostbit.quantizers.Direct`) into signs, in place."""
        with torch.no_grad():
            for _, parameter, quantizer in self.latents():
                if quantizer.direct:
                    parameter.copy_(hard(parameter))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers"):  # the parameter is the caller's tensor now
            for name, parameter, quantizer in list(self.latents()):
                if quantizer.direct:
                    setattr(self, name, nn.Parameter(hard(parameter), parameter.requires_grad))
        self.sign_direct_()

    def latents(self) -> Iterator[tuple[str, nn.Parameter, Quantizer]]:
        """Yield (parameter name, parameter, its quantizer) for each binary weight of the layer."""
        if self.weight_quantizer is not None:
            yield "weight", self.get_parameter("weight"), self.weight_quantizer

    def filter_dims(self) -> tuple[int, ...]:
        """Return the dimensions of ``weight`` that one filter (output) spans."""
        return tuple(range(1, self.get_parameter("weight").dim()))

    def scale(self) -> Tensor | None:
        """Return the factor on hard weight entries, broadcast against ``weight``, or ``None``."""
        if self.weight_scale is None:
            return None
        return self.get_parameter("weight").detach().abs().mean(self.filter_dims(), keepdim=True)

    def accumulator(self, fan_in: int, weight_quantizer: Quantizer | None = None) -> Accumulator | None:
        """Return what holds sums of ``fan_in`` products; ``None`` without, or while an operand is soft."""
        if self.accumulator_bits is None:
            return None
        operands = self.input_quantizer, weight_quantizer or self.weight_quantizer
        are_signs = all(operand is not None and operand.is_sign for operand in operands)
        return Accumulator(self.accumulator_bits, fan_in) if are_signs else None


class Linear(BinaryLayer, nn.Linear):
    """`torch.nn.Linear` with quantized input and weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``Q_x(input) @ Q_w(weight)ᵀ + bias``, ``[..., in]`` to ``[..., out]``."""
        accumulator = self.accumulator(self.in_features)
        quantizers = self.input_quantizer, self.weight_quantizer
        return quantized_map(Dense(), input, self.weight, self.bias, *quantizers, self.scale(), accumulator)


class _ConvNd(BinaryLayer):
    """Shared by convolutions of 1, 2 and 3 dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the quantized input with the quantized weight; shapes as in torch."""
        assert isinstance(self, nn.modules.conv._ConvNd)
        batched = input.dim() == self.weight.dim()
        x = input if batched else input.unsqueeze(0)
        quantizer: Quantizer | None = self.input_quantizer
        padding = self.padding
        sides = list(self._reversed_padding_repeated_twice)  # two for each dimension, the last dimension first
        if isinstance(padding, str) and sides[::2] == sides[1::2]:
            padding = tuple(reversed(sides[::2]))
        if self.pad_value != 0 or self.padding_mode != "zeros" or isinstance(padding, str):
            # Padding acts on the quantized input, so it has to be written out before the map.
            x = x if quantizer is None else quantizer(x)
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            value = {"value": self.pad_value} if mode == "constant" else {}
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode, **value)
            quantizer, padding = None, (0,) * len(self.stride)
        op = Convolution(self.stride, padding, self.dilation, self.groups)
        accumulator = self.accumulator(self.weight[0].numel())
        y = quantized_map(op, x, self.weight, self.bias, quantizer, self.weight_quantizer, self.scale(), accumulator)
        return y if batched else y.squeeze(0)


class Conv1d(_ConvNd, nn.Conv1d):
    """`torch.nn.Conv1d` with quantized input and weight."""


class Conv2d(_ConvNd, nn.Conv2d):
    """`torch.nn.Conv2d` with quantized input and weight, grouped and depthwise included."""


class Conv3d(_ConvNd, nn.Conv3d):
    """`torch.nn.Conv3d` with quantized input and weight."""


class _ConvTransposeNd(BinaryLayer):
    """Shared by transposed convolutions; their weight is ``[in, out/groups, *kernel]``."""

    def set_binary(self, **binary: Any) -> None:
        """Set the binary side; ``pad_value`` must be 0."""
        super().set_binary(**binary)
        if self.pad_value != 0:
            raise UsageError(f"a transposed convolution pads nothing: pad_value must be 0, found {self.pad_value}")

    def scale(self) -> Tensor | None:
        """Return ``mean|w|`` per output channel and group, broadcast against ``weight``."""
        if self.weight_scale is None:
            return None
        assert isinstance(self, nn.modules.conv._ConvTransposeNd)
        w: Tensor = self.weight.detach().abs().unflatten(0, (self.groups, -1))
        mean = w.mean((1, *range(3, w.dim())), keepdim=True)
        return mean.expand(-1, w.shape[1], *mean.shape[2:]).flatten(0, 1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of quantized operands; shapes as in torch."""
        assert isinstance(self, nn.modules.conv._ConvTransposeNd)
        assert not isinstance(self.padding, str)  # torch takes none here
        geometry = (list(self.stride), list(self.padding), list(self.kernel_size))
        output_padding = self._output_padding(input, output_size, *geometry, len(self.stride), list(self.dilation))
        batched = input.dim() == self.weight.dim()
        x = input if batched else input.unsqueeze(0)
        op = Convolution(self.stride, self.padding, self.dilation, self.groups, True, tuple(output_padding))
        accumulator = self.accumulator(self.weight.numel() // self.out_channels)
        quantizers = self.input_quantizer, self.weight_quantizer
        y = quantized_map(op, x, self.weight, self.bias, *quantizers, self.scale(), accumulator)
        return y if batched else y.squeeze(0)


class ConvTranspose1d(_ConvTransposeNd, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with quantized input and weight."""


class ConvTranspose2d(_ConvTransposeNd, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with quantized input and weight."""


class ConvTranspose3d(_ConvTransposeNd, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with quantized input and weight."""


class Embedding(BinaryLayer, nn.Embedding):
    """`torch.nn.Embedding` with binary vectors; indices are not quantized.

    The row of ``padding_idx`` gets no gradient, as in torch, and is binary like any other.
    """

    def set_binary(self, **binary: Any) -> None:
        """Set the binary side; indices have no sign, and nothing is summed: both options of that are ignored."""
        super().set_binary(**{**binary, "input_quantizer": None, "accumulator_bits": None})
        if self.sparse:
            raise UsageError("a binary Embedding needs dense gradients, found sparse=True")

    def forward(self, input: Tensor) -> Tensor:
        """Return the quantized vectors of integer ``input`` ``[...]``, as ``[..., dim]``."""
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(self.weight, input.contiguous(), self.max_norm, self.norm_type)
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight, self.scale())
        return F.embedding(input, weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)


class Binarizer(nn.Module):
    """A quantizer in the place of an activation function (``placement="activation"``)."""

    def __init__(self, input_quantizer: Spec = "ste_clip") -> None:
        super().__init__()
        quantizer = _for_activations(input_quantizer)
        if quantizer is None:
            raise UsageError("a Binarizer needs a quantizer, found None")
        self.input_quantizer: Quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Q(x)``."""
        y: Tensor = self.input_quantizer(x)
        return y
