"""What lowering works on: values, constants whose size is only known at run time, and a list of nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["real", "sign", "int", "index"]
#: one size: a number, or a symbolic expression of the sizes that are left open
Size = Any
#: what torch computes, elementwise, for ``[1, channels or 1, any]``
Exact = Callable[[Tensor], Tensor]

#: operations whose result is of their first input's kind
KEEPS_KIND = ("max_pool", "reshape", "permute", "expand_dims", "squeeze", "concat", "slice")
RESULT_KIND: dict[str, Kind] = {
    "sign": "sign",
    "threshold": "sign",
    "binary_conv": "int",
    "binary_conv_transpose": "int",
    "binary_dense": "int",
}


@dataclass(frozen=True)
class Value:
    """Something computed at run time.

    Attributes:
        name: unique in the graph.
        kind: real numbers, signs, exact sums, or indices.
        shape: sizes, some possibly symbolic.
        bound: the largest magnitude, for exact sums.
    """

    name: str
    kind: Kind
    shape: tuple[Size, ...]
    bound: int = 0

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


@dataclass(frozen=True)
class Partial:
    """A constant that is repeated or cut to sizes known at run time.

    Attributes:
        full: the constant; a dimension has the size of ``shape``, or is 1 (repeated), or is longer (cut).
        shape: sizes, some symbolic.
    """

    full: Tensor
    shape: tuple[Size, ...]


@dataclass
class Node:
    """One operation of the program to be; see `frostbit_runtime.OPS` for kinds, attributes and roles.

    Attributes:
        path: the module it comes from.
        exact: torch's own elementwise computation, where there is one.
        ``attrs["axis"]`` of an ``affine`` may be ``None``: one number for all channels.
    """

    kind: str
    inputs: list[str]
    output: str
    attrs: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    path: str = ""
    exact: Exact | None = None


@dataclass
class Graph:
    """Nodes in order of execution, the values they write, and which of these matter outside.

    Attributes:
        nodes: the operations.
        values: everything computed, inputs included, by name.
        outputs: names of the results.
        sites: for each place where torch takes the sign of activations, in order of execution, the value with it;
            ``None`` where nobody reads it.
    """

    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    sites: list[str | None] = field(default_factory=list)

    def readers(self) -> dict[str, int]:
        """Return how often each value is read, by nodes or as an output."""
        counts = dict.fromkeys(self.values, 0)
        for name in [*(name for node in self.nodes for name in node.inputs), *self.outputs]:
            counts[name] += 1
        return counts

    def producers(self) -> dict[str, Node]:
        """Return the node that writes each value that is no input."""
        return {node.output: node for node in self.nodes}

    def rename(self, names: dict[str, str]) -> None:
        """Let every reader of a key read the value of that name instead."""
        for node in self.nodes:
            node.inputs = [names.get(name, name) for name in node.inputs]
        self.outputs = [names.get(name, name) for name in self.outputs]
        self.sites = [names.get(name or "", name) for name in self.sites]


def is_binary(weight: Tensor) -> bool:
    """Whether all entries are −1 or +1."""
    return bool((weight.abs() == 1).all())


def sizes_of(tensor: Any) -> tuple[Size, ...]:
    """Return the shape of a (fake) tensor with symbolic sizes as expressions."""
    return tuple(size_of(size) for size in tensor.shape)


def size_of(size: Any) -> Size:
    """Return an int, or the expression of a symbolic one."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_number else expression
    return size


def known(sizes: Iterable[Size]) -> bool:
    """Whether all sizes are numbers."""
    return all(isinstance(size, int) for size in sizes)
