"""What runs when, and what reads what: one flat list of the calls that a model makes.

The list comes from `torch.fx` where a model can be traced without an input, or from watching one real forward
pass, which works for any model and also gives shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frostbit.errors import UsageError
from frostbit.nn import BinaryLayer

#: functions that are a layer without a module; their second argument is the weight
LAYER_FUNCTIONS = {"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))}


@dataclass
class Call:
    """One call of a module without children, or of a torch function outside any such module.

    Attributes:
        name: the module's path, or the function's name.
        module: the module, or ``None`` for a function.
        inputs: indices of the calls whose results it reads, in argument order.
        nth: the how-manieth call of this module it is, from 0.
        in_shape: shape of the first tensor argument, if a real pass was watched.
        out_shape: shape of the first tensor result, likewise.
        weight_shape: shape of the matrix or kernel that a function of `LAYER_FUNCTIONS` was given, likewise.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    nth: int = 0
    in_shape: tuple[int, ...] | None = None
    out_shape: tuple[int, ...] | None = None
    weight_shape: tuple[int, ...] | None = None


@dataclass
class Graph:
    """The calls of one forward pass in order of execution."""

    calls: list[Call] = field(default_factory=list)

    def of(self, module: nn.Module) -> list[int]:
        """Return the indices of the calls of ``module``."""
        return [i for i, call in enumerate(self.calls) if call.module is module]


def trace(model: nn.Module, example_input: Any = None) -> Graph:
    """Return the calls that ``model`` makes.

    Args:
        model: any module.
        example_input: a batch: a tensor, a tuple of positional or a dict of keyword arguments. ``None`` builds one
            from ``model.input_shape`` where the model has it (those of `frostbit.models` do), else traces with
            `torch.fx`, which gives no shapes.

    Returns:
        The graph.

    Raises:
        UsageError: the model can neither be traced symbolically nor was a batch given, or it cannot run on it.
    """
    if example_input is None:
        example_input = default_example(model)
    return _symbolic(model) if example_input is None else _watch(model, example_input)


def default_example(model: nn.Module) -> Tensor | None:
    """Return a reproducible random batch of two for a model that says its ``input_shape``, else ``None``."""
    shape = getattr(model, "input_shape", None)
    if shape is None:
        return None
    like = next(model.parameters(), torch.empty(0))
    batch = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return batch.to(like.device, like.dtype)


def run_quietly(model: nn.Module, example_input: Any) -> None:
    """Run one evaluation-mode pass without gradient that leaves modes, statistics and random state as they were."""
    modes = {module: module.training for module in model.modules()}
    arguments, keywords = as_arguments(example_input)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            model.eval()
            model(*arguments, **keywords)
        finally:
            for module, mode in modes.items():
                module.training = mode


def as_arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that an example input stands for."""
    if isinstance(example_input, Mapping):  # a tokenizer's BatchEncoding is no dict
        return (), dict(example_input)
    return (tuple(example_input), {}) if isinstance(example_input, (tuple, list)) else ((example_input,), {})


def is_leaf(module: nn.Module) -> bool:
    """Whether calls inside ``module`` are its own affair: it has no layers inside, or is a whole to convert."""
    return (
        isinstance(module, (BinaryLayer, nn.MultiheadAttention))
        or all(name == "parametrizations" for name, _ in module.named_children())
        or (
            # a quantizer in the place of an activation is one call, whatever its quantizer is made of
            hasattr(module, "input_quantizer")
        )
    )


def _tensors(tree: Any) -> Iterator[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))


class _Watcher(TorchFunctionMode):
    """Records calls during a real pass. A tensor's identity says who produced it last (in-place calls included)."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.depth = 0  # > 0 inside a leaf module
        self.producer: dict[int, int] = {}
        self.alive: list[Tensor] = []  # so that no id is used twice
        self.counts: dict[nn.Module, int] = {}

    def record(self, name: str, module: nn.Module | None, inputs: Any, in_shape: Any, result: Any) -> None:
        nth = 0
        if module is not None:
            nth = self.counts.get(module, 0)
            self.counts[module] = nth + 1
        outputs = list({id(tensor): tensor for tensor in _tensors(result)}.values())
        out_shape = tuple(outputs[0].shape) if outputs else None
        index = len(self.graph.calls)
        self.graph.calls.append(Call(name, module, inputs, nth, in_shape, out_shape))
        for tensor in outputs:
            self.alive.append(tensor)
            self.producer[id(tensor)] = index
            if len(outputs) > 1:  # as in torch.fx, so that readers of two different results are told apart
                shape = tuple(tensor.shape)
                self.producer[id(tensor)] = len(self.graph.calls)
                self.graph.calls.append(Call("getitem", None, (index,), 0, shape, shape))

    def producers(self, tree: Any) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        tensors = list(_tensors(tree))
        known = dict.fromkeys(self.producer[id(t)] for t in tensors if id(t) in self.producer)
        return tuple(known), tuple(tensors[0].shape) if tensors else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.depth:
            return func(*args, **kwargs)
        inputs, in_shape = self.producers((args, kwargs))
        self.depth += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self.depth -= 1
        if any(True for _ in _tensors(result)):
            name = getattr(func, "__name__", str(func))
            self.record(name, None, inputs, in_shape, result)
            if name in LAYER_FUNCTIONS:
                self.graph.calls[-1].weight_shape = tuple((kwargs["weight"] if "weight" in kwargs else args[1]).shape)
        return result


@contextmanager
def _hooked(model: nn.Module, watcher: _Watcher) -> Iterator[None]:
    pending: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not is_leaf(module):
                continue

            def before(module: nn.Module, args: Any, kwargs: Any) -> None:
                pending.append(watcher.producers((args, kwargs)))
                watcher.depth += 1

            def after(module: nn.Module, args: Any, kwargs: Any, result: Any, name: str = name) -> None:
                watcher.depth -= 1
                inputs, in_shape = pending.pop()
                if watcher.depth == 0:
                    watcher.record(name, module, inputs, in_shape, result)

            first = module.register_forward_pre_hook(before, with_kwargs=True)
            last = module.register_forward_hook(after, with_kwargs=True)
            stack.callback(first.remove)
            stack.callback(last.remove)
        yield


def _watch(model: nn.Module, example_input: Any) -> Graph:
    watcher = _Watcher()
    # the arguments themselves are call 0, so that layers reading the input share a producer
    watcher.record("input", None, (), None, as_arguments(example_input))
    try:
        with _hooked(model, watcher), watcher:
            run_quietly(model, example_input)
    except Exception as error:
        raise UsageError(f"{type(model).__name__} cannot run on example_input ({_first_line(error)})") from error
    return watcher.graph


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)


def _symbolic(model: nn.Module) -> Graph:
    try:
        traced = _Tracer().trace(model)
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be traced without an input: pass example_input=, one batch"
        ) from error  # torch.fx speaks of its proxies, which is of no use here
    graph = Graph()
    index: dict[torch.fx.Node, int] = {}
    counts: dict[nn.Module, int] = {}
    for node in traced.nodes:
        if node.op == "output":
            continue
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        inputs: Iterable[int] = (index[source] for source in node.all_input_nodes)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        index[node] = len(graph.calls)
        nth = 0
        if module is not None:
            nth = counts.get(module, 0)
            counts[module] = nth + 1
        graph.calls.append(Call(str(name), module, tuple(inputs), nth))
    return graph


def walk_back(graph: Graph, index: int, through: Callable[[Call], bool]) -> int:
    """Return the first call, going back from ``index`` along first inputs, that ``through`` does not let pass."""
    while through(graph.calls[index]) and graph.calls[index].inputs:
        index = graph.calls[index].inputs[0]
    return index
