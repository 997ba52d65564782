"""Schedules: the share of a window's entries that are frozen, as a function of the share of the window done."""

from __future__ import annotations

import math
from collections.abc import Callable

from frostbit.registry import check_choice

Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "cubic": lambda x: x**3,
    "linear": lambda x: x,
    "quadratic": lambda x: x**2,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "flipped_quadratic": lambda x: 1 - (1 - x) ** 2,
}


def resolve(schedule: str | Schedule) -> Schedule:
    """Return a schedule by name, or a function ``p(x)`` with ``p(0) = 0`` and ``p(1) = 1`` as it is.

    Args:
        schedule: a name from `SCHEDULES`, or the function.

    Returns:
        The function from [0, 1] to [0, 1].

    Raises:
        ValueError: unknown name, or a function that does not end at 1.
    """
    if isinstance(schedule, str):
        return SCHEDULES[check_choice("schedule", schedule, SCHEDULES)]
    if not math.isclose(schedule(1.0), 1.0):
        raise ValueError(f"a schedule must end at p(1) = 1, found {schedule(1.0)}")
    return schedule
