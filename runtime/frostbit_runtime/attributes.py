"""What an attribute of an operation may be: each entry says it in words and tests it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Attr:
    """One attribute: what it must be, in words for the error, and whether a value is that."""

    what: str
    accepts: Callable[[Any], bool]


def _is_int(value: Any, low: int = -LARGEST) -> bool:
    return type(value) is int and low <= value <= LARGEST  # a bool is no int here


def _is_list(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return type(value) in (list, tuple) and all(accepts(item) for item in value)


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 2.0**127


def integer(low: int = -LARGEST) -> Attr:
    """An integer of at least ``low``."""
    return Attr("an integer" if low == -LARGEST else f"an integer >= {low}", lambda value: _is_int(value, low))


def integers(low: int = -LARGEST) -> Attr:
    """A list of integers of at least ``low``."""
    what = "a list of integers" if low == -LARGEST else f"a list of integers >= {low}"
    return Attr(what, lambda value: _is_list(value, lambda item: _is_int(item, low)))


def numbers(each: Attr) -> Attr:
    """A list whose every entry is what ``each`` accepts."""
    return Attr(f"a list, each entry {each.what}", lambda value: _is_list(value, each.accepts))


def choice(*values: Any) -> Attr:
    """One of the given values, of exactly its type."""
    pairs = [(type(value), value) for value in values]
    return Attr("one of " + ", ".join(map(repr, values)), lambda value: (type(value), value) in pairs)


def optional(attr: Attr) -> Attr:
    """``attr`` or null."""
    return Attr(f"{attr.what} or null", lambda value: value is None or attr.accepts(value))


FLAG = Attr("true or false", lambda value: type(value) is bool)
REAL = Attr("a finite number", _is_real)
POSITIVE = Attr("a number > 0", lambda value: _is_real(value) and value > 0)
PAIRS = Attr(
    "a list of pairs of integers >= 0",
    lambda value: _is_list(value, lambda pair: _is_list(pair, lambda item: _is_int(item, 0)) and len(pair) == 2),
)
SHAPE = Attr(
    "a list of integers >= 1, with 0 for a copied size and at most one -1",
    lambda value: _is_list(value, lambda item: _is_int(item, -1)) and list(value).count(-1) <= 1,
)
