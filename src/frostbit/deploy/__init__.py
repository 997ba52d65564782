"""From a trained model to a packed file, to ONNX and to QONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostbit.deploy.convert import convert
from frostbit.deploy.file import Saved, save
from frostbit.deploy.onnx import Exported, export_onnx
from frostbit.deploy.parity import Parity
from frostbit.deploy.qonnx import export_qonnx


def load(path: str | Path) -> Any:
    """Load a packed file: `frostbit_runtime.load`, which needs no torch."""
    import frostbit_runtime

    return frostbit_runtime.load(path)


__all__ = ["Exported", "Parity", "Saved", "convert", "export_onnx", "export_qonnx", "load", "save"]
