"""From a trained model to a packed file, to ONNX and to QONNX."""

from frostbit.deploy.convert import convert

__all__ = ["convert"]
