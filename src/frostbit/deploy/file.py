"""`save`: one file for one network, checked against the model before it gets its name."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from frostbit.deploy.convert import convert, pack
from frostbit.deploy.encode import RealWeights, Rest, to_program
from frostbit.deploy.export import Lowered, lower
from frostbit.deploy.parity import EXACT, LOSSY, Parity, compare
from frostbit.errors import RunError, UsageError

if TYPE_CHECKING:
    from frostbit_runtime import Program


@dataclass(frozen=True)
class Saved:
    """What `save` wrote; print it.

    Attributes:
        path: the file.
        payload_bytes: of all tensors, the figure of `frostbit.summary`.
        file_bytes: payload and header.
        float_bytes: of the model's parameters and running statistics in float32.
        parity: how the file's content compares with the hardened model on the example.
    """

    path: Path
    payload_bytes: int
    file_bytes: int
    float_bytes: int
    parity: Parity

    @property
    def ratio(self) -> float:
        """How many times smaller than in float32 the file is."""
        return self.float_bytes / self.file_bytes

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.file_bytes:,} bytes ({self.payload_bytes:,} without the header), {self.ratio:.1f} "
            f"times smaller than {self.float_bytes:,} in float32; {self.parity}"
        )


def float_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and floating buffers in float32, shared ones once."""
    buffers = (buffer for buffer in model.buffers() if buffer.is_floating_point())
    return 4 * sum(tensor.numel() for tensor in {id(t): t for t in (*model.parameters(), *buffers)}.values())


def program_of(
    model: nn.Module,
    example_input: Any,
    *,
    rest: Rest = "float32",
    real_weights: RealWeights | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> tuple[Program, Lowered]:
    """Return what `save` writes, and the graph that it was made of; arguments as there."""
    lowered = lower(convert(model), example_input)
    classes = lowered.graph.values[lowered.graph.outputs[0]].shape[-1]
    if labels is not None and classes != len(labels):
        raise UsageError(f"labels must be the names of {classes} classes, found {len(labels)}")
    versions = {name: metadata.version(name) for name in ("frostbit", "frostbit_runtime") if _installed(name)}
    info = {
        "producer": "frostbit",
        "versions": {**versions, "torch": torch.__version__},
        "run": run,
        "preprocess": preprocess,
        "labels": None if labels is None else list(labels),
        "float_bytes": float_bytes(model),
    }
    return to_program(lowered, info, rest=rest, real_weights=real_weights), lowered


def packed_bytes(
    model: nn.Module, example_input: Any, *, rest: Rest = "float32", real_weights: RealWeights | None = None
) -> dict[str, int]:
    """Return how many bytes of the file that `save` would write belong to each module, by its path."""
    program = to_program(lower(pack(model), example_input), rest=rest, real_weights=real_weights)
    owners: dict[str, str] = {}
    for op in program.ops:
        for name in op.tensors.values():
            owners.setdefault(name, op.name)
    sizes = dict.fromkeys(owners.values(), 0)
    for name, tensor in program.tensors.items():
        sizes[owners[name]] += tensor.nbytes
    return sizes


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def save(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    rest: Rest = "float32",
    real_weights: RealWeights | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Saved:
    """Write a model as one packed file that `frostbit_runtime` runs.

    Binary weights become bits, batch norms and scales fold, a norm before a sign becomes one comparison per channel.
    What is written is read back and run in plain numpy on the example; only if it agrees with the hardened model does
    the file get its name.

    Args:
        model: a model, binary (see `frostbit.binarize_`) or float; it is left as it is.
        example_input: a batch: a tensor, a tuple of positional or a mapping of keyword arguments. It fixes all sizes
            but that of the batch and the length of sequences.
        path: the file, by custom ``*.safetensors``.
        rest: ``"float32"`` or ``"float16"`` for norms, scales, biases and real weights.
        real_weights: ``"float32"``, ``"float16"`` or ``"int8"`` for the weights that are not binary, those of the first
            and last layer as a rule; ``None`` is as ``rest``.
        labels: names of the classes, for the file.
        preprocess: what makes an input of an image, for the file: ``{"size", "channels", "mean", "std"}``.
        run: identity of the training run, JSON-able, for the file.

    Returns:
        Sizes and agreement.

    Raises:
        UsageError: the model cannot be packed, and why; or an unknown encoding.
        RunError: what was written disagrees with the model, or cannot be written.
    """
    program, lowered = program_of(
        model, example_input, rest=rest, real_weights=real_weights, labels=labels, preprocess=preprocess, run=run
    )
    from frostbit_runtime import FileError, ProgramError, read, write

    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(program, part)
        graph = lowered.graph
        tolerance = EXACT if rest == "float32" and real_weights in (None, "float32") else LOSSY
        parity = compare(model, example_input, graph.outputs, graph.sites, runner(read(part)), "the file", tolerance)
        size = part.stat().st_size
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"cannot write {str(path)!r}: {error.strerror}") from None
    except ProgramError as error:
        raise UsageError(f"{type(model).__name__} cannot be packed: {error}") from None
    except FileError as error:
        raise RunError(f"{str(path)!r} was not written as it should be: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return Saved(path, program.nbytes, size, program.info["float_bytes"], parity)


def runner(program: Program) -> Any:
    """Return a function that computes named values of a program in plain numpy, for `compare`."""
    from frostbit_runtime import interpret

    def run(names: Sequence[str], arrays: Sequence[Any]) -> dict[str, Any]:
        results = interpret(dataclasses.replace(program, outputs=tuple(names)), *arrays)
        return dict(zip(names, results if isinstance(results, tuple) else (results,), strict=True))

    return run
