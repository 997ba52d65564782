from __future__ import annotations

import threading

import pytest
from frostbit_runtime.kernels.threads import split
from hypothesis import given
from hypothesis import strategies as st

from .cases import examples


@examples
@given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 9))
def test_parts_cover_everything_once_and_begin_at_the_grain(size: int, threads: int, grain: int) -> None:
    parts: list[tuple[int, int]] = []
    split(lambda first, last: parts.append((first, last)), size, threads, grain)
    assert sorted(i for first, last in parts for i in range(first, last)) == list(range(size))
    assert len(parts) <= threads
    assert all(first % grain == 0 for first, _ in parts)


def test_parts_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=20)
    split(lambda first, last: meeting.wait() and None, 3, 3)


def test_an_error_in_any_part_is_raised() -> None:
    def work(first: int, last: int) -> None:
        if first > 0:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        split(work, 4, 2)
