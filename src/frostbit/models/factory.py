"""From a name and keyword arguments to a model, with wrong names and values answered in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from frostbit.errors import UsageError
from frostbit.registry import Registry, nearest

MODELS: Registry[nn.Module] = Registry("model")


def create(name: str, **kwargs: Any) -> nn.Module:
    """Build a float model.

    Args:
        name: one of `list_models`, e.g. ``"resnet18"``.
        **kwargs: the model's own arguments; the image models share ``num_classes``, ``input_size``,
            ``in_channels`` and ``init`` (see `frostbit.models.resnet`, `frostbit.models.mlp`);
            ``"bert"`` reads texts and has others (see `frostbit.models.bert`).

    Returns:
        A model in training mode, freshly initialized unless it was loaded from a checkpoint. An image model's
        attribute ``input_shape`` is ``(C, H, W)``, the shape of one input that it was built for.

    Raises:
        UsageError: unknown model name or argument, or a value that the model cannot have.
    """
    factory = MODELS.get(name)
    known = arguments(name)
    for argument in kwargs:
        if argument not in known:
            raise UsageError(f"model {name!r} has no argument {argument!r}: {nearest(argument, known)}")
    return factory(**kwargs)


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Return a decorator that gives a model of one's own a name.

    Args:
        name: what `create`, recipes and the command line shall call it.

    Returns:
        The decorator, for a class or function that makes the model. A recipe gives it ``num_classes``, ``input_size``
        and ``in_channels``, and what ``model.args`` holds; the model's attribute ``input_shape`` is ``(C, H, W)``.

    Raises:
        ValueError: the name is taken.
    """
    return MODELS.register(name)


def arguments(name: str) -> list[str]:
    """Return the names of the arguments that a model takes.

    Args:
        name: one of `list_models`.

    Raises:
        UsageError: unknown model name.
    """
    return list(inspect.signature(MODELS.get(name)).parameters)


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names of the models that match a glob.

    Args:
        pattern: a shell-style pattern such as ``"resnet*"``.

    Returns:
        The names that `create` accepts.
    """
    return MODELS.list(pattern)


def check_at_least(model: str, argument: str, value: object, least: int, why: str = "") -> int:
    """Return ``value`` if it is a whole number not below ``least``.

    Args:
        model: the model's name, for the message.
        argument: the argument's name, for the message.
        value: what the user gave.
        least: the smallest legal value.
        why: a reason to put behind the bound, if it is not obvious.

    Returns:
        ``value`` itself.

    Raises:
        UsageError: ``value`` is no integer or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        reason = f" ({why})" if why else ""
        raise UsageError(f"model {model!r} needs {argument} to be an integer >= {least}{reason}, found {value!r}")
    return value
