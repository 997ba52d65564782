"""Saying what is wrong with a program, in one sentence; sentences are only put together when needed."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from frostbit_runtime.errors import ProgramError

_MOST_NAMES = 500  # looked at for the nearest one


def require(condition: bool, message: str, *found: Any) -> None:
    """Raise `ProgramError` unless the condition holds.

    Args:
        condition: what must hold.
        message: the sentence.
        *found: at most one thing that the sentence ends with, cut to a readable length.

    Raises:
        ProgramError: it does not hold.
    """
    if not condition:
        raise ProgramError(message + "".join(f", found {repr(item)[:80]}" for item in found))


def require_known(name: str, known: Collection[str], message: str) -> None:
    """Raise `ProgramError` unless a name is known; the sentence ends with the nearest one that is.

    Args:
        name: any.
        known: the valid names.
        message: the sentence.

    Raises:
        ProgramError: the name is not among them.
    """
    if name not in known:
        names = sorted(known)[:_MOST_NAMES]
        close = difflib.get_close_matches(name[:80], [other[:80] for other in names], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)[:1000] or 'none'}"
        raise ProgramError(f"{message}: {hint}")
