"""Kernels on signs in words and on float32, channels last: numpy in, numpy out, no state but compiled code.

Signs are uint32 [N, *S, ceil(C/32)], bit c % 32 of word c // 32, 1 = +1, unused bits 0.
"""

from frostbit_runtime.kernels.binary import BinaryConv, BinaryDense
from frostbit_runtime.kernels.bits import pack, pack_bool, unpack
from frostbit_runtime.kernels.gelu import gelu
from frostbit_runtime.kernels.matmul import matmul
from frostbit_runtime.kernels.pools import avg_pool, global_mean, max_pool
from frostbit_runtime.kernels.real import RealConv, RealDense
from frostbit_runtime.kernels.rows import layer_norm, softmax
from frostbit_runtime.kernels.simd import TARGET, Target

__all__ = [
    "TARGET",
    "BinaryConv",
    "BinaryDense",
    "RealConv",
    "RealDense",
    "Target",
    "avg_pool",
    "gelu",
    "global_mean",
    "layer_norm",
    "matmul",
    "max_pool",
    "pack",
    "pack_bool",
    "softmax",
    "unpack",
]
