"""What a training step does to each unit: the gradient that reaches it, dead channels, signs that flipped.

One figure for each unit, in the order of `frostbit.units`, as a float32 tensor; NaN where a unit has no such figure.
Nothing here changes what is trained: gradients and activations are only read, and no random number is drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from frostbit.nn import MultiheadAttention
from frostbit.units import Unit, units


class Scaler(Protocol):
    """The part of torch's ``GradScaler`` that is needed here."""

    def get_scale(self) -> float:
        """Return the factor on the loss."""


def took_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step that the optimizer was just asked for was really taken, to be asked in a post-step hook.

    Fused optimizers are called even on an overflow of mixed precision and look at this flag themselves.
    """
    overflow = getattr(optimizer, "found_inf", None)
    return overflow is None or not overflow.item()


class Listener(ABC):
    """Hooks on a model that exist from `listen` to `take` (or `close`), that is for one optimizer step.

    All training passes in between count, so gradient accumulation is one step. Passes without gradient or in
    evaluation mode do not.

    Args:
        model: a converted model.
        scaler: the ``GradScaler`` of float16 training. Gradients are divided by its scale; and where it skips a step,
            which changes the scale, what was heard for that step is forgotten.
    """

    def __init__(self, model: nn.Module, scaler: Scaler | None = None) -> None:
        self.model = model
        self.scaler = scaler
        self.loss_scale = 1.0
        self.units: list[Unit] = []
        self._handles: list[RemovableHandle] = []

    @property
    def listening(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def listen(self) -> None:
        """Put the hooks in place and forget what was heard before."""
        self.close()
        self.units = units(self.model)  # anew, for a progression replaces quantizers
        self._clear()
        if self.scaler is not None:
            self.loss_scale = self.scaler.get_scale()
            self._handles.append(self.model.register_forward_pre_hook(self._look_at_scale))
        for index, unit in enumerate(self.units):
            self._handles.extend(self._hooks(index, unit))

    def take(self) -> Tensor:
        """Return the figures of what was heard since `listen`, ``[units]``, and remove the hooks."""
        values = gather(self._values())
        self.close()
        return values

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _look_at_scale(self, *_: Any) -> None:
        assert self.scaler is not None
        scale = self.scaler.get_scale()
        if scale != self.loss_scale:
            self.loss_scale = scale
            self._clear()

    @abstractmethod
    def _clear(self) -> None:
        """Forget what was heard."""

    @abstractmethod
    def _hooks(self, index: int, unit: Unit) -> Iterator[RemovableHandle]:
        """Hook one unit."""

    @abstractmethod
    def _values(self) -> list[Tensor]:
        """Return each unit's figure, 0-dimensional."""


class GradientNorms(Listener):
    """Norm of the loss gradient that reaches each unit: ``(Σ_l ‖∂L/∂y_l‖²)^½`` over the outputs y_l of its layers.

    L is what ``backward()`` was called on. For an attention module y is what its output projection reads, for a unit
    without a layer its quantized activation. With several passes in a step (gradient accumulation) the sum runs over
    the outputs of all of them. It is 0 where the backward pass brings nothing: because something downstream blocks, or
    because the unit itself has left the backward pass. NaN stands for a unit that no hook saw run.

    Args:
        model: see `Listener`.
        scaler: see `Listener`.
    """

    def _clear(self) -> None:
        self._norms: list[Tensor | None] = [None] * len(self.units)

    def _values(self) -> list[Tensor]:
        return [torch.tensor(torch.nan) if norm is None else norm for norm in self._norms]

    def _hooks(self, index: int, unit: Unit) -> Iterator[RemovableHandle]:
        def output(module: nn.Module, args: Any, y: Tensor) -> None:
            if torch.is_grad_enabled() and module.training:
                self._follow(index, y)

        def attended(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled() and module.training:
                self._follow(index, args[0])

        for layer in unit.layers:
            if isinstance(layer, MultiheadAttention):
                yield layer.out_proj.register_forward_pre_hook(attended)
            else:
                yield layer.register_forward_hook(output)
        if not unit.layers and unit.input_quantizer is not None:
            yield unit.input_quantizer.register_forward_hook(output)

    def _follow(self, index: int, y: Tensor) -> None:
        if self._norms[index] is None:
            self._norms[index] = y.new_zeros((), dtype=torch.float32)
        if not y.requires_grad:
            return
        scale = self.loss_scale

        def heard(grad: Tensor) -> None:
            # in float32, whose range fp16 sums of squares leave; hypot, for squares of small norms underflow
            norm = torch.linalg.vector_norm(grad.detach(), dtype=torch.promote_types(grad.dtype, torch.float32)) / scale
            known = self._norms[index]
            self._norms[index] = norm if known is None else torch.hypot(known, norm.to(known.dtype))

        y.register_hook(heard)


class DeadChannels(Listener):
    """Share of each unit's binary input channels that are dead: one sign over all samples and positions of a step.

    What counts is the sign of what the unit's input quantizer reads, whatever its hardness: +1 for 0. A channel is a
    feature of the last dimension, for convolutions a channel. Of an attention module the query is read. NaN where
    a unit's layers read real values.

    Args:
        model: see `Listener`.
        scaler: see `Listener`.
    """

    def _clear(self) -> None:
        self._ranges: list[tuple[Tensor, Tensor] | None] = [None] * len(self.units)

    def _values(self) -> list[Tensor]:
        return [
            torch.tensor(torch.nan) if ends is None else ((ends[0] >= 0) | (ends[1] < 0)).float().mean()
            for ends in self._ranges
        ]

    def _hooks(self, index: int, unit: Unit) -> Iterator[RemovableHandle]:
        quantizer = unit.input_quantizer
        if quantizer is None:
            return
        dims = len(unit.feature_shape or (1,))

        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not (torch.is_grad_enabled() and module.training):
                return
            x: Tensor = next(iter((*args, *kwargs.values()))).detach()
            others = [dim for dim in range(x.dim()) if dim != max(x.dim() - dims, 0)]
            low, high = (x, x) if not others else (x.amin(others), x.amax(others))
            known = self._ranges[index]
            self._ranges[index] = (
                (low, high) if known is None else (torch.minimum(known[0], low), torch.maximum(known[1], high))
            )

        first = unit.layers[0] if unit.layers and unit.layers[0].input_quantizer is quantizer else quantizer
        yield first.register_forward_pre_hook(read, with_kwargs=True)


class SignFlips:
    """Share of each unit's binary weights whose sign differs from the one at the last `take` (at first: now).

    The sign of 0 is +1. A weight that flips there and back in between has not flipped. Direct weights are compared in
    the same way as latents. NaN where a unit has no binary weights.

    Args:
        model: a converted model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        #: bool, for each unit one tensor for each of its binary weights: True for +1
        self.signs = self._now()

    def _now(self) -> list[list[Tensor]]:
        found = units(self.model)
        return [[whole(parameter) >= 0 for _, parameter, _ in unit.weight_quantizers()] for unit in found]

    def take(self) -> Tensor:
        """Return the shares, ``[units]`` on the CPU, and keep the present signs for the next time."""
        before, self.signs = self.signs, self._now()
        pairs = [list(zip(old, new, strict=True)) for old, new in zip(before, self.signs, strict=True)]
        return gather([share_of([a.to(b.device) != b for a, b in pair]) for pair in pairs])

    def state_dict(self) -> dict[str, Any]:
        """Return the signs, eight to a byte."""
        return {"signs": [[pack_bits(signs) for signs in unit] for unit in self.signs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare with the signs of `state_dict` next."""
        self.signs = [
            [unpack_bits(bits, mine.shape) for bits, mine in zip(saved, unit, strict=True)]
            for saved, unit in zip(state["signs"], self.signs, strict=True)
        ]


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter's values; of a sharded one all of them, for which every process must ask."""
    gathered = getattr(parameter.detach(), "full_tensor", None)
    values: Tensor = parameter.detach() if gathered is None else gathered()
    return values


def share_of(flags: Sequence[Tensor]) -> Tensor:
    """Return the share of True over several bool tensors together, 0-dimensional; NaN for none."""
    if not flags:
        return torch.tensor(torch.nan)
    return torch.stack([each.sum() for each in flags]).sum() / sum(each.numel() for each in flags)


def gather(values: Sequence[Tensor]) -> Tensor:
    """Return 0-dimensional tensors as one float32 vector on the CPU, waiting for their device once."""
    device = next((value.device for value in values if value.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([value.detach().to(device, torch.float32) for value in values]).cpu()


def pack_bits(signs: Tensor) -> Tensor:
    """Return a bool tensor as flat uint8 on the CPU, the first entry in the lowest bit, zeros at the end."""
    flat = signs.flatten().to("cpu", torch.uint8)
    flat = torch.cat([flat, flat.new_zeros(-flat.numel() % 8)]).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return what `pack_bits` packed, in its shape."""
    flat = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return flat.flatten()[: shape.numel()].bool().view(shape)
