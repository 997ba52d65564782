"""The fast network: a program planned into fused steps on packed signs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from frostbit_runtime.errors import InputError
from frostbit_runtime.held import Held
from frostbit_runtime.inputs import check_inputs
from frostbit_runtime.plan import plan
from frostbit_runtime.program import Array, Input, Program, Shape, Value
from frostbit_runtime.reference import infer_call

_REMEMBERED = 16  # input shapes whose intermediate shapes are kept
_LARGE = 31 << 20  # bytes; glibc learns from blocks below 32 MiB alone


def _keep_memory() -> None:
    """Let the process keep memory between steps: a large block, freed at once, raises what glibc's heap may hold free.

    Else the top of the heap goes back to the system after a step and is fetched again, page by page, in the next. At
    most 62 MiB stay; other C libraries do not notice.
    """
    np.empty(_LARGE, np.uint8)


class Network:
    """A packed network, ready to run; equal to `interpret` bit for bit, at any number of threads.

    Args:
        program: from `read`, or put together by hand; it is checked.

    Raises:
        ProgramError: the program is not well formed.
    """

    def __init__(self, program: Program) -> None:
        _keep_memory()
        self.program = program
        self._steps = plan(program)
        self._shapes: dict[tuple[Shape, ...], dict[str, Value]] = {}

    @property
    def info(self) -> Mapping[str, Any]:
        """What the file says about itself: producer, run, preprocessing, labels."""
        return self.program.info

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes, if the file holds them."""
        labels = self.program.info.get("labels")
        return None if labels is None else list(labels)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the network takes; ``None`` in a shape is any size."""
        return self.program.inputs

    def __call__(self, *arrays: Array, threads: int | None = None) -> Array | tuple[Array, ...]:
        """Run the network.

        Args:
            *arrays: one for each of :attr:`inputs`, of its shape and dtype, finite.
            threads: how many threads share the work, >= 1; ``None`` takes all processors this process may use. The
                result does not depend on it.

        Returns:
            The output, a tuple of them if there are several: float32, or int8 −1 and +1, or int32 sums.

        Raises:
            InputError: wrong arguments, in one sentence.
        """
        if threads is None:
            threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if threads < 1:
            raise InputError(f"threads must be at least 1, found {threads}")
        checked = check_inputs(self.inputs, arrays)
        values = self._values(checked)
        held = {
            item.name: Held(values[item.name].kind, a.shape, "plain", a)
            for item, a in zip(self.inputs, checked, strict=True)
        }
        for step in self._steps:
            operands = [held[name] for name in step.inputs]
            held[step.output] = step.action(operands, values[step.output], threads)
            for name in step.frees:
                del held[name]
        results = tuple(held[name].plain() for name in self.program.outputs)
        return results[0] if len(results) == 1 else results

    def _values(self, arrays: list[Array]) -> dict[str, Value]:
        shapes = tuple(array.shape for array in arrays)
        if shapes not in self._shapes:
            if len(self._shapes) >= _REMEMBERED:
                self._shapes.clear()
            self._shapes[shapes] = infer_call(self.program, arrays)
        return self._shapes[shapes]

    def warm_up(self, batch: int = 1) -> None:
        """Run once on zeros, so that every kernel is compiled (or read from its cache on disk).

        Args:
            batch: number of samples, >= 1; other open sizes are 1.
        """
        arrays = []
        for item in self.inputs:
            shape = [1 if size is None else size for size in item.shape]
            if item.shape[0] is None:
                shape[0] = batch
            arrays.append(np.zeros(shape, item.dtype))
        self(*arrays)
