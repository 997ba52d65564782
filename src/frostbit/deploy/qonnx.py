"""QONNX: the same graph with `BipolarQuant` for signs, the way into FINN and hls4ml."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from frostbit.deploy.file import program_of
from frostbit.deploy.onnx import OPSET, Exported, require, to_model, with_sizes, write
from frostbit.deploy.onnx_nodes import Writer
from frostbit.deploy.parity import compare
from frostbit.graph import as_arguments

if TYPE_CHECKING:
    from frostbit_runtime import Stored

DOMAIN = "qonnx.custom_op.general"


class BipolarWriter(Writer):
    """Writes signs and binary weights as `BipolarQuant` with scale 1."""

    def sign(self, x: str, output: str) -> str:
        """Return +1 where ``x >= 0``, else −1."""
        return self.node("BipolarQuant", [x, self.real(1.0)], output, DOMAIN)

    def threshold(self, x: str, at: Any, flip: Any, output: str) -> str:
        """Return the sign of ``x − at``, or of ``at − 1 − x`` where flipped: exact, since all are integers."""
        turned = self.node("Mul", [x, self.real(np.where(flip, -1, 1))]) if flip.any() else x
        shifted = self.node("Add", [turned, self.real(np.where(flip, at.astype(np.int64) - 1, -at.astype(np.int64)))])
        return self.sign(shifted, output)

    def weight(self, tensor: Stored, permute: tuple[int, ...] | None = None) -> str:
        """Store a weight, axes permuted; return its name."""
        array = tensor.decode() if permute is None else tensor.decode().transpose(permute)
        if tensor.encoding != "bits":
            return self.real(array)
        return self.node("BipolarQuant", [self.real(array), self.real(1.0)], None, DOMAIN)


def export_qonnx(
    model: nn.Module,
    example_input: Any,
    path: str | Path,
    *,
    batch: int = 1,
    labels: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a model as QONNX, checked by the qonnx executor on the example.

    Args:
        model: a model, binary or float; hardened for the export, left as it is.
        example_input: a batch, see `frostbit.deploy.save`.
        path: the file.
        batch: its size; qonnx and its consumers want all sizes fixed.
        labels: see `frostbit.deploy.save`; in the file's metadata.
        preprocess: likewise.
        run: likewise.

    Returns:
        Size and agreement.

    Raises:
        UsageError: the model cannot be exported, or a package is missing.
        RunError: the file disagrees with the model; then none is left behind.
    """
    require("onnx", "onnxruntime", "qonnx")
    program, lowered = program_of(model, example_input, labels=labels, preprocess=preprocess, run=run)
    tensors = [leaf for leaf in pytree.tree_leaves(as_arguments(example_input)) if isinstance(leaf, torch.Tensor)]
    program = with_sizes(program, [[batch, *tensor.shape[1:]] for tensor in tensors])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # qonnx's own
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.core.onnx_exec import execute_onnx
        from qonnx.transformation.infer_shapes import InferShapes

        wrapper = ModelWrapper(to_model(program, BipolarWriter, {"": OPSET, DOMAIN: 1})).transform(InferShapes())

        def compute(names: Sequence[str], arrays: Sequence[Any]) -> dict[str, Any]:
            count, parts = len(arrays[0]), []
            for start in range(0, count, batch):
                rows = np.minimum(np.arange(start, start + batch), count - 1)  # the last part is filled up
                inputs = {item.name: array[rows] for item, array in zip(program.inputs, arrays, strict=True)}
                context = execute_onnx(wrapper, inputs, return_full_exec_context=True)
                parts.append({name: context[name] for name in names})
            return {name: np.concatenate([part[name] for part in parts])[:count] for name in names}

        graph = lowered.graph
        parity = compare(model, example_input, graph.outputs, graph.sites, compute, "the QONNX graph")
    return write(wrapper.model, path, parity)
