from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostbit_runtime.kernels import threads as parallel
from frostbit_runtime.kernels.threads import split

from .cases import examples


@examples
@given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 9))
def test_parts_cover_everything_once_and_begin_at_the_grain(size: int, threads: int, grain: int) -> None:
    parts: list[tuple[int, int]] = []
    split(lambda first, last: parts.append((first, last)), size, threads, 1, grain)
    assert sorted(i for first, last in parts for i in range(first, last)) == list(range(size))
    assert len(parts) <= threads
    assert all(first % grain == 0 for first, _ in parts)


@pytest.mark.parametrize(("cost", "count"), [(1000, 4), (500, 4), (250, 2), (125, 1), (0, 1)])
def test_no_more_parts_than_are_worth_it(cost: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH", 1000)
    parts: list[tuple[int, int]] = []
    split(lambda first, last: parts.append((first, last)), 8, 4, cost)
    assert len(parts) == count


def test_parts_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=20)
    split(lambda first, last: meeting.wait() and None, 3, 3, 1)


def test_an_error_in_any_part_is_raised() -> None:
    def work(first: int, last: int) -> None:
        if first > 0:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        split(work, 4, 2, 1)
