"""``frostbit predict``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError

if TYPE_CHECKING:
    from frostbit.data.dataset import Split
    from frostbit.data.loader import Loader
    from frostbit.data.stream import StreamSplit
    from frostbit_runtime.engine import Network

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def run(argv: Sequence[str]) -> int:
    """Print labels and probabilities of images, or the accuracy on a data set, by a packed file."""
    parser = make_parser(
        "predict",
        "Labels and probabilities of images by a packed file, or its accuracy on the test images of a data set.",
        usage="FILE IMAGE [IMAGE ...] [options] | FILE --data NAME [options]",
        settings=False,
    )
    parser.add_argument("file", type=str, help="packed file, from frostbit export")
    parser.add_argument("images", nargs="*", type=str, default=[], help="image files, or folders of them")
    parser.add_argument("--format", type=Literal["table", "csv", "json"], default="table", help="how it is printed")
    parser.add_argument("--top", type=int, default=1, help="how many labels for each image")
    parser.add_argument("--data", type=str | None, help="data set: print the accuracy on its test images instead")
    parser.add_argument("--path", type=str | None, help="folder of the data set")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    own, _ = parse(parser, argv)
    if bool(own["images"]) == bool(own["data"]):
        raise UsageError("frostbit predict needs images, or --data with the name of a data set")
    for name, least in (("top", 1), ("batch", 1), ("threads", 0)):
        if own[name] < least:
            raise UsageError(f"--{name} must be at least {least}, found {own[name]}")
    network = load(own["file"])
    threads = own["threads"] or None
    if own["data"]:
        hits, count = accuracy(network, own["data"], own["path"], own["batch"], threads)
        print(f"{100 * hits / count:.2f} % of {count} test images{_trained(network, own['data'])}")
        return 0
    paths = list(find(own["images"]))
    labels = network.labels
    rows = []
    for path, chances in zip(paths, probabilities(network, images(network, paths, own["batch"]), threads), strict=True):
        best = sorted(range(len(chances)), key=lambda index: -chances[index])[: own["top"]]
        for rank, index in enumerate(best, start=1):
            label = labels[index] if labels else str(index)
            rows.append({"image": str(path), "rank": rank, "label": label, "probability": round(chances[index], 6)})
    show(rows, own["format"])
    return 0


def load(path: str) -> Network:
    """Load a packed file that says how images become its input.

    Raises:
        UsageError: the runtime is not installed, or the file is none of these.
    """
    packed = Path(path).is_file() and Path(path).suffix not in (".onnx", ".qonnx", ".ckpt", ".pt")
    if Path(path).exists() and not packed:
        raise UsageError(f"{path!r} is no packed file: frostbit export RUN writes one, RUN/net.safetensors")
    try:
        import frostbit_runtime
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a packed file needs the package {error.name!r}: pip install ./runtime, in Frostbit's repository"
        ) from None
    try:
        network = frostbit_runtime.load(path)
    except frostbit_runtime.FileError as error:
        raise UsageError(str(error)) from None
    if any(item.dtype == "int64" for item in network.inputs):
        raise UsageError(
            f"{path!r} reads texts as indices of tokens, and this command reads images: "
            "frostbit_runtime.load(FILE)(ids) runs it"
        )
    if network.info.get("preprocess") is None or len(network.inputs) != 1:
        raise UsageError(f"{path!r} does not say how an image becomes its input: it was saved without preprocess=")
    return network


def find(given: Sequence[str]) -> Sequence[Path]:
    """Return the image files that were named, folders searched for theirs.

    Raises:
        UsageError: no such file, or a folder without images.
    """
    found: list[Path] = []
    for name in given:
        path = Path(name)
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS) if path.is_dir() else [path]
        if not inside or not inside[0].exists():
            raise UsageError(f"{name!r} has no images in it" if path.is_dir() else f"no such image: {name!r}")
        found += inside
    return found


def images(network: Network, paths: Sequence[Path], batch: int) -> Loader:
    """Return the batches of some image files as the network wants them."""
    import torch
    from PIL import Image

    from frostbit.data.dataset import Split
    from frostbit.data.decode import DEEP_MODES, decode, stack
    from frostbit.data.sources import RawSplit
    from frostbit.data.stream import StreamSplit

    how = network.info["preprocess"]
    mode = "L" if how["channels"] == 1 else "RGB"

    def opened(row: int) -> Image.Image:
        image = Image.open(paths[row])
        return image if image.mode.startswith(DEEP_MODES) else image.convert(mode)

    raw = RawSplit(opened, torch.zeros(len(paths), dtype=torch.int64), lambda row: str(paths[row]))
    rows = range(len(paths))
    if how.get("crop") == "centre":
        return batches(network, StreamSplit(raw, rows, how["size"]), batch)
    return batches(network, Split(stack([decode(raw, rows, how["size"])])[0], raw.labels), batch)


def batches(network: Network, split: Split | StreamSplit, batch: int) -> Loader:
    """Return the batches of a split, normalized as the file says."""
    from frostbit.data.loader import Loader

    how = network.info["preprocess"]
    return Loader(split, batch, shuffle=False, mean=how["mean"], std=how["std"])


def probabilities(network: Network, loader: Loader, threads: int | None) -> Iterator[list[float]]:
    """Yield the probabilities of all classes, image by image."""
    import numpy as np

    for inputs, _ in loader:
        logits = np.asarray(network(inputs.numpy(), threads=threads), np.float64)
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        yield from (raised / raised.sum(-1, keepdims=True)).tolist()


def accuracy(network: Network, name: str, path: str | None, batch: int, threads: int | None) -> tuple[int, int]:
    """Return how many test images of a data set are labelled right, and how many there are."""
    import numpy as np

    from frostbit import data

    how, trained = network.info["preprocess"], _trained_on(network, name)
    found = data.load(name, path, size=how["size"], limit_train=1, limit_test=trained.get("limit_test"))
    if (
        found.mean is None
        or found.input_shape[0] != how["channels"]
        or (network.labels is not None and list(found.classes) != network.labels)
    ):
        raise UsageError(f"{name!r} has other images or classes than this file's network was trained on")
    hits = 0
    for inputs, labels in batches(network, found.test, batch):
        hits += int((np.asarray(network(inputs.numpy(), threads=threads)).argmax(-1) == labels.numpy()).sum())
    return hits, len(found.test)


def _trained_on(network: Network, name: str) -> dict[str, Any]:
    """Return what the file says about its run's use of a data set, nothing if that was another."""
    data = (network.info.get("run") or {}).get("data") or {}
    return dict(data) if data.get("name") == name else {}


def _trained(network: Network, name: str) -> str:
    final = (network.info.get("run") or {}).get("final")
    return f" ({final['recalibrated']:.2f} % when it was trained)" if final and _trained_on(network, name) else ""


def show(rows: Sequence[dict[str, Any]], how: str) -> None:
    """Print rows of equal keys as a table, as CSV or as JSON."""
    if how == "json":
        print(json.dumps(rows, indent=1))
    elif how == "csv":
        writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        width = max(len(row["image"]) for row in rows)
        for row in rows:
            print(f"{row['image']:<{width}}  {100 * row['probability']:6.2f} %  {row['label']}")
