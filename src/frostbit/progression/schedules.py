"""Schedules: the share of a window's entries that are frozen, as a function of the share of the window done."""

from __future__ import annotations

import math
from collections.abc import Callable

from frostbit.errors import UsageError
from frostbit.registry import check_choice

Schedule = Callable[[float], float]


def cubic(x: float) -> float:
    """Return ``x³``, the paper's schedule."""
    return x**3


def linear(x: float) -> float:
    """Return ``x``."""
    return x


def quadratic(x: float) -> float:
    """Return ``x²``."""
    return x**2


def cosine(x: float) -> float:
    """Return ``(1 − cos πx) / 2``."""
    return (1 - math.cos(math.pi * x)) / 2


def flipped_quadratic(x: float) -> float:
    """Return ``1 − (1 − x)²``."""
    return 1 - (1 - x) ** 2


# named functions, not lambdas: a progression can be pickled
SCHEDULES: dict[str, Schedule] = {
    schedule.__name__: schedule for schedule in (cubic, linear, quadratic, cosine, flipped_quadratic)
}


def resolve(schedule: str | Schedule) -> Schedule:
    """Return a schedule by name, or a function ``p(x)`` with ``p(0) = 0`` and ``p(1) = 1`` as it is.

    Args:
        schedule: a name from `SCHEDULES`, or the function.

    Returns:
        The function from [0, 1] to [0, 1].

    Raises:
        UsageError: unknown name, no function, or one that does not end at 1.
    """
    if isinstance(schedule, str):
        return SCHEDULES[check_choice("schedule", schedule, SCHEDULES)]
    if not callable(schedule):
        raise UsageError(f"schedule must be a name or a function, found {schedule!r}")
    if not math.isclose(schedule(1.0), 1.0):
        raise UsageError(f"a schedule must end at p(1) = 1, found {schedule(1.0)}")
    return schedule
