"""What several optimizers check of what a user wrote, and the nearest valid name for what is misspelt.

`frostbit.registry` answers wrong names everywhere else; optimizers import nothing of the library.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name among ``known`` that is most like ``name``, if one is at all."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence tail that helps with a wrong name: the nearest valid one, else the list of all."""
    names = sorted(known)
    close = closest(name, names)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(names) or 'none'}"


def check_model(owner: str, model: object) -> None:
    """Raise a ValueError unless ``model`` is one: other optimizers take its parameters in this place."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{owner} takes the model itself, a torch.nn.Module, found {type(model).__name__}")


def check_maker(owner: str, make: Any, arguments: Mapping[str, Any]) -> None:
    """Raise unless ``make(parameters, **arguments)`` can be called.

    Args:
        owner: what asks for an optimizer, for the message.
        make: should be an optimizer class, or whatever makes an optimizer from parameters.
        arguments: the keyword arguments.

    Raises:
        ValueError: an optimizer that exists already, something else that cannot be called, a misspelt argument.
    """
    if isinstance(make, Optimizer) or not callable(make):
        kind = type(make).__name__
        found = f"an optimizer that is made already: give its class, {kind}" if isinstance(make, Optimizer) else kind
        raise ValueError(f"{owner} needs an optimizer class such as torch.optim.Adam, found {found}")
    try:
        known = inspect.signature(make).parameters
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in arguments:
        if name not in known:
            called = getattr(make, "__name__", repr(make))
            raise ValueError(f"{owner}: {called} has no argument {name!r}: {nearest(name, known)}")
