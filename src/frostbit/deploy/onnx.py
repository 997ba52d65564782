"""ONNX: a program as a graph that stock onnxruntime runs, with any batch size."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from frostbit.deploy.file import program_of
from frostbit.deploy.onnx_nodes import HANDLERS, Writer
from frostbit.deploy.parity import Parity, compare
from frostbit.errors import RunError, UsageError

if TYPE_CHECKING:
    from frostbit_runtime import Program

#: the first with layer normalization; runtimes since 2022 have it
OPSET = 17
#: its counterpart among file versions
IR_VERSION = 8


@dataclass(frozen=True)
class Exported:
    """What an export wrote; print it.

    Attributes:
        path: the file.
        file_bytes: its size.
        parity: how it compares with the hardened model on the example.
    """

    path: Path
    file_bytes: int
    parity: Parity

    def __str__(self) -> str:
        return f"{self.path}: {self.file_bytes:,} bytes; {self.parity}"


def with_sizes(program: Program, sizes: Sequence[Sequence[int]]) -> Program:
    """Return the program with inputs of fixed sizes."""
    inputs = [dataclasses.replace(item, shape=tuple(n)) for item, n in zip(program.inputs, sizes, strict=True)]
    return dataclasses.replace(program, inputs=tuple(inputs))


def to_model(program: Program, writer: type[Writer], opsets: Mapping[str, int], extra: Sequence[str] = ()) -> Any:
    """Return a program as an ONNX model.

    Args:
        program: with sizes open or fixed.
        writer: says how signs and weights are written.
        opsets: ``{domain: version}``.
        extra: further values to return, for a comparison.
    """
    from onnx import TensorProto, helper

    from frostbit_runtime import check

    # open sizes are those that follow an input's
    two, three = (
        check(with_sizes(program, [[n or size for n in item.shape] for item in program.inputs])) for size in (2, 3)
    )

    def info(name: str) -> Any:
        pairs = enumerate(zip(two[name].shape, three[name].shape, strict=True))
        sizes = [a if a == b else "N" if axis == 0 else f"{name}.{axis}" for axis, (a, b) in pairs]
        kind = TensorProto.INT64 if two[name].kind == "index" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, sizes)

    w = writer({name: value.shape for name, value in two.items()})
    for op in program.ops:
        w.op = op
        HANDLERS[op.kind](
            w, op.inputs, op.attrs, {role: program.tensors[n] for role, n in op.tensors.items()}, op.output
        )
    outputs = list(dict.fromkeys([*program.outputs, *extra]))
    inside = [op.output for op in program.ops if op.output not in outputs]
    graph = helper.make_graph(
        w.nodes, "frostbit", [info(i.name) for i in program.inputs], [info(n) for n in outputs], w.initializers,
        value_info=[info(name) for name in inside],
    )  # fmt: skip
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="frostbit")
    helper.set_model_props(model, {key: json.dumps(value) for key, value in program.info.items() if value is not None})
    return model


def export_onnx(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model as ONNX (opset 17, any batch size) for stock runtimes, checked by onnxruntime on the example.

    Args:
        model: a model, binary or float; hardened for the export, left as it is.
        example_input: a batch, see `frostbit.deploy.save`.
        path: the file.
        labels: see `frostbit.deploy.save`; in the file's metadata.
        preprocess: likewise.
        run: likewise.

    Returns:
        Size and agreement.

    Raises:
        UsageError: the model cannot be exported, or a package is missing.
        RunError: the file disagrees with the model; then none is left behind.
    """
    require("onnx", "onnxruntime")
    program, lowered = program_of(model, example_input, labels=labels, preprocess=preprocess, run=run)
    graph = lowered.graph
    exported = to_model(program, Writer, {"": OPSET})

    def compute(names: Sequence[str], arrays: Sequence[Any]) -> dict[str, Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        checked = to_model(program, Writer, {"": OPSET}, names).SerializeToString()
        session = onnxruntime.InferenceSession(checked, options, providers=["CPUExecutionProvider"])
        inputs = dict(zip((item.name for item in program.inputs), arrays, strict=True))
        return dict(zip(names, session.run(list(names), inputs), strict=True))

    parity = compare(model, example_input, graph.outputs, graph.sites, compute, "the ONNX graph")
    return write(exported, path, parity)


def require(*packages: str) -> None:
    """Raise one sentence if a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"this export needs the package {package!r}: pip install 'frostbit[export]'")


def write(model: Any, path: str | Path, parity: Parity) -> Exported:
    """Write a checked model; the file is there in full or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(model.SerializeToString())
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return Exported(path, path.stat().st_size, parity)
