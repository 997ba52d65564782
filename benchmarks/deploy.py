"""Packed networks end to end beside torch, onnxruntime and larq-compute-engine: `python benchmarks/deploy.py`.

BinaryNet on 32x32 images, Bi-Real-18 and a small vision transformer on 224x224, and a BERT of 6 layers of width 384 on
64 tokens, with fresh weights: time does not depend on them. The neighbours run the network as it was before it became
binary, in float32 and, in onnxruntime, as int8 (static quantization, calibrated on crops of two photographs, or on
random tokens). Goals, for one core with AVX-512 VPOPCNTDQ, batch 1: BinaryNet 18 times faster than onnxruntime's
float32 and 5 times faster than its int8, Bi-Real-18 6 and 1.7 times; files below 2 and 4.3 MB, 3.0 MB with float16 for
the rest; a second process ready in 1.5 s. Where scipy is installed, numba loads its linear algebra whether or not it is
asked for: a second row times the process as it is beside the runtime alone.

`--lce PYTHON`, an interpreter with larq-compute-engine, adds that one for the convolutional networks, made by
`deploy_lce.py`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import cpu_name, place, report
from torch import Tensor, nn

import frostbit as fb
import frostbit_runtime
from frostbit.cli.bench import ENGINES, measure
from frostbit.deploy.bench_worker import best
from frostbit.deploy.encode import to_program
from frostbit.deploy.file import float_bytes, program_of
from frostbit_runtime.kernels import RealConv

Row = dict[str, Any]
ENCODINGS: dict[str, dict[str, Any]] = {
    "the rest float32": {},
    "the rest float16": {"rest": "float16"},
    "the rest float16, real weights int8": {"rest": "float16", "real_weights": "int8"},
}
LCE_MODELS = ("binarynet", "bireal18")
CLOCKS = ("ms", "cpu_ms")  # one thread is compared by its processor time, which other processes hardly touch
READY = """
import sys, numpy as np, frostbit_runtime
frostbit_runtime.load(sys.argv[1])(np.ascontiguousarray(np.load(sys.argv[2], mmap_mode="r")[:1]), threads=1)
"""


@dataclass(frozen=True)
class Case:
    """One network, the size of its images or texts, and what it should reach: factors by engine, MB by encoding."""

    model: str
    size: int
    classes: int
    goals: dict[str, str]


CASES = (
    Case("binarynet", 32, 10, {"onnxruntime float32": "18 x", "onnxruntime int8": "5 x", "the rest float32": "2 MB"}),
    Case(
        "bireal18",
        224,
        1000,
        {
            "onnxruntime float32": "6 x",
            "onnxruntime int8": "1.7 x",
            "the rest float32": "4.3 MB",
            "the rest float16": "3.0 MB",
        },
    ),
    Case("vit_small", 224, 1000, {}),
    Case("bert", 64, 2, {}),
)


def photographs(size: int, count: int) -> Tensor:
    """Return normalized square crops [count, 3, size, size] of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(each).permute(2, 0, 1)[None] / 255.0 for each in load_sample_images().images]
    generator, crops = torch.Generator().manual_seed(0), []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = int(torch.randint(200, 400, (), generator=generator))
        top, left = (int(torch.randint(n - side, (), generator=generator)) for n in photo.shape[2:])
        crop = photo[:, :, top : top + side, left : left + side]
        crops.append(torch.nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=True))
    images = torch.cat(crops)
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)


def untrained(case: Case, folder: Path) -> nn.Module:
    """Return the float network; BERT needs a checkpoint, and gets one with fresh weights."""
    torch.manual_seed(0)
    if case.model != "bert":
        return fb.models.create(case.model, num_classes=case.classes, input_size=case.size)
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(**sizes)).save_pretrained(folder / "checkpoint")
    return fb.models.create("bert", num_classes=case.classes, checkpoint=str(folder / "checkpoint")).eval()


def write_files(case: Case, images: Tensor, folder: Path) -> Iterator[Row]:
    """Write the float network, and the binary one in each encoding; yield their sizes."""
    model = untrained(case, folder)
    fb.recalibrate_(model, [images[:8]])
    frostbit_runtime.write(program_of(model, images[:2])[0], folder / "float32.safetensors")
    in_float = float_bytes(model)
    yield row(case, "file: float32", MB=in_float / 1e6)
    fb.binarize_(model, example_input=images[:8])
    fb.recalibrate_(model, [images[:8]])
    program, lowered = program_of(model, images[:2])
    for name, encoding in ENCODINGS.items():
        file = folder / f"{name}.safetensors"
        frostbit_runtime.write(to_program(lowered, program.info, **encoding), file)
        yield row(case, f"file: bits, {name}", MB=file.stat().st_size / 1e6, goal=case.goals.get(name, "-"))
    bits = [tensor for tensor in program.tensors.values() if tensor.encoding == "bits"]
    body = sum(4 * int(np.prod(tensor.shape)) for tensor in bits) / sum(tensor.nbytes for tensor in bits)
    yield row(case, "float32 / bits, binary weights", factor=body, goal="30 x")


def row(case: Case, what: str, **values: Any) -> Row:
    """Return a full row: columns without a value get a dash."""
    columns = ("threads", "batch", "ms", "CPU ms", "x runtime", "MB", "peak MB", "goal")
    values["x runtime"] = values.pop("factor", "-")
    found = {"network": f"{case.model} at {case.size}", "what": what}
    return found | {name: values.get(name.replace(" ", "_"), values.get(name, "-")) for name in columns}


def times(case: Case, folder: Path, threads: list[int], batches: list[int], seconds: float) -> Iterator[Row]:
    """Time every engine in processes of its own, and yield a row for each number of threads and batch size.

    A shared machine has slow spells that outlast a measurement: the smallest batch is measured three times, by turns.
    """
    found: dict[tuple[str, int, str], dict[str, float]] = {}
    for sizes in (batches, batches[:1], batches[:1]):
        for engine in ENGINES:
            file = f"{next(iter(ENCODINGS)) if engine == 'frostbit_runtime' else 'float32'}.safetensors"
            for count in threads:
                request = {"file": str(folder / file), "engine": engine, "threads": count, "batches": sizes}
                measured = measure(request | {"seconds": seconds, "images": str(folder / "images.npy")})
                for batch, each in measured.items():
                    before = found.get((engine, count, batch), each)
                    found[engine, count, batch] = {name: min(before[name], each[name]) for name in each}
    for (engine, count, batch), each in found.items():
        clock = CLOCKS[count == 1]
        goal = case.goals.get(engine, "-") if (count, batch) == (1, "1") else "-"
        yield row(
            case, engine, threads=count, batch=int(batch), ms=each["ms"], CPU_ms=each["cpu_ms"],
            factor=each[clock] / found["frostbit_runtime", count, batch][clock], peak_MB=each["peak_mb"], goal=goal,
        )  # fmt: skip


def own_times(rows: list[Row]) -> dict[int, float]:
    """Return the runtime's time of one sample by number of threads."""
    ours = [r for r in rows if r["what"] == "frostbit_runtime" and r["batch"] == 1]
    return {r["threads"]: r["CPU ms" if r["threads"] == 1 else "ms"] for r in ours}


def neighbour(case: Case, python: str, threads: list[int], seconds: float, runtime: dict[int, float]) -> Iterator[Row]:
    """Time larq-compute-engine on the same network, batch 1."""
    script = Path(__file__).with_name("deploy_lce.py")
    command = [python, str(script), case.model, json.dumps({"threads": threads, "seconds": seconds})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"larq-compute-engine failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    for count in threads:
        ms, cpu = found["times"][str(count)]
        factor = (cpu if count == 1 else ms) / runtime[count]
        size = found["bytes"] / 1e6
        yield row(case, found["engine"], threads=count, batch=1, ms=ms, CPU_ms=cpu, factor=factor, MB=size)


def parts(case: Case, images: Tensor, folder: Path, seconds: float, whole: float) -> Iterator[Row]:
    """Yield the time of the first, real-valued layer alone, and of a second process until its first result."""
    file = folder / f"{next(iter(ENCODINGS))}.safetensors"
    program = frostbit_runtime.read(file)
    for op in [op for op in program.ops if op.kind == "conv"][:1]:
        weight = program.tensors[op.tensors["weight"]].decode().astype(np.float32)
        padding = tuple((before, after) for before, after in op.attrs["padding"])
        run = partial(RealConv(weight, tuple(op.attrs["stride"]), padding).run, images[:1].permute(0, 2, 3, 1).numpy())
        ms, cpu = best(run, seconds)
        yield row(case, "first layer alone", threads=1, batch=1, ms=ms, CPU_ms=cpu, factor=cpu / whole)
    for where, before in (("", ""), (", no scipy", "import sys; sys.modules['scipy'] = None")):
        spent = [
            seconds_of([sys.executable, "-c", before + READY, str(file), str(folder / "images.npy")]) for _ in range(4)
        ]
        ms, cpu = (1000 * min(each) for each in zip(*spent[1:], strict=True))  # the first may have to compile
        what = f"second process, to its first result{where}"
        yield row(case, what, threads=1, batch=1, ms=ms, CPU_ms=cpu, goal="1500 ms")


def seconds_of(command: list[str]) -> tuple[float, float]:
    """Return how long a process runs, and its processor time."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def rows_of(case: Case, threads: list[int], batches: list[int], seconds: float, lce: str | None) -> list[Row]:
    """Measure one network."""
    with tempfile.TemporaryDirectory() as name:
        texts = torch.randint(1, 30_000, (64, case.size), generator=torch.Generator().manual_seed(0))
        folder, images = Path(name), texts if case.model == "bert" else photographs(case.size, 64)
        np.save(folder / "images.npy", images.numpy())
        sizes = list(write_files(case, images, folder))
        rows = list(times(case, folder, threads, batches, seconds))
        runtime = own_times(rows)
        if lce is not None and case.model in LCE_MODELS:
            rows += neighbour(case, lce, threads, seconds, runtime)
        return [*rows, *parts(case, images, folder, seconds, runtime[1]), *sizes]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each figure is measured")
    parser.add_argument("--lce", help="Python interpreter with larq-compute-engine and larq")
    known = [case.model for case in CASES]
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="the others keep the rows on file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    filed = place("deploy", cpu_name())
    for case in CASES:
        if case.model in options.only:
            rows += rows_of(case, [1, 2], [1, 64], options.seconds, options.lce)
        elif filed.exists():
            rows += [r for r in json.loads(filed.read_text())["rows"] if r["network"] == f"{case.model} at {case.size}"]
    report("deploy", rows)


if __name__ == "__main__":
    main()
