"""From a trained model to a packed file, to ONNX and to QONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostbit.deploy.convert import convert
from frostbit.deploy.parity import Parity
from frostbit.deploy.save import Saved, save


def load(path: str | Path) -> Any:
    """Load a packed file: `frostbit_runtime.load`, which needs no torch."""
    import frostbit_runtime

    return frostbit_runtime.load(path)


__all__ = ["Parity", "Saved", "convert", "load", "save"]
