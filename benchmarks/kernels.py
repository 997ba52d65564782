"""The deployment kernels beside torch float32 and beside this machine's peak: `python benchmarks/kernels.py`.

Goals, one thread: a binary matrix product at 75 % of the popcount peak or more from K = 576, and 2.0 TOP/s at
1024x512x4608; 3x3 convolutions of batch 1, packing of float activations and float output included, against the
faster of torch's two layouts at least 18 times (256 to 256 channels at 14x14), 13 times (64 to 64 at 56x56) and
30 times (512 to 512 at 7x7); signs out no slower than floats out; with AVX2 alone at least 4 times.

One operation is a multiplication or an addition, so a word of 32 products counts 64. The two sides take turns of a
few calls each; on a machine that others use too, minima say more than medians, so both are given, and ratios are of
minima. "of peak" is the share of the peak of XOR, popcount and addition, one each per register of words; the kernels
exceed it where words are counted in pairs (`frostbit_runtime.kernels.products`), whose own peak is given too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from harness import report, rounds_of
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from frostbit_runtime import kernels
from frostbit_runtime.kernels import TARGET
from frostbit_runtime.kernels.block import VECTORS
from frostbit_runtime.kernels.simd import F32, I8, I32, PAIRS, Vectors

AVX2 = "+64bit,+sse4.2,+ssse3,+sse4.1,+avx,+avx2,+fma,+popcnt,+bmi,+bmi2,+f16c,+lzcnt,+movbe,+cx16"
LESSER = {
    "AVX-512BW": ("skylake-avx512", f"{AVX2},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd"),
    "AVX2": ("haswell", AVX2),
    "SSE2": ("generic", ""),
}
GOALS = {
    ("AVX-512 VPOPCNTDQ", "256 to 256 at 14x14"): "18 x",
    ("AVX-512 VPOPCNTDQ", "64 to 64 at 56x56"): "13 x",
    ("AVX-512 VPOPCNTDQ", "512 to 512 at 7x7"): "30 x",
    ("AVX2", "256 to 256 at 14x14"): "4 x",
}
CONVOLUTIONS = ((256, 256, 14), (64, 64, 56), (512, 512, 7))
COLUMNS = (
    *("target", "what", "form", "us", "median us", "TOP/s", "of peak", "torch us", "torch median us", "x torch"),
    *("us, 2 threads", "x torch, 2 threads", "goal"),
)
CHAINS = TARGET.rows * VECTORS  # registers of sums in one block
REPEATS = 20_000
CALLS = 8
Run = Callable[[], Any]
Row = dict[str, Any]


def peak(step: Callable[[Vectors, list[ir.Value]], list[ir.Value]], start: list[ir.Constant]) -> Callable[[int], int]:
    """Return a function that repeats ``step`` on as many independent groups of registers as a block of sums has."""

    @intrinsic
    def repeat(typing_context: Any, count: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            v = Vectors(builder)
            groups = [[v.variable(each) for each in start] for _ in range(CHAINS)]
            with cgutils.for_range(builder, values[0]):
                for group in groups:
                    for place, value in zip(group, step(v, [builder.load(each) for each in group]), strict=True):
                        builder.store(value, place)
            total = ir.Constant(I32, 0)
            for group in groups:
                for place in group:
                    words = builder.bitcast(builder.load(place), ir.VectorType(I32, TARGET.lanes))
                    total = builder.add(total, builder.extract_element(words, ir.Constant(I32, 0)))
            return total

        return types.int32(types.int64), generate

    return numba.njit(lambda count: repeat(np.int64(count)))


def peaks(rounds: int) -> dict[str, float]:
    """Return this machine's peaks in operations per second, with the kernels' own instructions on registers alone."""
    lanes, element = (TARGET.lanes, I32) if TARGET.word_counts else (4 * TARGET.lanes, I8)

    def popcount(v: Vectors, value: list[ir.Value]) -> list[ir.Value]:
        differ = v.builder.xor(value[0], v.constant(element, 5, lanes))
        return [v.builder.add(value[0], v.popcount(differ))]

    def pairs(v: Vectors, value: list[ir.Value]) -> list[ir.Value]:
        count, parity = value
        whole = parity.type
        x = v.builder.bitcast(count, whole)
        after = v.parity(parity, x, v.constant(I32, 9))
        carry = v.carry(parity, v.builder.xor(x, v.constant(I32, 5)), after)
        return [v.builder.add(count, v.popcount(v.builder.bitcast(carry, count.type))), after]

    def fma(v: Vectors, value: list[ir.Value]) -> list[ir.Value]:
        return [v.fma(value[0], v.constant(F32, 0.5), value[0])]

    zero = ir.Constant(ir.VectorType(element, lanes), [0] * lanes)
    zeros = ir.Constant(ir.VectorType(I32, TARGET.lanes), [0] * TARGET.lanes)
    reals = ir.Constant(ir.VectorType(F32, TARGET.lanes), [1.0] * TARGET.lanes)
    found = {"popcount": (popcount, [zero], 64), "float": (fma, [reals], 2)}
    if TARGET.form == PAIRS:
        found["pairs"] = (pairs, [zero, zeros], 128)
    runs = {name: peak(step, start) for name, (step, start, _) in found.items()}
    times = rounds_of({name: lambda run=run: run(REPEATS) for name, run in runs.items()}, rounds)
    return {name: REPEATS * CHAINS * TARGET.lanes * found[name][2] / min(seconds) for name, seconds in times.items()}


def torch_convolutions(inputs: int, outputs: int, size: int, kernel: int, stride: int) -> dict[str, Run]:
    """Return the float convolution in torch's two layouts."""
    x, weight = torch.randn(1, inputs, size, size), torch.randn(outputs, inputs, kernel, kernel)
    last_x, last_weight = (each.to(memory_format=torch.channels_last) for each in (x, weight))
    convolve, padding = torch.nn.functional.conv2d, kernel // 2
    return {
        "torch": lambda: convolve(x, weight, stride=stride, padding=padding),
        "torch, channels last": lambda: convolve(last_x, last_weight, stride=stride, padding=padding),
    }


def binary_forms(inputs: int, outputs: int, size: int) -> dict[str, Callable[[int], Run]]:
    """Return the binary convolution in its forms: threads → what to time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, size, size, inputs)).astype(np.float32)
    weight = rng.choice(np.array([-1, 1], np.int8), (outputs, inputs, 3, 3))
    conv = kernels.BinaryConv(weight, (1, 1), ((1, 1), (1, 1)))
    scale, shift = (rng.standard_normal(outputs).astype(np.float32) for _ in range(2))
    at, flip, words = rng.integers(-20, 20, outputs, np.int32), rng.random(outputs) < 0.5, kernels.pack(x)
    return {
        "float to float": lambda threads: lambda: conv.run(x, scale=scale, shift=shift, threads=threads),
        "float to signs": lambda threads: lambda: conv.run(x, at=at, flip=flip, threads=threads),
        "signs to signs": lambda threads: lambda: conv.run(words, at=at, flip=flip, threads=threads),
    }


def measure(
    what: str,
    forms: dict[str, Callable[[int], Run]],
    floats: dict[str, Run],
    operations: int,
    top: float,
    rounds: int,
    goal: Any = "-",
) -> list[Row]:
    """Time all forms beside torch, with one thread and with two."""
    times: dict[int, dict[str, list[float]]] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times[threads] = rounds_of({name: form(threads) for name, form in forms.items()} | floats, rounds, calls=CALLS)
    torch.set_num_threads(1)
    best = {threads: min(min(each[name]) for name in floats) for threads, each in times.items()}
    rows = []
    for name in forms:
        one, two = min(times[1][name]), min(times[2][name])
        rows.append(
            row(
                what,
                name,
                {
                    "us": one * 1e6,
                    "median us": statistics.median(times[1][name]) * 1e6,
                    "TOP/s": operations / one / 1e12,
                    "of peak": operations / one / top,
                    "torch us": best[1] * 1e6,
                    "torch median us": min(statistics.median(times[1][each]) for each in floats) * 1e6,
                    "x torch": best[1] / one,
                    "us, 2 threads": two * 1e6,
                    "x torch, 2 threads": best[2] / two,
                    "goal": goal if "to signs" not in name else "-",
                },
            )
        )
    return rows


def row(what: str, form: str, values: Row) -> Row:
    """Return a full row: columns without a value get a dash."""
    return {"target": TARGET.name, "what": what, "form": form} | {key: values.get(key, "-") for key in COLUMNS[3:]}


def binary_convolution(inputs: int, outputs: int, size: int, top: float, rounds: int) -> list[Row]:
    """Return the rows of one 3x3 convolution."""
    what, operations = f"{inputs} to {outputs} at {size}x{size}", 2 * inputs * outputs * 9 * size * size
    floats = torch_convolutions(inputs, outputs, size, 3, 1)
    return measure(
        what, binary_forms(inputs, outputs, size), floats, operations, top, rounds, GOALS.get((TARGET.name, what), "-")
    )


def products(top: float, rounds: int) -> list[Row]:
    """Return the rows of the binary matrix products."""
    rows = []
    for k in (576, 1152, 2304, 4608):
        rng = np.random.default_rng(0)
        x = kernels.pack(rng.standard_normal((1024, k)).astype(np.float32))
        dense = kernels.BinaryDense(rng.choice(np.array([-1, 1], np.int8), (512, k)))
        a, b = torch.randn(1024, k), torch.randn(k, 512)
        forms = {"signs to sums": lambda threads, dense=dense, x=x: lambda: dense.run(x, threads=threads)}
        floats = {"torch": lambda a=a, b=b: a @ b}
        goal = "2.0 TOP/s" if k == 4608 else "75 % of peak"
        rows += measure(f"1024x512x{k}", forms, floats, 2 * 1024 * 512 * k, top, rounds, goal)
    return rows


def stem(top: float, rounds: int) -> list[Row]:
    """Return the row of the float stem of ImageNet networks."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 224, 224, 3)).astype(np.float32)
    conv = kernels.RealConv(rng.standard_normal((64, 3, 7, 7)).astype(np.float32), (2, 2), ((3, 3), (3, 3)))
    forms = {"float to float": lambda threads: lambda: conv.run(x, threads=threads)}
    operations = 2 * 3 * 64 * 49 * 112 * 112
    return measure("3 to 64, 7x7/2 at 224", forms, torch_convolutions(3, 64, 224, 7, 2), operations, top, rounds)


def lesser(name: str, rounds: int) -> list[Row]:
    """Return the rows of a lesser target, measured in a process of its own; none if the machine has no such thing."""
    cpu, features = LESSER[name]
    host = binding.get_host_cpu_features()
    if name == TARGET.name or not all(host.get(each.strip("+"), True) for each in features.split(",")):
        return []
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, __file__, "--lesser", "--rounds", str(rounds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows: list[Row] = json.loads(done.stdout)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--lesser", action="store_true", help="print the few rows of a forced target as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        found = peaks(options.rounds)
        rows = [row("peak, registers alone", name, {"TOP/s": value / 1e12}) for name, value in found.items()]
        if options.lesser:
            rows += binary_convolution(*CONVOLUTIONS[0], found["popcount"], options.rounds)
            print(json.dumps(rows))
            return
        rows += products(found["popcount"], options.rounds // 3)
        for shape in CONVOLUTIONS:
            rows += binary_convolution(*shape, found["popcount"], options.rounds)
        rows += stem(found["float"], options.rounds)
        for name in LESSER:
            rows += lesser(name, options.rounds)
    report("kernels", rows)


if __name__ == "__main__":
    main()
