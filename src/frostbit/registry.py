"""Names: one place that resolves string aliases and answers a wrong one with the nearest valid name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from frostbit.errors import UsageError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence tail that helps with a wrong name: the nearest valid one, else the list of all.

    Args:
        name: what the user wrote.
        known: the valid names.

    Returns:
        ``"did you mean 'x'?"`` if some name is close, else ``"known: a, b, c"``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def check_choice(what: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``known``, else raise one clear sentence.

    Args:
        what: the kind of thing, for the message, e.g. ``"schedule"``.
        name: what the user wrote.
        known: the valid names.

    Returns:
        ``name`` itself.

    Raises:
        UsageError: ``name`` is not among ``known``; the message holds the nearest valid name.
    """
    known = list(known)
    if name not in known:
        raise UsageError(f"unknown {what} {name!r}: {nearest(str(name), known)}")
    return name


class Registry(Generic[T]):
    """A table from names to the factories of one kind of thing.

    Args:
        kind: what is registered, in the singular, for messages: ``"quantizer"``, ``"model"``, …
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Return a decorator that files a factory under ``name``.

        Args:
            name: the public name.

        Returns:
            The decorator; it returns the factory unchanged.

        Raises:
            ValueError: the name is already taken.
        """

        def add(factory: Callable[..., T]) -> Callable[..., T]:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._entries[name] = factory
            return factory

        return add

    def get(self, name: str) -> Callable[..., T]:
        """Return the factory filed under ``name``.

        Args:
            name: the public name.

        Returns:
            The factory.

        Raises:
            UsageError: unknown name; the message holds the nearest valid one.
        """
        return self._entries[check_choice(self.kind, name, self._entries)]

    def list(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a glob.

        Args:
            pattern: a shell-style pattern such as ``"resnet*"``.

        Returns:
            The matching names.
        """
        return sorted(fnmatch.filter(self._entries, pattern))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
