"""Times one engine on one packed file, in a process of its own: ``python bench_worker.py REQUEST``.

Run by path, not as a module, so that measuring `frostbit_runtime` does not load torch. ``REQUEST`` is JSON:
``{file, engine, threads, batches, seconds}``, and perhaps ``images``, a ``.npy`` file of inputs to run on and to
calibrate with in place of noise; one JSON line comes back: ``{batch: {ms, cpu_ms, peak_mb}}``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

CALIBRATION = 32  # samples

Run = Callable[[Sequence[Any]], Any]
Inputs = Callable[[int], list[Any]]  # batch size → inputs


def runtime(path: str, threads: int, _: Inputs) -> Run:
    """Return the packed network."""
    import frostbit_runtime

    network = frostbit_runtime.load(path)
    return lambda arrays: network(*arrays, threads=threads)


def torch_float32(path: str, threads: int, _: Inputs) -> Run:
    """Return the same network in torch, at each batch size in the faster of its two memory formats."""
    import torch

    from frostbit.deploy.torch_network import TorchNetwork
    from frostbit_runtime import read

    torch.set_num_threads(threads)
    networks = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        networks[layout] = network = TorchNetwork(read(path)).eval()
        for name, tensor in list(network.named_buffers()):
            if tensor.dim() == 4:
                setattr(network, name, tensor.to(memory_format=layout))

    def call(arrays: Sequence[Any], layout: Any) -> Any:
        tensors = [torch.from_numpy(array) for array in arrays]
        tensors = [t.to(memory_format=layout) if t.dim() == 4 else t for t in tensors]
        with torch.inference_mode():
            return networks[layout](*tensors)

    chosen: dict[int, Any] = {}

    def run(arrays: Sequence[Any]) -> Any:
        batch = len(arrays[0])
        if batch not in chosen:
            chosen[batch] = min(networks, key=lambda layout: best(lambda: call(arrays, layout), 0.3))
        return call(arrays, chosen[batch])

    return run


def onnxruntime_float32(path: str, threads: int, _: Inputs) -> Run:
    """Return the same network in onnxruntime."""
    return _session(_onnx(path), threads)


def onnxruntime_int8(path: str, threads: int, inputs: Inputs) -> Run:
    """Return the same network quantized to int8 by onnxruntime's own static quantization.

    Weights per channel, of 7 bits, since without VNNI instructions products of 8 bits overflow.
    """
    import logging
    import tempfile

    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader:
        def __init__(self, names: Sequence[str]) -> None:
            samples = inputs(CALIBRATION)
            self.left = [
                {name: array[i : i + 1] for name, array in zip(names, samples, strict=True)} for i in range(CALIBRATION)
            ]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    logging.disable(logging.WARNING)
    model = onnx.load_from_string(_onnx(path))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/float.onnx")
        quant_pre_process(f"{folder}/float.onnx", f"{folder}/folded.onnx", skip_symbolic_shape=True)
        quantize_static(
            f"{folder}/folded.onnx",
            f"{folder}/int8.onnx",
            Reader([value.name for value in model.graph.input]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        return _session(open(f"{folder}/int8.onnx", "rb").read(), threads)


def _onnx(path: str) -> bytes:
    from frostbit.deploy.onnx import OPSET, to_model
    from frostbit.deploy.onnx_nodes import FloatWriter
    from frostbit_runtime import read

    data: bytes = to_model(read(path), FloatWriter, {"": OPSET}).SerializeToString()
    return data


def _session(model: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


ENGINES = {
    "frostbit_runtime": runtime,
    "torch float32": torch_float32,
    "onnxruntime float32": onnxruntime_float32,
    "onnxruntime int8": onnxruntime_int8,
}


def best(call: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Return the shortest time of a call, and its least processor time, in milliseconds, after one to warm up."""
    call()
    found: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start, spent = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - start, time.process_time() - spent))
    return 1000 * min(each[0] for each in found), 1000 * min(each[1] for each in found)


def peak_mb() -> float:
    """Return the largest memory that this process has held, in megabytes."""
    try:  # getrusage counts what the parent held when it started this process
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(request: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Time one engine; arguments as in the module's text."""
    import numpy as np

    from frostbit_runtime import read

    program = read(request["file"])
    images = np.load(request["images"]) if request.get("images") else None

    def arrays(batch: int) -> list[Any]:
        if images is not None:
            return [images[np.arange(batch) % len(images)]]
        generator, found = np.random.default_rng(0), []
        for item in program.inputs:
            shape = (batch, *(size or 64 for size in item.shape[1:]))
            rows = [len_of(op) for op in program.ops if op.kind == "embedding" and item.name in op.inputs]
            noise = generator.standard_normal(shape).astype(np.float32)
            found.append(noise if item.dtype == "float32" else generator.integers(0, min(rows, default=1), shape))
        return found

    def len_of(op: Any) -> int:
        return int(program.tensors[op.tensors["weight"]].shape[0])

    run = ENGINES[request["engine"]](request["file"], request["threads"], arrays)
    found = {}
    for batch in request["batches"]:
        given = arrays(batch)
        ms, cpu_ms = best(partial(run, given), request["seconds"])
        found[str(batch)] = {"ms": ms, "cpu_ms": cpu_ms, "peak_mb": peak_mb()}
    return found


if __name__ == "__main__":
    sys.path.pop(0)  # this folder holds modules named like packages that they import
    wanted = json.loads(sys.argv[1])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(wanted["threads"])
    print(json.dumps(main(wanted)))
