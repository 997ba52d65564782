"""From a program to the steps that run it: what belongs together becomes one step.

A convolution or dense layer takes along what follows it as long as nothing else reads what lies between: pooling and
thresholds, scale and shift, a residual sum, a ReLU. Thresholds are monotone, so they come before the pooling they
follow. A dense layer of signs reads an image as it lies, its weight's columns reordered once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from frostbit_runtime import kernels, steps
from frostbit_runtime.check import check
from frostbit_runtime.program import Array, Op, Program, Shape, Value
from frostbit_runtime.rows import rowwise
from frostbit_runtime.steps import Action, Plain, Step, Tail
from frostbit_runtime.transposed import Transposed

_ELEMENTWISE = {"affine", "threshold", "add", "sub", "mul", "relu", "prelu", "clip"}


def plan(program: Program) -> list[Step]:
    """Return the steps of a program, weights prepared for the kernels.

    Args:
        program: any; it is checked.

    Returns:
        Steps in order, each freeing what nothing reads after it.

    Raises:
        ProgramError: the program is not well formed.
    """
    graph = _Graph(program, check(program))
    placed: dict[int, Step] = {}
    for index in range(len(program.ops)):
        if index not in graph.fused:
            at, step = graph.step(index)
            placed[at] = step
    return _freeing(_needed([placed[at] for at in sorted(placed)], program.outputs), program.outputs)


def _needed(placed: list[Step], outputs: tuple[str, ...]) -> list[Step]:
    """Drop steps whose result nothing reads."""
    wanted, kept = set(outputs), []
    for step in reversed(placed):
        if step.output in wanted:
            kept.append(step)
            wanted |= set(step.inputs)
    return kept[::-1]


def _freeing(placed: list[Step], outputs: tuple[str, ...]) -> list[Step]:
    last = {name: index for index, step in enumerate(placed) for name in step.inputs if name not in outputs}
    frees: list[list[str]] = [[] for _ in placed]
    for name, index in last.items():
        frees[index].append(name)
    return [replace(step, frees=tuple(names)) for step, names in zip(placed, frees, strict=True)]


@dataclass
class _Chain:
    """A layer and what is fused behind it: the last value, where it is written, and what the kernel does."""

    output: str
    at: int
    tail: Tail
    residual: str | None = None


class _Graph:
    """The program while steps are made of it."""

    def __init__(self, program: Program, values: Mapping[str, Value]) -> None:
        self.ops, self.stored, self.outputs, self.values = program.ops, program.tensors, program.outputs, values
        self.readers: dict[str, list[int]] = {}
        self.writer = {op.output: index for index, op in enumerate(program.ops)}
        for index, op in enumerate(program.ops):
            for name in op.inputs:
                self.readers.setdefault(name, []).append(index)
        self.fused: set[int] = set()

    def tensor(self, op: Op, role: str) -> Array | None:
        """Return an operation's decoded tensor, ``None`` if it has none of that role."""
        return self.stored[op.tensors[role]].decode() if role in op.tensors else None

    def tensors(self, op: Op) -> dict[str, Array]:
        """Return all of an operation's decoded tensors."""
        return {role: self.stored[name].decode() for role, name in op.tensors.items()}

    def dims(self, name: str) -> int:
        """Number of axes of a value."""
        return len(self.values[name].shape)

    def only_reader(self, name: str) -> int | None:
        """Return the one operation that reads a value, if there is just one and it is not taken."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs and readers[0] not in self.fused else None

    def step(self, index: int) -> tuple[int, Step]:
        """Return the step that an operation begins, and the index of the last operation in it."""
        op = self.ops[index]
        if op.kind in ("binary_conv", "conv"):
            return self._convolve(index)
        if op.kind in ("binary_dense", "dense"):
            return self._dense(index)
        return index, Step(op.inputs, op.output, self._action(op))

    def _action(self, op: Op) -> Action:
        dims = self.dims(op.output)
        if op.kind == "sign":
            return steps.take_sign
        if op.kind in _ELEMENTWISE:
            return steps.Elementwise(op, self.tensors(op), dims)
        if op.kind in ("binary_conv_transpose", "conv_transpose"):
            return self._transposed(op)
        if op.kind == "matmul":
            return steps.matmul
        if op.kind == "max_pool":
            return steps.MaxPool(op.attrs)
        if op.kind == "avg_pool":
            return steps.AvgPool(op.attrs)
        by_rows = rowwise(op, self.tensors(op), dims)
        if by_rows is not None:
            return by_rows
        plain = Plain(op, self.tensors(op))
        if op.kind == "permute":
            return steps.Permute(plain)
        if op.kind == "mean":
            dims = self.dims(op.inputs[0])
            if dims > 2 and sorted(axis % dims for axis in op.attrs["axes"]) == list(range(2, dims)):
                return steps.global_mean
        return plain

    def _weight(self, op: Op) -> Array:
        weight = self.stored[op.tensors["weight"]].decode()
        return weight if op.kind.startswith("binary") else weight.astype(np.float32)

    def _transposed(self, op: Op) -> Action:
        names = ("stride", "padding", "output_padding", "dilation", "groups")
        conv = Transposed(self._weight(op), *(op.attrs[name] for name in names))
        return steps.Convolve(conv, op.kind.startswith("binary"), Tail(self._bias(op)))

    def _bias(self, op: Op) -> dict[str, Any]:
        bias = self.tensor(op, "bias")
        return {} if bias is None else {"bias": bias.astype(np.float32)}

    def _convolve(self, index: int) -> tuple[int, Step]:
        op, binary, weight = self.ops[index], self.ops[index].kind == "binary_conv", self._weight(self.ops[index])
        stride, dilation, groups = tuple(op.attrs["stride"]), tuple(op.attrs["dilation"]), op.attrs["groups"]
        padding = tuple((before, after) for before, after in op.attrs["padding"])
        conv: Any
        if binary:
            conv = kernels.BinaryConv(weight, stride, padding, dilation, groups, op.attrs["pad_value"])
        else:
            conv = kernels.RealConv(weight, stride, padding, dilation, groups)
        chain = self._follow(index, binary, 1)
        sizes = partial(_conv_sizes, attrs=op.attrs, kernel=weight.shape[2:])
        return self._fused(op.inputs[0], chain, steps.Convolve(conv, binary, chain.tail, sizes))

    def _dense(self, index: int) -> tuple[int, Step]:
        op, binary, weight = self.ops[index], self.ops[index].kind == "binary_dense", self._weight(self.ops[index])
        source = op.inputs[0]
        chain = self._follow(index, binary, self.dims(op.output) - 1)
        if not binary:
            return self._fused(source, chain, steps.Dense(kernels.RealDense(weight), False, chain.tail))
        image, layout = self._flattened(source), None
        if image is not None:  # it lies with its channels last, so the weight's columns go by position, then channel
            layout = (self.values[image].shape[1], weight.shape[1] // self.values[image].shape[1])
            weight = weight.reshape(len(weight), *layout).swapaxes(1, 2).reshape(len(weight), -1)
        dense = kernels.BinaryDense(np.ascontiguousarray(weight))
        return self._fused(image or source, chain, steps.Dense(dense, True, chain.tail, layout))

    def _flattened(self, name: str) -> str | None:
        """Return the image that a value is the flattening of, if its words line up without gaps."""
        op = self.ops[self.writer[name]] if name in self.writer else None
        if op is None or op.kind != "reshape":
            return None
        image, flat = self.values[op.inputs[0]].shape, self.values[name].shape
        fits = len(flat) == 2 < len(image) and image[0] == flat[0] and image[1] % 32 == 0
        return op.inputs[0] if fits else None

    def _fused(self, source: str, chain: _Chain, action: Action) -> tuple[int, Step]:
        inputs = (source,) if chain.residual is None else (source, chain.residual)
        return chain.at, Step(inputs, chain.output, action)

    def _follow(self, index: int, binary: bool, axis: int) -> _Chain:
        """Walk along what can be fused behind a layer whose channels lie along ``axis``."""
        op = self.ops[index]
        chain = _Chain(op.output, index, Tail(self._bias(op)))
        if binary and self._take_thresholds(chain, axis):
            return chain
        self._take_affine(chain, axis)
        self._take_residual(chain)
        if self._next(chain, "relu") is not None:
            self._take(chain, Tail({**chain.tail.options, "relu": True}, chain.tail.residual))
        return chain

    def _next(self, chain: _Chain, kind: str, axis: int | None = None) -> Op | None:
        """Return what comes next, if it is of this kind and works along this axis."""
        index = self.only_reader(chain.output)
        if index is None or self.ops[index].kind != kind:
            return None
        op = self.ops[index]
        return op if axis is None or op.attrs["axis"] % self.dims(chain.output) == axis else None

    def _take(self, chain: _Chain, tail: Tail) -> None:
        index = self.only_reader(chain.output)
        assert index is not None
        self.fused.add(index)
        chain.output, chain.at, chain.tail = self.ops[index].output, index, tail

    def _take_thresholds(self, chain: _Chain, axis: int) -> bool:
        pool = self._next(chain, "max_pool") if axis == 1 else None  # else the pooling mixes channels
        if pool is not None:
            behind = _Chain(pool.output, 0, Tail())
            if self._next(behind, "threshold", axis) is None:
                return False
            self._take(chain, Tail(pool=pool.attrs))
        op = self._next(chain, "threshold", axis)
        if op is None:
            return False
        at, flip = self.tensor(op, "at"), self.tensor(op, "flip")
        assert at is not None
        assert flip is not None
        self._take(chain, Tail({"at": at.astype(np.int32), "flip": flip > 0}, pool=chain.tail.pool))
        return True

    def _take_affine(self, chain: _Chain, axis: int) -> None:
        op = self._next(chain, "affine", axis)
        if op is not None:
            roles = {role: array.astype(np.float32) for role, array in self.tensors(op).items()}
            self._take(chain, Tail({**chain.tail.options, **roles}))

    def _take_residual(self, chain: _Chain) -> None:
        op = self._next(chain, "add")
        if op is None or len(op.inputs) != 2:
            return
        (other,) = [name for name in op.inputs if name != chain.output]
        if self.values[other].shape == self.values[chain.output].shape:
            chain.residual = other
            self._take(chain, Tail(chain.tail.options, residual=True))


def _conv_sizes(sizes: Shape, attrs: Mapping[str, Any], kernel: Shape) -> Shape:
    rows = zip(sizes, kernel, attrs["stride"], attrs["dilation"], attrs["padding"], strict=True)
    return tuple((n + sum(pads) - d * (k - 1) - 1) // s + 1 for n, k, s, d, pads in rows)
