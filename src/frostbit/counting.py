"""Counting: the multiply-accumulates of a model, layer by layer."""

from __future__ import annotations

import math

from torch import nn

from frostbit.graph import Graph
from frostbit.nn import BinaryLayer

_NO_MACS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return a layer's own parameters with two dimensions or more beyond 1. Look-ups and norms multiply nothing."""
    if isinstance(module, _NO_MACS):
        return []
    return [p for p in module.parameters(recurse=False) if sum(size > 1 for size in p.shape) >= 2]


def can_count(module: nn.Module) -> bool:
    """Whether `layer_macs` knows what the module's matrices meet."""
    weight = getattr(module, "weight", None)
    return isinstance(module, (*_RECURRENT, nn.MultiheadAttention)) or (weight is not None and weight.dim() >= 2)


def layer_macs(graph: Graph) -> dict[str, tuple[bool, int]]:
    """Return ``{layer name: (whether its weight is binary, multiply-accumulates of one sample)}``.

    Args:
        graph: from a trace with a batch, so that shapes are known; the first dimension is the batch.

    Returns:
        One entry for each layer with a weight matrix or kernel, ``"linear()"`` and the like for functions. Look-ups
        (embeddings) and norms multiply nothing, and products of activations among themselves are not counted.
    """
    macs: dict[str, tuple[bool, int]] = {}
    for call in graph.calls:
        module = call.module
        if call.out_shape is None or call.in_shape is None or isinstance(module, _NO_MACS):
            continue
        name = call.name if module is not None else f"{call.name}()"
        weights = list(module.latents()) if isinstance(module, BinaryLayer) else []
        binary = bool(weights) and all(quantizer.binary for _, _, quantizer in weights)
        if isinstance(module, nn.MultiheadAttention):
            batched = len(call.in_shape) == 3
            tokens = call.in_shape[1 if batched and module.batch_first else 0]
            width = module.embed_dim
            count = tokens * width * (2 * width + (module.kdim or width) + (module.vdim or width))
        elif isinstance(module, _RECURRENT):
            batched = len(call.in_shape) == 3
            steps = call.in_shape[1 if batched and module.batch_first else 0] if isinstance(module, nn.RNNBase) else 1
            count = steps * sum(matrix.numel() for matrix in matrices(module))
        else:
            weight = call.weight_shape if module is None else getattr(getattr(module, "weight", None), "shape", ())
            if weight is None or len(weight) < 2:
                continue
            # every entry of the larger side meets one filter: outputs for a convolution, inputs for a transposed one
            function = call.name if module is None else ""
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd) or "transpose" in function
            shape = call.in_shape if transposed else call.out_shape
            count = math.prod(shape) // _batch(shape) * math.prod(weight[1:])
        seen = macs.get(name, (binary, 0))[1]
        macs[name] = (binary, seen + count)
    return macs


def _batch(shape: tuple[int, ...]) -> int:
    return max(shape[0], 1)
