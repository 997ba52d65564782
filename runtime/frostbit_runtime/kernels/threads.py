"""Work in parts, one per thread: the kernels leave the interpreter's lock, and no part reads what another writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

#: nanoseconds of work that a part must be worth: about what it takes to hand it over and to hear of its end
WORTH = 30_000

_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the pools, but not their threads


def split(work: Callable[[int, int], None], size: int, threads: int, cost: float, grain: int = 1) -> None:
    """Call ``work(first, last)`` on parts that cover range(size), the first of them in the calling thread.

    Args:
        work: what to do for one part.
        size: number of items.
        threads: number of parts at most; >= 1.
        cost: about how many nanoseconds one item takes; there are no more parts than are worth it.
        grain: parts begin at multiples of it.
    """
    count = threads if cost * size >= WORTH * threads else int(cost * size / WORTH)
    if count <= 1 or size <= grain:
        work(0, size)
        return
    step = -(-size // (count * grain)) * grain
    parts = [(first, min(first + step, size)) for first in range(0, size, step)]
    if len(parts) > 1 and threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="frostbit")
    waiting = [_pools[threads].submit(work, *part) for part in parts[1:]]
    work(*parts[0])
    for each in waiting:
        each.result()
