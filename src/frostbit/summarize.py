"""`summary`: what a model consists of, what it computes, and where the bytes of its packed file go."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from frostbit.counting import layer_macs
from frostbit.errors import UsageError
from frostbit.graph import default_example, trace
from frostbit.nn import BinaryLayer


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
    """Parameters, multiply-accumulates and bytes of a model; print it.

    Attributes:
        rows: the layers. Their bytes are those of the packed file, where a norm may have become comparisons, or
            factors of the layer before it.
        note: why the bytes are counted instead (one bit for each binary weight, four bytes for everything else);
            empty where they are the file's.
    """

    rows: list[Row]
    note: str = ""

    def _total(self, field: str, *bits: int) -> int:
        return sum(getattr(row, field) for row in self.rows if not bits or row.bits in bits)

    @property
    def binary_parameters(self) -> int:
        """Number of 1-bit parameters."""
        return self._total("parameters", 1)

    @property
    def real_parameters(self) -> int:
        """Number of 32-bit parameters and running statistics."""
        return self._total("parameters", 32)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors in the packed file: its payload, to the byte."""
        return self._total("bytes")

    @property
    def float_bytes(self) -> int:
        """Bytes of the same network in float32."""
        return 4 * self._total("parameters")

    @property
    def binary_macs(self) -> int:
        """Multiply-accumulates of one sample with binary weights."""
        return self._total("macs", 1)

    @property
    def real_macs(self) -> int:
        """Multiply-accumulates of one sample with weights that are not ±1."""
        return self._total("macs", 2, 32)

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
        ternary = self._total("parameters", 2)
        lines += [
            "-" * len(head),
            f"1-bit parameters {self.binary_parameters:,}   {f'2-bit {ternary:,}   ' if ternary else ''}"
            f"32-bit {self.real_parameters:,}",
            f"{'bytes counted' if self.note else 'bytes packed'} {self.bytes:,}, "
            f"{self.float_bytes / max(self.bytes, 1):.1f} times smaller than {self.float_bytes:,} in float32",
            f"binary MACs {self.binary_macs:,}   real {self.real_macs:,}   ({share:.1%} binary)",
        ]
        return "\n".join([*lines, *([f"bytes are counted, not packed: {self.note}"] if self.note else [])])


def summary(
    model: nn.Module,
    example_input: Any = None,
    *,
    rest: Literal["float32", "float16"] = "float32",
    real_weights: Literal["float32", "float16", "int8"] | None = None,
) -> Summary:
    """Count the model's 1-bit and 32-bit parameters, its multiply-accumulates and its packed bytes, layer by layer.

    Args:
        model: float or binary.
        example_input: a batch, for MACs and packed bytes; not needed for models that know their ``input_shape``.
        rest: as in `frostbit.deploy.save`.
        real_weights: likewise.

    Returns:
        The summary. A network that cannot be packed (an operation that no packed file has, no example, no
        `frostbit_runtime`) gets its bytes counted instead, and a note that says why.
    """
    rows = _count(model, example_input)
    batch = default_example(model) if example_input is None else example_input
    if batch is None:
        return Summary(rows, "that needs example_input, one batch")
    try:
        from frostbit.deploy.file import packed_bytes

        packed = packed_bytes(model, batch, rest=rest, real_weights=real_weights)
    except UsageError as error:
        return Summary(rows, str(error))
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    rows = [dataclasses.replace(row, bytes=packed.pop(row.name, 0)) for row in rows]
    return Summary([*rows, *(Row(path, kinds.get(path, ""), 32, 0, n, 0) for path, n in packed.items())])


def _count(model: nn.Module, example_input: Any) -> list[Row]:
    """Return the layers with the bytes of their parameters as they are, binary ones at one bit."""
    macs = layer_macs(trace(model, example_input))
    quantized = (layer.latents() for layer in model.modules() if isinstance(layer, BinaryLayer))
    width = {id(parameter): 1 if quantizer.binary else 2 for layer in quantized for _, parameter, quantizer in layer}
    rows: dict[str, Row] = {}
    seen: set[int] = set()  # tied parameters are stored once
    for path, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        own = [p for p in parameters if id(p) not in seen]
        seen |= {id(p) for p in own}
        statistics = [b for b in module.buffers(recurse=False) if b.is_floating_point()]
        latents = [p for p in own if id(p) in width]
        real = sum(p.numel() for p in own if id(p) not in width) + sum(b.numel() for b in statistics)
        count = macs.get(path, (False, 0))[1]
        kind = type(module).__name__
        bits = max((width[id(p)] for p in parameters if id(p) in width), default=32)
        if bits < 32:
            packed = sum(math.ceil(bits * p.numel() / 8) for p in latents)
            rows[path] = Row(path, kind, bits, sum(p.numel() for p in latents), packed, count)
            if real:
                rows[f"{path} (bias)"] = Row(f"{path} (bias)", kind, 32, real, 4 * real, 0)
        elif real or count:
            rows[path] = Row(path or "(the model's own)", kind, 32, real, 4 * real, count)
    modules = dict(model.named_modules())
    rows |= {name: Row(name, "function", 32, 0, 0, count) for name, (_, count) in macs.items() if name not in modules}
    return list(rows.values())
