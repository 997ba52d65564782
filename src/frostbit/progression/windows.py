"""Windows: which steps of a run belong to which unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from frostbit.errors import UsageError
from frostbit.registry import nearest

Order = str | Sequence[int] | Sequence[str]
ORDERS = ("forward", "reverse", "global")


@dataclass(frozen=True)
class Window:
    """The steps ``start ≤ t < stop`` in which one unit is in transition."""

    unit: str
    start: int
    stop: int

    def progress(self, step: int) -> float:
        """Return the share of the window done by the forward of ``step``, in [0, 1].

        The forward of the window's local step j is at ``(j + 1) / T``, so its last forward is at 1.
        """
        return min(max((step - self.start + 1) / (self.stop - self.start), 0.0), 1.0)


def equal_lengths(steps: int, count: int) -> list[int]:
    """Split ``steps`` into ``count`` lengths that differ by one at most.

    Raises:
        UsageError: fewer steps than lengths.
    """
    if steps < count:
        raise UsageError(
            f"{steps} steps are too few for {count} units, which need a step each: train longer, or in smaller batches"
        )
    ends = [round(i * steps / count) for i in range(count + 1)]
    return [ends[i + 1] - ends[i] for i in range(count)]


def lay_out(names: Sequence[str], sequence: Sequence[int], lengths: Sequence[int], start: int = 0) -> dict[int, Window]:
    """Return ``{unit: its window}``, one window after another from step ``start`` on.

    Args:
        names: of all units.
        sequence: indices of the units in the order of freezing.
        lengths: of their windows, in that order.
        start: first step of the first window.
    """
    windows = {}
    for index, length in zip(sequence, lengths, strict=True):
        windows[index] = Window(names[index], start, start + length)
        start += length
    return windows


def permutation(order: Order, names: list[str]) -> list[int]:
    """Return the units' indices in the order of freezing.

    Args:
        order: ``"forward"``, ``"reverse"``, or a permutation of unit indices or names.
        names: of all units.

    Raises:
        UsageError: another word, or no permutation.
    """
    count = len(names)
    if isinstance(order, str):
        if order not in ORDERS:
            raise UsageError(f"unknown order {order!r}: {nearest(order, ORDERS)} (or a permutation of the units)")
        return list(range(count)) if order == "forward" else list(range(count - 1, -1, -1))
    indices = []
    for item in order:
        if isinstance(item, str) and item not in names:
            raise UsageError(f"order names no unit {item!r}: {nearest(item, names)}")
        indices.append(names.index(item) if isinstance(item, str) else int(item) if isinstance(item, Integral) else -1)
    if sorted(indices) != list(range(count)):
        raise UsageError(f"order must name each of the {count} units once, found {list(order)}")
    return indices
