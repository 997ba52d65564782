"""How a value becomes ±1, and what gradient passes: quantizers by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from frostbit.errors import UsageError
from frostbit.quantizers import criterion
from frostbit.quantizers.base import Quantizer, from_pair, hard
from frostbit.quantizers.criterion import Decomposition
from frostbit.quantizers.direct import Direct
from frostbit.quantizers.masked import Masked
from frostbit.quantizers.prox import PARQ, BinaryRelax, ProxLinear
from frostbit.quantizers.smooth import Clip, SmoothApproxSign, SmoothEDE, SmoothSwishSign, Tanh
from frostbit.quantizers.surrogates import EDE, ApproxSign, Sign, STEClip, STEIdentity, SwishSign
from frostbit.quantizers.ternary import Ternary
from frostbit.registry import Registry, nearest

#: what is accepted wherever a quantizer is asked for
Spec = str | Quantizer | Mapping[str, Any] | tuple[Callable[..., Any] | None, Callable[..., Any]] | None

_registry: Registry[Quantizer] = Registry("quantizer")
for _name, _class in {
    "sign": Sign,
    "ste_identity": STEIdentity,
    "ste_clip": STEClip,
    "approx_sign": ApproxSign,
    "swish_sign": SwishSign,
    "bnn+": SwishSign,
    "ede": EDE,
    "clip": Clip,
    "direct": Direct,
    "prox_linear": ProxLinear,
    "parq": PARQ,
    "binary_relax": BinaryRelax,
    "smooth_swish_sign": SmoothSwishSign,
    "bnn++": SmoothSwishSign,
    "tanh": Tanh,
    "smooth_approx_sign": SmoothApproxSign,
    "smooth_ede": SmoothEDE,
    "ternary": Ternary,
}.items():
    _registry.register(_name)(_class)

register = _registry.register
list = _registry.list


def create(name: str, **arguments: Any) -> Quantizer:
    """Make a quantizer by name.

    Args:
        name: a registered name, see `frostbit.quantizers.list`.
        **arguments: the quantizer's own arguments, e.g. ``hardness=5.0``.

    Returns:
        A new quantizer.

    Raises:
        UsageError: unknown name, an argument that this quantizer does not take, or a value that it cannot have.
    """
    factory = _registry.get(name)
    known = inspect.signature(factory).parameters
    for argument in arguments:
        if argument not in known:
            raise UsageError(f"quantizer {name!r} has no argument {argument!r}: {nearest(argument, known)}")
    try:
        return factory(**arguments)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"quantizer {name!r}: {error}") from error


def resolve(spec: Spec) -> Quantizer | None:
    """Turn what a user may write for a quantizer into a new, independent quantizer.

    Args:
        spec: an alias, ``{"name": alias, **arguments}``, a `Quantizer` (copied), a pair of functions
            ``(F, B)`` with F possibly ``None`` for sign, or ``None`` for no quantizer.

    Returns:
        A quantizer, or ``None``.

    Raises:
        UsageError: an unknown name or argument, a value that an argument cannot have, a quantizer with parameters of
            its own, or none of these.
    """
    quantizer = _made(spec)
    if quantizer is not None and any(True for _ in quantizer.parameters()):
        raise UsageError(
            f"{type(quantizer).__name__} has parameters, which would get no gradient: put what is learned, such as a "
            "shift or a slope, into a module in front of the layer"
        )
    return quantizer


def _made(spec: Spec) -> Quantizer | None:
    if spec is None:
        return None
    if isinstance(spec, str):
        return create(spec)
    if isinstance(spec, Quantizer):
        return copy.deepcopy(spec)
    if isinstance(spec, Mapping):
        if "name" not in spec:
            raise UsageError(f"a quantizer given as a table needs a 'name', found {dict(spec)}")
        return create(**spec)
    if isinstance(spec, tuple) and len(spec) == 2 and callable(spec[1]):
        return from_pair(*spec)
    raise UsageError(f"expected a quantizer, its name, a pair (F, B) or None, found {spec!r}")


def decompose(
    pair: Spec | Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    *,
    hardness: float | None = None,
    limit: float = 4.0,
    numerical: bool = False,
) -> Decomposition:
    """Say whether a pair (F, B) follows a proximal quantizer: the ProxConnect++ criterion.

    ``decompose("bnn++")``, ``decompose("ede", hardness=10)``, ``decompose(F, B)`` with functions of ``(w, h)`` and
    F possibly ``None`` for sign. Where the answer is not known in closed form, ``P = ∫ dF/B`` is integrated
    numerically, jumps and flat pieces included. At a jump of F, B is the mean of its two sides.

    Args:
        pair: whatever stands for a quantizer, see `resolve`, or the forward F.
        backward: B, if ``pair`` is F.
        hardness: the h at which the pair is judged; the quantizer's own if left out.
        limit: the numerical test looks at ``|w| ≤ limit``.
        numerical: integrate even where the answer is known.

    Returns:
        ``Decomposition(proximal, why, P, T)``.

    Raises:
        UsageError: no quantizer, a hardness for one that has none, or an F or B that is not finite.

    Source: Lu et al., ProxConnect++ (arXiv 2402.17710).
    """
    quantizer: Quantizer | None
    if isinstance(pair, str | Quantizer | Mapping | tuple):
        if backward is not None:
            raise UsageError(f"beside a backward the forward is a function of (w, h) or None, found {pair!r}")
        quantizer = resolve(pair)
    elif backward is not None:
        quantizer = from_pair(pair, backward, hardness)
    elif pair is not None:
        raise UsageError(f"decompose needs a backward function beside the forward one: decompose(F, B), found {pair!r}")
    else:
        quantizer = None
    if quantizer is None:
        raise UsageError("decompose needs a quantizer, its name or a pair of functions, found None")
    if hardness is not None and backward is None:
        if quantizer.hardness is None:
            raise UsageError(f"{type(quantizer).__name__} has no hardness, found hardness={hardness}")
        quantizer.hardness.fill_(hardness)
    return criterion.decompose(quantizer, limit=limit, numerical=numerical)


__all__ = [
    "EDE",
    "PARQ",
    "ApproxSign",
    "BinaryRelax",
    "Clip",
    "Decomposition",
    "Direct",
    "Masked",
    "ProxLinear",
    "Quantizer",
    "STEClip",
    "STEIdentity",
    "Sign",
    "SmoothApproxSign",
    "SmoothEDE",
    "SmoothSwishSign",
    "Spec",
    "SwishSign",
    "Tanh",
    "Ternary",
    "create",
    "decompose",
    "from_pair",
    "hard",
    "list",
    "register",
    "resolve",
]
