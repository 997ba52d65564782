"""The quantizer: how a value becomes ±1 and what gradient passes.

A quantizer is a pair of functions of a tensor ``x`` and one scalar hardness ``h``: the forward ``F(x, h)`` and
the backward factor ``B(x, h)``, so that ``y = F(x, h)`` and ``∂L/∂x = B(x, h) ⊙ ∂L/∂y``. Everything else in this
package (layers, progressions, plots, the criterion) works from that pair alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from frostbit.errors import UsageError


def hard(x: Tensor) -> Tensor:
    """Return the sign of ``x`` with ``sign(±0) = +1``.

    Args:
        x: a real tensor of any shape and floating dtype.

    Returns:
        A tensor like ``x`` with exactly two values, −1 and +1. A NaN stays NaN: it never turns into a sign.

    Raises:
        TypeError: ``x`` is not of a floating dtype.
    """
    if not x.is_floating_point():
        raise TypeError(f"a quantizer needs a floating dtype, found {x.dtype}")
    x = x.detach()
    if torch.compiler.is_compiling():  # a compiler fuses by itself, and refuses `out=` for other layouts
        return x.clamp(-1, -1) + 2 * (x >= 0).to(x.dtype)
    y = torch.empty_like(x)
    for part, out in parts(x, y):
        sign_into(out, part)
    return y


def sign_into(out: Tensor, x: Tensor) -> None:
    """Write `hard` of ``x`` into ``out``, a tensor like it.

    `where` and a bool intermediate cost several times as much on a CPU, and a comparison alone would turn NaN into
    a sign: clamp(−1, −1) is −1 everywhere but keeps NaN.
    """
    at_least_zero = torch.ge(x, 0, out=torch.empty_like(x))
    torch.clamp(x, -1, -1, out=out).add_(at_least_zero, alpha=2)


_PART = 65_536  # entries; three float32 parts fit a core's second-level cache


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape and layout into flat parts for several elementwise passes each.

    Passes over a large tensor wait for memory, passes over a cache-sized part of it do not. On other devices, and
    for layouts with gaps, the tensors come in one piece.

    Args:
        *tensors: the first one's layout decides; the others were made by ``empty_like`` of it, or have its strides.

    Yields:
        Views of all tensors, to be read or written.
    """
    x = tensors[0]
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    same = all(t.stride() == x.stride() for t in tensors)
    if x.device.type != "cpu" or x.numel() <= _PART or not (dense and same):
        yield tensors
    else:
        yield from zip(*(t.as_strided((t.numel(),), (1,)).split(_PART) for t in tensors), strict=True)


def pass_inside(grad: Tensor, x: Tensor, limit: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Return ``grad ⊙ 1{|x| ≤ limit}`` in one pass.

    Args:
        grad: any shape.
        x: same shape and dtype as ``grad``.
        limit: the largest magnitude that passes, inclusive: a latent held at ±limit must stay trainable.
        out: where to write it, possibly ``grad`` itself; ``None`` for a new tensor.

    Returns:
        The masked gradient.
    """
    beyond = limit * (1 + torch.finfo(x.dtype).eps)  # hardtanh's own gradient excludes its ends
    backward = torch.ops.aten.hardtanh_backward
    if out is None or torch.compiler.is_compiling():
        inside: Tensor = backward(grad, x, -beyond, beyond)
        return inside
    inside = backward.grad_input(grad, x, -beyond, beyond, grad_input=out)
    return inside


def check_backward(then: object, now: object) -> None:
    """Refuse a backward pass that would not belong to its forward pass.

    Args:
        then: `Quantizer.moment` of all quantizers in the forward pass.
        now: the same in the backward pass.

    Raises:
        RuntimeError: a second derivative was asked for, or a mask, hardness or stage has changed in between.
    """
    if torch.compiler.is_compiling():
        return
    if torch.is_grad_enabled():
        raise RuntimeError("a surrogate gradient has no derivative of its own: create_graph=True cannot be had here")
    if then != now:
        raise RuntimeError("a quantizer changed between forward and backward: step the progression after backward()")


class Quantizer(nn.Module):
    """A pair (F, B) with one scalar hardness; subclass it with an ``F``, a ``B`` or both.

    As it stands ``F`` is ``extreme``, which is ``hard``, and ``B`` is 0. A subclass of about ten lines is complete::

        class Cosine(Quantizer):
            def B(self, x, h):
                return torch.cos(x.clamp(-1.57, 1.57))

    Args:
        hardness: how far ``F`` or ``B`` is from its soft end; ``None`` takes the class's default. It is held as a
            0-dimensional float32 tensor, so that a schedule can change it without recompiling a graph.
    """

    default_hardness: ClassVar[float | None] = None
    #: whether F is something else than ``hard`` (then the network is not binary yet); known from an F of one's own
    smooth: bool = False
    #: whether any gradient passes at all
    trainable: ClassVar[bool] = True
    #: whether the parameter itself is ±1 (`frostbit.quantizers.Direct`), so that there is no latent weight
    direct: ClassVar[bool] = False
    #: set by an optimizer that takes gradients at the latent: while training, a weight passes as it is
    at_latent: bool = False
    #: set by a `frostbit.Blockade`: no gradient passes, whatever the pair says; values stay as they are
    shut: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Mark a class that brings an F of its own as smooth, and drop shortcuts that stand for its parent's pair."""
        super().__init_subclass__(**keywords)
        own = cls.__dict__.keys()
        if "F" in own and "smooth" not in own:
            cls.smooth = True
        for shortcut, parts in (("pull", {"B"}), ("encode", {"F", "B", "extreme"})):
            if own & parts and shortcut not in own:
                setattr(cls, shortcut, getattr(Quantizer, shortcut))

    def __init__(self, hardness: float | None = None) -> None:
        super().__init__()
        if hardness is None:
            hardness = self.default_hardness
        elif self.default_hardness is None:
            raise UsageError(f"{type(self).__name__} has no hardness, found hardness={hardness}")
        # A plain attribute, not a buffer: it belongs to a progression, and a float state_dict must load strictly.
        self.hardness = _as_hardness(hardness)
        self.finished = False  # set by a progression at its end: F is `hard` from here on
        self._hardened = False  # set by `hardened`, for evaluation

    def F(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return the forward value for ``x`` at hardness ``h``."""
        return self.extreme(x)

    def extreme(self, x: Tensor) -> Tensor:
        """Return what every entry becomes in the end, whatever F is on the way: the sign, unless `binary` says no."""
        return hard(x)

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        """Return the factor that multiplies the gradient, same shape as ``x``."""
        return torch.zeros_like(x)

    @property
    def bypassed(self) -> bool:
        """Whether what comes in goes out as it is, gradient included."""
        return self.at_latent and self.training and not self._hardened

    @property
    def binary(self) -> bool:
        """Whether `extreme` is the sign, with its two values."""
        return True

    @property
    def is_sign(self) -> bool:
        """Whether what goes out is the sign of every entry, up to a scale."""
        return self.binary and not self.bypassed and (self._hardened or self.finished or not self.smooth)

    @property
    def blocks(self) -> bool:
        """Whether no gradient passes, so that the output carries no autograd history."""
        return self._hardened or self.shut or not self.trainable

    @property
    def frozen_share(self) -> float:
        """Share of entries that are exactly ±1 whatever the input: 1 for a hard F, 0 for a smooth one."""
        return 0.0 if self.smooth and not self.finished else 1.0

    @property
    def moment(self) -> object:
        """What the forward value depends on beside its input: two that are equal belong to one state."""
        return self.finished, self._hardened, None if self.hardness is None else self.hardness._version

    def value(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the forward value in the quantizer's present state.

        Args:
            x: the tensor to quantize.
            scale: a factor on hard entries (per-filter ``mean|w|``), broadcast against ``x``; a smooth F of which ±1
                are the levels is brought to these by its class. For the gradient see `scale_of_gradient`.

        Returns:
            A tensor like ``x``.
        """
        if self.smooth and not (self.finished or self._hardened):
            return _elementwise("F", self.F(x, self.hardness), x)
        y = self.extreme(x)
        return y if scale is None else y * scale

    def scale_of_gradient(self, scale: Tensor) -> Tensor | None:
        """Return the share of a scale that multiplies the gradient beside B, ``None`` for none.

        The scaled sign approximates the latent, whose own derivative is 1: none by default.
        """
        return None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``value(x)`` and what is kept for backward: a tensor that `decode` and `pull` take in x's place.

        The default keeps ``x`` itself. Surrogates that need only a sign and a range keep int8, one byte an entry.
        """
        return self.value(x), x

    def decode(self, kept: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``value(x)`` in ``dtype`` from what `encode` kept; int8 has the value's sign and is never 0."""
        return kept.clamp(-1, 1).to(dtype) if kept.dtype == torch.int8 else self.value(kept.to(dtype))

    def pull(self, grad: Tensor, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return ``∂L/∂x = B(x, h) ⊙ grad``.

        Args:
            grad: the gradient of the quantized value.
            x: what was quantized, or what `encode` kept of it.
            overwrite: whether the result may be written into ``grad``.
        """
        return grad * _elementwise("B", self.B(x, self.hardness), x)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Quantize ``x`` (any shape); autograd sees the pair. Arguments as in `value`."""
        if self.bypassed:
            return x
        if self.blocks or not torch.is_grad_enabled():
            return self.value(x.detach(), scale)
        y: Tensor = _Quantize.apply(x, scale, self)
        return y

    def __getstate__(self) -> dict[str, Any]:
        """Let a copy made inside `frostbit.hardened` be as the original is outside."""
        return {**self.__dict__, "_hardened": False}

    def extra_repr(self) -> str:
        """Show the hardness, if there is one."""
        return "" if self.hardness is None else f"hardness={self.hardness.item():.4g}"


class _Quantize(torch.autograd.Function):
    """Autograd's view of one quantizer: saves what B needs and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, quantizer: Quantizer) -> Tensor:
        ctx.quantizer = quantizer
        ctx.moment = None if torch.compiler.is_compiling() else quantizer.moment
        value, kept = quantizer.encode(x)
        ctx.save_for_backward(kept, scale)
        return value if scale is None else quantizer.value(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        kept, scale = ctx.saved_tensors
        check_backward(ctx.moment, None if torch.compiler.is_compiling() else ctx.quantizer.moment)
        return ctx.quantizer.pull(with_scale(grad, ctx.quantizer, scale), kept), None, None


def with_scale(grad: Tensor, quantizer: Quantizer, scale: Tensor | None) -> Tensor:
    """Return the gradient of a scaled value times what `Quantizer.scale_of_gradient` says of the scale."""
    factor = None if scale is None else quantizer.scale_of_gradient(scale)
    return grad if factor is None else grad * factor


def _elementwise(name: str, y: Tensor, x: Tensor) -> Tensor:
    """Return ``y`` if it has one entry for each of ``x``, or one for all: others would be broadcast without a word."""
    if isinstance(y, Tensor) and y.dim() and y.shape != x.shape:
        raise UsageError(f"{name} must act on each entry: expected shape {tuple(x.shape)}, found {tuple(y.shape)}")
    return y


def _as_hardness(value: float | None) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Real) or not 0 < value < math.inf:
        raise UsageError(f"hardness must be positive and finite, found {value!r}")
    return torch.tensor(float(value))


class _FromPair(Quantizer):
    """A quantizer made of two plain functions."""

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor | None], Tensor] | None,
        backward: Callable[[Tensor, Tensor | None], Tensor],
        hardness: float | None,
    ) -> None:
        super().__init__()
        self.hardness = _as_hardness(hardness)
        self.smooth = forward is not None
        self._pair = (forward, backward)

    def F(self, x: Tensor, h: Tensor | None) -> Tensor:
        forward = self._pair[0]
        return hard(x) if forward is None else forward(x, h)

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:
        return self._pair[1](x, h)


def from_pair(
    forward: Callable[[Tensor, Tensor | None], Tensor] | None,
    backward: Callable[[Tensor, Tensor | None], Tensor],
    hardness: float | None = None,
) -> Quantizer:
    """Make a quantizer from two functions ``F(x, h)`` and ``B(x, h)``.

    Args:
        forward: the forward map, or ``None`` for ``hard``.
        backward: the factor on the gradient.
        hardness: the initial ``h`` (positive); ``None`` if the functions ignore it.

    Returns:
        A quantizer that is accepted wherever an alias is.
    """
    return _FromPair(forward, backward, hardness)
