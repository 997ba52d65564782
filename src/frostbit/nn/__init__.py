"""Binary layers: `torch.nn` subclasses that quantize their weight and input."""

from frostbit.nn.accumulator import Accumulator
from frostbit.nn.attention import MultiheadAttention
from frostbit.nn.layers import (
    Binarizer,
    BinaryLayer,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    Linear,
)

__all__ = [
    "Accumulator",
    "Binarizer",
    "BinaryLayer",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Linear",
    "MultiheadAttention",
]
