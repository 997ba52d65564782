"""From an exported graph to a list of operations, by one table of ATen operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from frostbit.deploy.values import (
    KEEPS_KIND,
    RESULT_KIND,
    Exact,
    Graph,
    Kind,
    Node,
    Partial,
    Size,
    Value,
    size_of,
    sizes_of,
)
from frostbit.errors import UsageError

Handler = TypeVar("Handler", bound=Callable[..., Any])
#: ATen operator → what it becomes; `frostbit.deploy.aten` fills it
HANDLERS: dict[Any, Callable[..., Any]] = {}
#: operators that give the same on a whole constant as on the part of it that is used
POINTWISE: set[Any] = set()
#: what to do instead, where there is something better to say than the general advice
ADVICE = {
    "aten.log_softmax": "leave it out of the model: classes and probabilities follow from the logits",
    "aten._log_softmax": "leave it out of the model: classes and probabilities follow from the logits",
}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    """Return a decorator that files a handler ``(lowering, *args, **kwargs) -> result`` under ATen operators.

    Arguments are a `Value` for what is computed at run time, a tensor for a constant, a `Partial`, or plain numbers
    and lists as in the graph. At least one is no constant: operators on constants alone are simply run.
    """

    def add(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(targets, handler))
        return handler

    return add


class UnsupportedError(Exception):
    """What a handler raises: why this use of an operator cannot be expressed."""


def constant(x: Any, what: str) -> Tensor:
    """Return ``x`` if it is a constant; ``what`` is its name for the error."""
    if not isinstance(x, Tensor):
        raise UnsupportedError(f"its {what} is computed at run time, expected a constant")
    return x


def numbers(value: Any, count: int) -> list[int]:
    """Return one number for each of ``count`` dimensions, as torch reads a number or a list of one."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


class Lowering:
    """The state of one pass over an exported graph.

    Attributes:
        graph: what has been emitted so far.
        node: the ATen node in work.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self.node: fx.Node
        self._signs: dict[str, Value] = {}
        self._names: dict[str, int] = {}
        self._batch: dict[Size, Size] = {}

    def input(self, name: str, tensor: Tensor) -> Value:
        """Return the value of a new input; open first sizes are one and the same batch for all inputs."""
        sizes = sizes_of(tensor)
        if sizes and not isinstance(sizes[0], int):
            self._batch[sizes[0]] = next(iter(self._batch), sizes[0])
        kind: Kind = "real" if tensor.is_floating_point() else "index"
        value = Value(self._name(name), kind, self.sizes(tensor))
        self.graph.values[value.name] = value
        return value

    def sizes(self, tensor: Any) -> tuple[Size, ...]:
        """Return the shape of a (fake) tensor."""
        return tuple(n if isinstance(n, int) else n.subs(self._batch) for n in sizes_of(tensor))

    @property
    def shape(self) -> tuple[Size, ...]:
        """Shape of the ATen node's result."""
        return self.sizes(self.node.meta["val"])

    def emit(
        self,
        operation: str,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        *,
        shape: Sequence[Size] | None = None,
        kind: Kind | None = None,
        bound: int = 0,
        exact: Exact | None = None,
    ) -> Value:
        """Add one operation.

        Args:
            operation: its kind, see `frostbit_runtime.OPS`.
            inputs: what it reads; constants among them are made values.
            attrs: attributes.
            tensors: ``{role: constant}``, ``None`` where a role is left out.
            shape: of the result; that of the ATen node if left out.
            kind: of the result, where neither the operation nor its first input decides it.
            bound: the largest magnitude of exact sums.
            exact: see `Node`.

        Returns:
            The result.
        """
        values = [self.value(x) for x in inputs]
        if operation in KEEPS_KIND:
            kind, bound = values[0].kind, max(v.bound for v in values)
        name = self._name(self.node.name)
        sizes = self.shape if shape is None else tuple(shape)
        value = Value(name, kind or RESULT_KIND.get(operation, "real"), sizes, bound)
        stored = {role: t.detach() for role, t in (tensors or {}).items() if t is not None}
        path = module_path(self.node)
        self.graph.nodes.append(Node(operation, [v.name for v in values], name, dict(attrs or {}), stored, path, exact))
        self.graph.values[name] = value
        return value

    def affine(
        self, x: Any, axis: int | None, scale: Tensor | None, shift: Tensor | None, exact: Exact | None = None
    ) -> Value:
        """Return ``x · scale + shift`` along ``axis``, or with one number for all where ``axis`` is ``None``."""
        roles = {"scale": scale, "shift": shift}
        doubles = {role: None if t is None else t.double().flatten() for role, t in roles.items()}
        return self.emit("affine", [x], {"axis": axis}, doubles, shape=self.value(x).shape, exact=exact)

    def elementwise(self, operation: str, x: Any, **attrs: Any) -> Value:
        """Return an operation of one value; the ATen node itself says what torch computes."""
        node = self.node

        def exact(v: Tensor) -> Tensor:
            assert callable(node.target)
            y: Tensor = node.target(v, *node.args[1:], **node.kwargs)
            return y

        return self.emit(operation, [x], attrs, exact=exact)

    def sign(self, x: Any) -> Value:
        """Return the sign of ``x``, taken once however often it is asked for."""
        value = self.value(x)
        if value.kind == "sign":
            return value
        if value.name not in self._signs:
            self._signs[value.name] = self.emit("sign", [value], shape=value.shape)
        return self._signs[value.name]

    def value(self, x: Any) -> Value:
        """Return ``x`` as a value: a constant is repeated or cut to the size of a value that has it."""
        if isinstance(x, Value):
            return x
        if isinstance(x, Tensor):
            x = Partial(x, tuple(x.shape))
        if not isinstance(x, Partial):
            raise UnsupportedError(f"it reads {x!r} where it needs a tensor")
        fixed = [size if isinstance(size, int) else n for n, size in zip(x.full.shape, x.shape, strict=True)]
        full = x.full.expand(fixed)
        full = full if full.is_floating_point() else full.to(torch.int32)
        kind: Kind = "real" if full.is_floating_point() else "index"
        open_axes = [axis for axis, size in enumerate(x.shape) if not isinstance(size, int)]
        if open_axes == [0] and full.shape[0] == 1:
            like = self._with_size(x.shape[0], first=True)
            return self.emit("expand_like", [like], {}, {"value": full}, shape=x.shape, kind=kind)
        if len(open_axes) == 1:
            axis = open_axes[0]
            like = self._with_size(x.shape[axis])
            attrs = {"axis": axis, "reference_axis": like.shape.index(x.shape[axis])}
            return self.emit("crop_like", [like], attrs, {"value": full}, shape=x.shape, kind=kind)
        raise UnsupportedError(f"it reads a constant of shape {list(x.full.shape)} as one of shape {list(x.shape)}")

    def _with_size(self, size: Size, first: bool = False) -> Value:
        """Return some value with a dimension of that size; ``first``: as its first dimension."""
        for value in self.graph.values.values():
            if size in (value.shape[:1] if first else value.shape):
                return value
        raise UnsupportedError(f"nothing before it has a dimension of size {size}")

    def _name(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}.{count}"

    def call(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        """Return the result of one ATen node.

        Args:
            node: a ``call_function`` node.
            env: the results of those before it.

        Raises:
            UsageError: nothing expresses it.
        """
        self.node = node
        found = node.meta.get("val")
        if found is None:  # assertions about shapes and dtypes
            return None
        if isinstance(found, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return size_of(found)
        args: Any = fx.map_arg(node.args, lambda n: env[n])
        kwargs: Any = fx.map_arg(dict(node.kwargs), lambda n: env[n])
        run: Any = node.target
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, Value) for leaf in leaves):
            open_sizes = any(hasattr(leaf, "free_symbols") for leaf in leaves)
            if any(isinstance(leaf, Partial) for leaf in leaves) and run in POINTWISE and not open_sizes:
                whole = pytree.tree_map_only(Partial, lambda partial: partial.full, (args, kwargs))
                return Partial(run(*whole[0], **whole[1]), self.sizes(found))
            if not open_sizes and not any(isinstance(leaf, Partial) for leaf in leaves):
                return run(*args, **kwargs)
        handler = HANDLERS.get(run)
        if handler is None:
            raise unsupported(node)
        try:
            return handler(self, *args, **kwargs)
        except UnsupportedError as why:
            raise unsupported(node, str(why)) from None


@handles(operator.getitem)
def _getitem(low: Lowering, parts: Sequence[Any], index: int) -> Any:
    return parts[index]


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty")]
    return paths[-1] if paths else ""


def unsupported(node: fx.Node, why: str = "") -> UsageError:
    """Return the error for a node that a packed network cannot contain."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "model")}
    kind = str(list(stack.values())[-1][1]).rpartition(".")[2].rstrip("'>")
    name, path = str(node.target), module_path(node)
    where = f"module {path!r} ({kind})" if path else f"{kind}.forward"
    reason = why or "a packed network has no operation for it"
    advice = ADVICE.get(name.rpartition(".")[0], "replace it, or move it out of the model, behind its outputs")
    return UsageError(f"{name} in {where} cannot be packed, since {reason}: {advice}")
