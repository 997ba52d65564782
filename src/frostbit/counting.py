"""Counting: the multiply-accumulates of a model, layer by layer."""

from __future__ import annotations

import math

from torch import nn

from frostbit.graph import Graph
from frostbit.nn import BinaryLayer

_NO_MACS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def layer_macs(graph: Graph) -> dict[str, tuple[bool, int]]:
    """Return ``{layer name: (whether its weight is binary, multiply-accumulates of one sample)}``.

    Args:
        graph: from a trace with a batch, so that shapes are known; the first dimension is the batch.

    Returns:
        One entry for each layer with a weight matrix or kernel. Look-ups (embeddings) and norms multiply nothing.
    """
    macs: dict[str, tuple[bool, int]] = {}
    for call in graph.calls:
        module = call.module
        if module is None or call.out_shape is None or call.in_shape is None or isinstance(module, _NO_MACS):
            continue
        binary = isinstance(module, BinaryLayer) and any(True for _ in module.latents())
        if isinstance(module, nn.MultiheadAttention):
            batched = len(call.in_shape) == 3
            tokens = call.in_shape[1 if batched and module.batch_first else 0]
            width = module.embed_dim
            count = tokens * width * (2 * width + (module.kdim or width) + (module.vdim or width))
        else:
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() < 2:
                continue
            # every entry of the larger side meets one filter: outputs for a convolution, inputs for a transposed one
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            shape = call.in_shape if transposed else call.out_shape
            count = math.prod(shape) // _batch(shape) * math.prod(weight.shape[1:])
        seen = macs.get(call.name, (binary, 0))[1]
        macs[call.name] = (binary, seen + count)
    return macs


def _batch(shape: tuple[int, ...]) -> int:
    return max(shape[0], 1)
