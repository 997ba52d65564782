"""From a packed model to its list of operations: one export by torch, one pass over the graph, a few rewrites."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils import _pytree as pytree

from frostbit.deploy import aten, passes
from frostbit.deploy.lower import HANDLERS, Lowering
from frostbit.deploy.values import Graph, Value, sizes_of
from frostbit.errors import UsageError
from frostbit.graph import as_arguments

assert aten  # its import fills the table

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Lowered:
    """A network as a list of operations.

    Attributes:
        graph: the operations, rewritten.
        inputs: ``(name, sizes, dtype)`` of each input, in the order of the model's; a size is ``None`` where any
            will do.
    """

    graph: Graph
    inputs: list[tuple[str, tuple[int | None, ...], str]]


def lower(packed: nn.Module, example_input: Any) -> Lowered:
    """Return the operations of a packed model, in float32.

    The batch stays open, and so does the length of sequences (the second dimension of indices ``[N, T]`` and of
    features ``[N, T, C]``) wherever the network allows.

    Args:
        packed: from `frostbit.deploy.convert`.
        example_input: a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        UsageError: torch cannot export the model, or it contains something that a packed network cannot.
    """
    network = copy.deepcopy(packed).cpu().float().eval()
    arguments = pytree.tree_map_only(Tensor, _plain, as_arguments(example_input))
    try:
        return _lower(network, arguments, sequences=True)
    except UsageError:
        if not any(_has_length(leaf) for leaf in pytree.tree_leaves(arguments)):
            raise
    return _lower(network, arguments, sequences=False)


def _plain(tensor: Tensor) -> Tensor:
    """Return a float32 or int64 tensor on the CPU, of at least two samples: torch.export takes 1 for a constant."""
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise UsageError(f"a packed network reads real numbers and indices, found an input of {tensor.dtype}")
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor.long()
    return tensor.repeat_interleave(2, 0) if tensor.dim() and len(tensor) == 1 else tensor


def _has_length(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() == (3 if leaf.is_floating_point() else 2)


def export(network: nn.Module, arguments: Arguments, sequences: bool, strict: bool = False) -> ExportedProgram:
    """Return torch's graph in functional ATen, with the operators of our table left whole.

    Args:
        network: in evaluation mode.
        arguments: positional and keyword arguments, at least two samples.
        sequences: whether lengths of sequences may stay open too.
        strict: whether torch reads the code instead of running it.
    """

    def open_sizes(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return None
        return {0: Dim.AUTO, 1: Dim.AUTO} if sequences and _has_length(leaf) else {0: Dim.AUTO}

    args, kwargs = arguments
    shapes = pytree.tree_map(open_sizes, args or kwargs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about its own code
        try:
            exported = torch.export.export(network, args, kwargs, dynamic_shapes=shapes, strict=strict)
            if not all(_plain_call(node) for node in exported.graph.nodes):  # it costs as much as the export itself
                known = torch.export.default_decompositions().items()
                exported = exported.run_decompositions({target: how for target, how in known if target not in HANDLERS})
            return exported
        except Exception as error:
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UsageError(
                f"torch cannot export {type(network).__name__}, so it cannot be packed ({line})"
            ) from error


def _fixed_batch(exported: ExportedProgram) -> int | None:
    """Return the first size of the first input if it is a number."""
    names = set(exported.graph_signature.user_inputs)
    found = (node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder" and node.name in names)
    sizes = next((sizes_of(tensor) for tensor in found if isinstance(tensor, Tensor)), ())
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


def _plain_call(node: fx.Node) -> bool:
    """Whether a node is as our table wants it: an operator that it has, and that changes nothing in place."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
        return True
    target: Any = node.target
    return target in HANDLERS and not (hasattr(target, "_schema") and target._schema.is_mutable)


def _lower(network: nn.Module, arguments: Arguments, sequences: bool) -> Lowered:
    exported = export(network, arguments, sequences)
    if _fixed_batch(exported) is not None:
        # len(x) and the like make numbers of sizes; torch's other, slower way to look at the code sees through them
        exported = export(network, arguments, sequences, strict=True)
    batch = _fixed_batch(exported)
    if batch is not None:
        raise UsageError(
            f"{type(network).__name__} fixes its batch to {batch} in forward, so it cannot be packed: take sizes from "
            "x.shape and do not make numbers of them"
        )
    signature = exported.graph_signature
    specs = {getattr(spec.arg, "name", None): spec for spec in signature.input_specs}
    lowering, env, inputs = Lowering(), dict[fx.Node, Any](), []
    for node in exported.graph.nodes:
        found = node.meta.get("val")
        if node.op == "placeholder" and specs[node.name].kind != InputKind.USER_INPUT:
            env[node] = _stored(exported, specs[node.name])
        elif node.op == "placeholder" and isinstance(found, Tensor):
            env[node] = value = lowering.input(node.name, found)
            sizes = tuple(n if isinstance(n, int) else None for n in value.shape)
            inputs.append((value.name, sizes, "float32" if value.kind == "real" else "int64"))
        elif node.op == "placeholder":
            env[node] = found
        elif node.op == "call_function":
            env[node] = lowering.call(node, env)
        elif node.op == "output":
            lowering.node = node
            wanted = zip(signature.output_specs, node.args[0], strict=True)
            results = [env.get(arg) for spec, arg in wanted if spec.kind == OutputKind.USER_OUTPUT]
            lowering.graph.outputs = [_result(lowering, x) for x in results if isinstance(x, Value)]
    if not lowering.graph.outputs:
        raise UsageError(f"{type(network).__name__} returns nothing that depends on its input")
    graph = passes.run(lowering.graph)
    rounding = next((node for node in graph.nodes if node.kind == "floor"), None)
    if rounding is not None:
        raise UsageError(
            f"{rounding.path!r} rounds numbers down, as an accumulator of few bits does for long sums: a packed "
            "network can do so only before a sign (more accumulator_bits, or None, for this layer)"
        )
    return Lowered(graph, inputs)


def _stored(exported: ExportedProgram, spec: InputSpec) -> Any:
    target = str(spec.target)
    return exported.state_dict[target] if target in exported.state_dict else exported.constants[target]


def _result(lowering: Lowering, x: Value) -> str:
    """Return the name of a result; whatever it was, its reader expects real numbers."""
    return lowering.affine(x, None, None, None).name if x.kind in ("sign", "int") else x.name
