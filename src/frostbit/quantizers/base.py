"""The quantizer: how a value becomes ±1 and what gradient passes.

A quantizer is a pair of functions of a tensor ``x`` and one scalar hardness ``h``: the forward ``F(x, h)`` and
the backward factor ``B(x, h)``, so that ``y = F(x, h)`` and ``∂L/∂x = B(x, h) ⊙ ∂L/∂y``. Everything else in this
package (layers, progressions, plots, the criterion) works from that pair alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    if not _by_chunks(x):
        return _sign_into(torch.empty_like(x), torch.empty_like(x), x)
    # Three passes over a large tensor wait for memory; over a cache-sized part of it they do not.
    y, buffer = torch.empty_like(x), x.new_empty(_CHUNK)
    flat_x, flat_y = (t.as_strided((t.numel(),), (1,)) for t in (x, y))
    for part, out in zip(flat_x.split(_CHUNK), flat_y.split(_CHUNK), strict=True):
        _sign_into(out, buffer[: part.numel()], part)
    return y


_CHUNK = 65_536  # entries; three float32 chunks fit a core's second-level cache


def _by_chunks(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.numel() <= _CHUNK or torch.compiler.is_compiling():
        return False
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _sign_into(out: Tensor, buffer: Tensor, x: Tensor) -> Tensor:
    """Write the sign of ``x`` into ``out``, with a buffer of the same shape.

    `where` and a bool intermediate cost several times as much on a CPU, and a comparison alone would turn NaN into
    a sign: clamp(−1, −1) is −1 everywhere but keeps NaN.
    """
    torch.ge(x, 0, out=buffer)
    torch.clamp(x, -1, -1, out=out)
    return out.add_(buffer, alpha=2)


def pass_inside(grad: Tensor, x: Tensor, limit: float = 1.0) -> Tensor:
    """Return ``grad ⊙ 1{|x| ≤ limit}`` in one pass.

    Args:
        grad: any shape.
        x: same shape and dtype as ``grad``.
        limit: the largest magnitude that passes, inclusive: a latent held at ±limit must stay trainable.

    Returns:
        The masked gradient.
    """
    beyond = limit * (1 + torch.finfo(x.dtype).eps)  # hardtanh's own gradient excludes its ends
    return torch.ops.aten.hardtanh_backward(grad, x, -beyond, beyond)


class Quantizer(nn.Module):
    """A pair (F, B) with one scalar hardness; subclass it with an ``F``, a ``B`` or both.

    As it stands ``F`` is ``hard`` and ``B`` is 0. A subclass of about ten lines is complete::

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

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Mark a class that brings an F of its own as smooth, unless it says otherwise itself."""
        super().__init_subclass__(**keywords)
        if "F" in cls.__dict__ and "smooth" not in cls.__dict__:
            cls.smooth = True

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

    def F(self, x: Tensor, h: Tensor | None) -> Tensor:  # noqa: N802 - the field's name for the forward map
        """Return the forward value for ``x`` at hardness ``h``."""
        return hard(x)

    def B(self, x: Tensor, h: Tensor | None) -> Tensor:  # noqa: N802 - the field's name for the backward map
        """Return the factor that multiplies the gradient, same shape as ``x``."""
        return torch.zeros_like(x)

    @property
    def blocks(self) -> bool:
        """Whether no gradient passes, so that the output carries no autograd history."""
        return self._hardened or not self.trainable

    @property
    def frozen_share(self) -> float:
        """Share of entries that are exactly ±1 whatever the input: 1 for a hard F, 0 for a smooth one."""
        return 0.0 if self.smooth and not self.finished else 1.0

    def value(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the forward value in the quantizer's present state.

        Args:
            x: the tensor to quantize.
            scale: a factor on hard entries only (per-filter ``mean|w|``), broadcast against ``x``. It takes no
                part in the gradient: the scaled sign approximates the latent, whose own derivative is 1.

        Returns:
            A tensor like ``x``.
        """
        if self.smooth and not (self.finished or self._hardened):
            return self.F(x, self.hardness)
        y = hard(x)
        return y if scale is None else y * scale

    def pull(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return ``∂L/∂x = B(x, h) ⊙ grad``."""
        return grad * self.B(x, self.hardness)

    def compress(self, x: Tensor, value: Tensor) -> Tensor:
        """Return a smaller stand-in ``c`` with ``value(c) = value(x)`` and ``B(c) = B(x)``, kept for backward.

        The default is ``x`` itself. Surrogates that need only a sign and a range answer with int8, one byte an
        entry, and never 0: `expand` relies on it.

        Args:
            x: the tensor that was quantized.
            value: its ``value(x)``, without scale.

        Returns:
            ``x``, or an int8 tensor of its shape.
        """
        return x

    def expand(self, c: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return ``(x', value(x'))`` for what `compress` gave, in ``dtype``; x' stands for x in `pull`."""
        x = c.to(dtype)
        return x, (c.clamp(-1, 1).to(dtype) if c.dtype == torch.int8 else self.value(x))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Quantize ``x`` (any shape); autograd sees the pair. Arguments as in `value`."""
        if self.blocks or not torch.is_grad_enabled():
            return self.value(x.detach(), scale)
        y: Tensor = _Quantize.apply(x, scale, self)
        return y

    def extra_repr(self) -> str:
        """Show the hardness, if there is one."""
        return "" if self.hardness is None else f"hardness={self.hardness.item():.4g}"


class _Quantize(torch.autograd.Function):
    """Autograd's view of one quantizer: saves what B needs and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, quantizer: Quantizer) -> Tensor:
        ctx.quantizer = quantizer
        value = quantizer.value(x)
        ctx.save_for_backward(quantizer.compress(x, value))
        return value if scale is None else quantizer.value(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (c,) = ctx.saved_tensors
        return ctx.quantizer.pull(grad, c.to(grad.dtype)), None, None


def _as_hardness(value: float | None) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
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
