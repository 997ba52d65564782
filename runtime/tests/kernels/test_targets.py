"""Lesser machines, forced in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frostbit_runtime.kernels import Target
from frostbit_runtime.kernels.simd import PANEL, kernel, target_of

AVX2 = "+64bit,+sse4.2,+ssse3,+sse4.1,+avx,+avx2,+fma,+popcnt,+bmi,+bmi2,+f16c,+lzcnt,+movbe,+cx16"
SKYLAKE = f"{AVX2},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd"
FORCED = {"AVX2": ("haswell", AVX2), "AVX-512BW": ("skylake-avx512", SKYLAKE), "128 bits": ("generic", "")}

PROGRAM = """
import numpy as np
from kernels import plain
from kernels.cases import Case
from frostbit_runtime import kernels
for groups, inputs, outputs in ((1, 70, 50), (2, 32, 64), (40, 1, 40)):
    case = Case(2, (9, 6), inputs, outputs, groups, (3, 3), (1, 2), ((1, 1), (0, 2)), (2, 1), 7)
    weight = case.signs(*case.weight_shape)
    signs = np.where(case.input >= 0, 1, -1).astype(np.float32)
    sums = plain.binary_conv(signs, weight, case.stride, case.padding, case.dilation, groups, 0)
    conv = kernels.BinaryConv(weight, **case.geometry)
    scale, at = case.reals(outputs, salt=2), np.arange(outputs, dtype=np.int32) - 9
    np.testing.assert_array_equal(conv.run(case.input), sums)
    np.testing.assert_array_equal(conv.run(case.input, scale=scale), plain.finish(sums, scale=scale))
    np.testing.assert_array_equal(conv.run(case.input, at=at, flip=at > 3), plain.finish(sums, at=at, flip=at > 3))
    real = case.reals(*case.weight_shape, salt=5)
    sums = plain.real_conv(case.input, real, case.stride, case.padding, case.dilation, groups)
    np.testing.assert_array_equal(kernels.RealConv(real, **case.geometry).run(case.input), sums)
long = np.ones((9, 5000), np.float32)
assert (kernels.BinaryDense(np.ones((40, 5000), np.int8)).run(-long) == -5000).all()
from frostbit_runtime.kernels.walk import walk
print(kernels.TARGET.name, "compiled" if walk.stats.cache_misses else "loaded")
"""


@pytest.mark.parametrize("name", FORCED)
def test_a_lesser_machine_computes_the_same_and_a_second_process_compiles_nothing(name: str, tmp_path: Path) -> None:
    cpu, features = FORCED[name]
    room = Path(__file__).parent
    environment = os.environ | {
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(map(str, [room.parent, room.parents[1]])),
    }
    if name not in _runnable():
        pytest.skip(f"this machine has no {name}")
    for state in ("compiled", "loaded") if name == "AVX2" else ("compiled",):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [*name.split(), state]


def _runnable() -> set[str]:
    from numba.core.registry import cpu_target

    here = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    return {name for name, (_, features) in FORCED.items() if set(features.split(",")) - {""} <= set(here)}


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ("+avx512f,+avx512bw,+avx512vpopcntdq,+avx2", "AVX-512 VPOPCNTDQ"),
        ("+avx512f,+avx512bw,-avx512vpopcntdq,+avx2", "AVX-512BW"),
        ("+avx512f,+avx2", "AVX2"),
        ("+neon", "128 bits"),
        ("", "128 bits"),
    ],
)
def test_the_target_follows_from_the_features(features: str, name: str) -> None:
    target: Target = target_of(features)
    assert target.name == name
    assert PANEL % target.lanes == 0


def test_the_cache_knows_all_sources() -> None:
    """A change in the vector code must not find machine code that was compiled before it."""

    @kernel
    def nothing(x: int) -> int:
        return x

    cache = nothing._cache
    key = cache._index_key((), nothing.targetctx.codegen())
    assert isinstance(key[-1], str)
    assert len(key[-1]) == 64
