"""How a value becomes ±1, and what gradient passes: quantizers by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from frostbit.errors import UsageError
from frostbit.quantizers.base import Quantizer, from_pair, hard
from frostbit.quantizers.masked import Masked
from frostbit.quantizers.smooth import Clip
from frostbit.quantizers.surrogates import EDE, ApproxSign, Sign, STEClip, STEIdentity, SwishSign
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
        UsageError: unknown name, or an argument that this quantizer does not take.
    """
    factory = _registry.get(name)
    known = inspect.signature(factory).parameters
    for argument in arguments:
        if argument not in known:
            raise UsageError(f"quantizer {name!r} has no argument {argument!r}: {nearest(argument, known)}")
    return factory(**arguments)


def resolve(spec: Spec) -> Quantizer | None:
    """Turn what a user may write for a quantizer into a new, independent quantizer.

    Args:
        spec: an alias, ``{"name": alias, **arguments}``, a `Quantizer` (copied), a pair of functions
            ``(F, B)`` with F possibly ``None`` for sign, or ``None`` for no quantizer.

    Returns:
        A quantizer, or ``None``.

    Raises:
        UsageError: an unknown name or argument.
        TypeError: ``spec`` is none of these.
    """
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
    raise TypeError(f"expected a quantizer, its name, a pair (F, B) or None, found {spec!r}")


__all__ = [
    "EDE",
    "ApproxSign",
    "Clip",
    "Masked",
    "Quantizer",
    "STEClip",
    "STEIdentity",
    "Sign",
    "Spec",
    "SwishSign",
    "create",
    "from_pair",
    "hard",
    "list",
    "register",
    "resolve",
]
