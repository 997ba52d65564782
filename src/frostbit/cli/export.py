"""``frostbit export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError

if TYPE_CHECKING:
    from frostbit.training.build import Built
    from frostbit.training.module import TrainingModule

NAMES = {"packed": "net.safetensors", "onnx": "net.onnx", "qonnx": "net.qonnx"}


def run(argv: Sequence[str]) -> int:
    """Write a run's network as a file for deployment; print its size and how it agrees with the network."""
    parser = make_parser(
        "export",
        "Write a run's network, hardened and recalibrated, as a file to ship: packed (bits, for frostbit_runtime), "
        "ONNX or QONNX. What was written is run on test images and compared before the file gets its name.",
        usage="RUN [options]",
        settings=False,
    )
    parser.add_argument("run", type=str, help="run folder, or a checkpoint in it")
    parser.add_argument("--format", type=Literal["packed", "onnx", "qonnx"], default="packed", help="kind of file")
    parser.add_argument("--out", type=str | None, help="the file; net.safetensors, .onnx or .qonnx in RUN if left out")
    parser.add_argument(
        "--rest", type=Literal["float32", "float16"], default="float32", help="packed: norms, scales, real weights"
    )
    parser.add_argument(
        "--real_weights",
        type=Literal["float32", "float16", "int8"] | None,
        help="packed: weights that are not binary, as --rest if left out",
    )
    parser.add_argument("--samples", type=int, default=16, help="test images to compare on")
    parser.add_argument("--path", type=str | None, help="folder of the data, if it moved")
    own, _ = parse(parser, argv)
    if own["samples"] < 1:
        raise UsageError(f"--samples must be at least 1, found {own['samples']}")
    if own["format"] != "packed" and (own["rest"] != "float32" or own["real_weights"]):
        raise UsageError(f"--rest and --real_weights are for packed files, found --format {own['format']}")
    place = Path(own["run"])
    folder = place.parent if place.is_file() else place

    import torch

    from frostbit import deploy

    module, built, which = load_network(folder, place if place.is_file() else None, own["path"])
    images = torch.cat([batch for batch, _ in _first(module.loader(built.data.test), own["samples"])])
    about: dict[str, Any] = {
        "labels": built.data.classes,
        "preprocess": preprocessing(built),
        "run": identity(folder, built, which),
    }
    out = Path(own["out"] or folder / NAMES[own["format"]])
    given = images[: own["samples"]]
    if own["format"] == "packed":
        encodings = {"rest": own["rest"], "real_weights": own["real_weights"]}
        print(deploy.save(module.net, given, out, **encodings, **about))
    else:
        write = deploy.export_onnx if own["format"] == "onnx" else deploy.export_qonnx
        print(write(module.net, given, out, **about))
    return 0


def _first(batches: Any, count: int) -> Any:
    for images, labels in batches:
        yield images, labels
        count -= len(labels)
        if count <= 0:
            return


def load_network(folder: Path, checkpoint: Path | None, data_path: str | None) -> tuple[TrainingModule, Built, str]:
    """Rebuild a run's network as it is reported: last epoch, batch-norm statistics recalibrated.

    Args:
        folder: the run's folder.
        checkpoint: a file of it; ``final.pt`` if there is one, else ``last.ckpt``.
        data_path: where its data is now, if not where it was.

    Returns:
        The module that holds the network, the parts it was made of, and the name of the file.
    """
    from frostbit.evaluation import recalibrate_
    from frostbit.training.files import load_tensors
    from frostbit.training.run import load_run, recalibration_batches

    module, built = load_run(folder, data_path=data_path)
    final = folder / "final.pt"
    chosen = checkpoint or (final if final.exists() else folder / "last.ckpt")
    if chosen.name == "last.ckpt":
        if built.report is not None and built.recipe.train.recalibrate_batches:
            recalibrate_(module.net, recalibration_batches(module))
    elif chosen.name == final.name:
        module.net.load_state_dict(load_tensors(final))
    else:
        raise UsageError(f"a run has last.ckpt and final.pt to export, found {chosen.name!r}")
    return module, built, chosen.name


def preprocessing(built: Built) -> dict[str, Any] | None:
    """Return what makes an input of an image: its size, channels and statistics, and how it is cropped.

    ``None`` for a network of texts.
    """
    data = built.data
    if data.mean is None or data.std is None:
        return None
    channels, size, _ = data.input_shape
    statistics = {"mean": list(data.mean), "std": list(data.std)}
    return {"size": size, "channels": channels, **statistics, "crop": "centre" if data.test.streams else None}


def identity(folder: Path, built: Built, which: str) -> dict[str, Any]:
    """Return which run a file comes from, and what it reached; nothing in it names the machine."""
    from frostbit.training.files import read_json
    from frostbit.training.run import read_config

    _, arm, seed = read_config(folder)
    data = built.recipe.data
    found = {"recipe": built.recipe.name, "arm": arm, "seed": seed, "checkpoint": which}
    found["data"] = {
        "name": data.name,
        "size": data.size,
        "limit_train": data.limit_train,
        "limit_test": data.limit_test,
    }
    if (folder / "result.json").exists():
        result = read_json(folder / "result.json")
        found |= {key: result[key] for key in ("git", "versions", "final")}
    return found
