"""Rewrites of a lowered graph: signs move to where they are cheap, affine maps fold, signs of sums are compared."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from frostbit.deploy.values import Exact, Graph, Node, Value

#: what moves values or takes the largest: a sign may as well be taken before it
_TRANSPARENT = ("reshape", "permute", "expand_dims", "squeeze", "max_pool")
#: sums are put through torch's own steps in parts of so many
_PART = 4096


def run(graph: Graph) -> Graph:
    """Rewrite a graph, as emitted operator by operator, in place; return it."""
    for step in (drop_dead, pool_sums, hoist_signs, merge_equal, make_thresholds, drop_dead):
        step(graph)
    for step in (merge_affine, settle_affine, drop_dead, name_values):
        step(graph)
    return graph


def drop_dead(graph: Graph) -> None:
    """Remove operations that nobody reads."""
    live, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if node.output in live:
            live.update(node.inputs)
            kept.append(node)
    graph.nodes = kept[::-1]


def _swap(graph: Graph, first: Node, second: Node, middle: Value) -> None:
    """Let two neighbouring operations of one input each change places; ``middle`` is what now lies between."""
    assert second.inputs == [first.output] == [middle.name]
    for field in ("kind", "attrs", "tensors", "path", "exact"):
        ahead, behind = getattr(first, field), getattr(second, field)
        setattr(first, field, behind)
        setattr(second, field, ahead)
    graph.values[middle.name] = middle


def pool_sums(graph: Graph) -> None:
    """Let a max pool overtake steps that never fall, back to exact sums, where another affine map follows.

    Pooled sums are exact sums, so that scale, norm and sign behind the pool become one comparison.
    """
    followed = {node.inputs[0] for node in graph.nodes if node.kind == "affine"}
    for pool in [node for node in graph.nodes if node.kind == "max_pool" and node.output in followed]:
        readers, producers = graph.readers(), graph.producers()
        steps, name = [pool], pool.inputs[0]
        while name in producers and readers[name] == 1 and _never_falls(producers[name]):
            steps.append(producers[name])
            name = producers[name].inputs[0]
        sums = graph.values[name]
        if sums.kind != "int":
            continue
        pooled = graph.values[pool.output].shape
        for after, before in itertools.pairwise(steps):  # one place to the front with each
            _swap(graph, before, after, Value(before.output, "real", pooled))
        last = steps[-1].output
        graph.values[last] = Value(last, "int", pooled, sums.bound)


def _never_falls(node: Node) -> bool:
    scale = node.tensors.get("scale")
    return node.kind in ("clip", "floor") or (node.kind == "affine" and (scale is None or bool((scale >= 0).all())))


def hoist_signs(graph: Graph) -> None:
    """Take signs before operations that only move values, as long as nobody reads these otherwise, and past clips."""
    for sign in [node for node in graph.nodes if node.kind == "sign"]:
        while True:  # towards the front, one operation at a time
            readers, producers = graph.readers(), graph.producers()
            before = producers.get(sign.inputs[0])
            if before is not None and _keeps_sign(before):
                sign.inputs = list(before.inputs)
                if readers[before.output] == 1:
                    graph.nodes.remove(before)
                continue
            if before is None or readers[before.output] > 1 or before.kind not in _TRANSPARENT:
                break
            source = graph.values[before.inputs[0]]
            _swap(graph, before, sign, Value(before.output, "sign", source.shape))
            sign = before


def _keeps_sign(node: Node) -> bool:
    low, high = node.attrs.get("min"), node.attrs.get("max")
    return node.kind == "clip" and (low is None or low < 0) and (high is None or high >= 0)


def merge_equal(graph: Graph) -> None:
    """Compute only once what several operations compute."""
    first: dict[object, str] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        tensors = sorted((role, t.data_ptr(), tuple(t.shape), t.stride()) for role, t in node.tensors.items())
        key = (node.kind, tuple(node.inputs), repr(sorted(node.attrs.items())), tuple(tensors))
        if first.setdefault(key, node.output) != node.output:
            names[node.output] = first[key]
    graph.rename(names)
    graph.nodes = [node for node in graph.nodes if node.output not in names]


def make_thresholds(graph: Graph) -> None:
    """Turn a sign of exact sums that went through channelwise steps into a comparison of the sums.

    Which sums are positive in the end is not computed but looked up: torch's own operations, batch norm foremost, run
    on every sum that can occur. So the comparison agrees with torch in each case, rounding included.
    """
    producers = graph.producers()
    for sign in graph.nodes:
        found = _sums_behind(graph, producers, sign) if sign.kind == "sign" else None
        if found is None:
            continue
        sums, axis, path, steps = found
        if axis is None:
            axis = 1 if isinstance(sums.shape[1], int) else sums.rank - 1
        channels = sums.shape[axis]
        table = thresholds(steps, channels, sums.bound) if isinstance(channels, int) else None
        if table is None:
            continue
        at, flip = table
        sign.inputs, sign.path = [sums.name], path
        sign.kind, sign.attrs = "threshold", {"axis": axis}
        sign.tensors = {"at": at, "flip": torch.where(flip, 1.0, -1.0)}


def _sums_behind(
    graph: Graph, producers: dict[str, Node], sign: Node
) -> tuple[Value, int | None, str, list[Exact]] | None:
    """Return the sums that a sign depends on elementwise, along which axis, by whose and by which steps."""
    steps: list[Exact] = []
    axis: int | None = None
    path, name = None, sign.inputs[0]
    while graph.values[name].kind != "int":
        node = producers.get(name)
        if node is None or node.exact is None:
            return None
        own = node.attrs.get("axis")
        if axis is not None and own is not None and own != axis:
            return None
        axis = axis if own is None else own
        path = path or node.path
        steps.append(node.exact)
        name = node.inputs[0]
    return (graph.values[name], axis, path or sign.path, steps[::-1]) if steps else None


def thresholds(steps: Sequence[Exact], channels: int, bound: int) -> tuple[Tensor, Tensor] | None:
    """Find where the sign changes between −bound and +bound, channel by channel.

    Args:
        steps: functions of a tensor ``[1, channels, any]``, one after the other.
        channels: their number.
        bound: the largest magnitude of a sum.

    Returns:
        ``at`` (int32 ``[channels]``) and ``flip`` (bool) so that the sign is +1 where ``(sum >= at) != flip``; ``None``
        where a channel changes its sign more than once.
    """
    positive = []
    for start in range(-bound, bound + 1, _PART):
        sums = torch.arange(start, min(start + _PART, bound + 1), dtype=torch.float32)
        v = sums.expand(1, channels, -1).contiguous()
        for step in steps:
            v = step(v)
        positive.append((v >= 0).expand(1, channels, -1)[0])
    table = torch.cat(positive, 1)
    changes = table[:, 1:] != table[:, :-1]
    count = changes.sum(1)
    if bool((count > 1).any()):
        return None
    first = table[:, 0]
    at = torch.where(count == 0, torch.where(first, -bound, bound + 1), changes.int().argmax(1) + 1 - bound)
    return at.int(), first & (count > 0)


def merge_affine(graph: Graph) -> None:
    """Fold an affine map, or the bias of a real layer, into the affine map that alone reads it."""
    readers, producers = graph.readers(), graph.producers()
    for node in graph.nodes:
        before = producers.get(node.inputs[0]) if node.kind == "affine" else None
        if before is None or readers[before.output] > 1:
            continue
        axis, scale = node.attrs["axis"], node.tensors.get("scale")
        if before.kind == "affine" and (axis is None or before.attrs["axis"] in (None, axis)):
            node.attrs = {"axis": before.attrs["axis"] if axis is None else axis}
            if "scale" in before.tensors:
                node.tensors["scale"] = before.tensors["scale"] * (1 if scale is None else scale)
            node.inputs, bias = before.inputs, before.tensors.get("shift")
        elif "bias" in before.tensors and axis == (
            graph.values[before.output].rank - 1 if before.kind == "dense" else 1
        ):
            bias = before.tensors.pop("bias").double()
        else:
            continue
        if bias is not None:
            shift = bias * (1 if scale is None else scale)
            node.tensors["shift"] = shift + node.tensors.get("shift", torch.zeros(1, dtype=torch.float64))
        graph.nodes = [other for other in graph.nodes if other is not before or before.kind != "affine"]


def settle_affine(graph: Graph) -> None:
    """Give each affine map its axis; one number for all channels becomes a plain factor or summand."""
    same: dict[str, str] = {}
    for node in graph.nodes:
        if node.kind != "affine":
            continue
        value = graph.values[node.inputs[0]]
        if not node.tensors and value.kind == "real":
            same[node.output] = same.get(value.name, value.name)
        elif node.attrs["axis"] is None and len(node.tensors) == 1:
            ((role, number),) = node.tensors.items()
            node.kind, node.attrs = ("mul" if role == "scale" else "add"), {}
            node.tensors = {"other": number.reshape(())}
        else:
            if node.attrs["axis"] is None:
                node.attrs = {"axis": 1 if value.rank > 2 and isinstance(value.shape[1], int) else value.rank - 1}
            channels = value.shape[node.attrs["axis"]]
            node.tensors = {role: t.expand(channels).contiguous() for role, t in node.tensors.items()}
    graph.rename(same)
    graph.nodes = [node for node in graph.nodes if node.output not in same]


def name_values(graph: Graph) -> None:
    """Name each value by the module and the kind of operation that it comes from; inputs keep their names."""
    computed = {node.output for node in graph.nodes}
    taken = {name for name in graph.values if name not in computed}
    names: dict[str, str] = {}
    for node in graph.nodes:
        base = name = f"{node.path}.{node.kind}" if node.path else node.kind
        count = 1
        while name in taken:
            count += 1
            name = f"{base}.{count}"
        taken.add(name)
        names[node.output] = name
    for node in graph.nodes:
        node.output = names[node.output]
    graph.sites = [name if name in computed else None for name in graph.sites]
    graph.rename(names)
    graph.values = {
        names.get(name, name): dataclasses.replace(value, name=names.get(name, name))
        for name, value in graph.values.items()
        if name in computed or name in taken
    }
