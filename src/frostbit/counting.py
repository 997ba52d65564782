"""Counting: bits, bytes and multiply-accumulates of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from frostbit.graph import Graph, trace
from frostbit.nn import BinaryLayer
from frostbit.units import binary_parameters

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


@dataclass(frozen=True)
class Row:
    """One layer of a `Summary`; MACs are those of one sample."""

    name: str
    kind: str
    bits: int
    parameters: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """Sizes of a model when packed: one bit for each binary weight, four bytes for everything else."""

    rows: list[Row]

    def _total(self, field: str, binary: bool | None = None) -> int:
        return sum(getattr(row, field) for row in self.rows if binary is None or (row.bits == 1) == binary)

    @property
    def binary_parameters(self) -> int:
        """Number of 1-bit parameters."""
        return self._total("parameters", True)

    @property
    def real_parameters(self) -> int:
        """Number of 32-bit parameters and running statistics."""
        return self._total("parameters", False)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters, binary ones at one bit."""
        return self._total("bytes")

    @property
    def float_bytes(self) -> int:
        """Bytes of the same network in float32."""
        return 4 * self._total("parameters")

    @property
    def binary_macs(self) -> int:
        """Multiply-accumulates of one sample with binary weights."""
        return self._total("macs", True)

    @property
    def real_macs(self) -> int:
        """Multiply-accumulates of one sample with real weights."""
        return self._total("macs", False)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [5])
        head = f"{'layer':<{width}}  {'kind':<16} {'bits':>4} {'parameters':>11} {'bytes':>10} {'MACs':>13}"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            lines.append(
                f"{row.name:<{width}}  {row.kind[:16]:<16} {row.bits:>4} {row.parameters:>11,} "
                f"{row.bytes:>10,} {row.macs:>13,}"
            )
        share = self.binary_macs / max(self.binary_macs + self.real_macs, 1)
        lines += [
            "-" * len(head),
            f"1-bit parameters {self.binary_parameters:,}   32-bit {self.real_parameters:,}",
            f"bytes {self.bytes:,}, {self.float_bytes / max(self.bytes, 1):.1f} times smaller than "
            f"{self.float_bytes:,} in float32",
            f"binary MACs {self.binary_macs:,}   real {self.real_macs:,}   ({share:.1%} binary)",
        ]
        return "\n".join(lines)


def summary(model: nn.Module, example_input: Any = None) -> Summary:
    """Count the model's 1-bit and 32-bit parameters, bytes and multiply-accumulates, layer by layer.

    Args:
        model: float or binary.
        example_input: a batch, for the MACs; not needed for models that know their ``input_shape``.

    Returns:
        The summary; print it for a table.
    """
    macs = layer_macs(trace(model, example_input))
    latents = {id(parameter) for _, parameter in binary_parameters(model)}
    rows: dict[str, Row] = {}
    seen: set[int] = set()  # tied parameters are stored once
    for path, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        own = [p for p in parameters if id(p) not in seen]
        seen |= {id(p) for p in own}
        statistics = [b for b in module.buffers(recurse=False) if b.is_floating_point()]
        bits = [p.numel() for p in own if id(p) in latents]
        real = sum(p.numel() for p in own if id(p) not in latents) + sum(b.numel() for b in statistics)
        count = macs.get(path, (False, 0))[1]
        kind = type(module).__name__
        if any(id(p) in latents for p in parameters):
            packed = sum(math.ceil(n / 8) for n in bits)
            rows[path] = Row(path, kind, 1, sum(bits), packed, count)
            if real:
                rows[f"{path} (bias)"] = Row(f"{path} (bias)", kind, 32, real, 4 * real, 0)
        elif real or count:
            rows[path] = Row(path or "(the model's own)", kind, 32, real, 4 * real, count)
    return Summary(list(rows.values()))
