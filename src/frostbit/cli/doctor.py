"""``frostbit doctor``."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from frostbit.cli.options import make_parser, parse

PACKAGES = (
    *("lightning", "jsonargparse", "tensorboard", "rich", "datasets", "scikit-learn", "pyarrow", "pillow"),
    *("matplotlib", "plotly", "optuna", "transformers"),
)


def run(argv: Sequence[str]) -> int:
    """Print versions, devices, compiler and data; return 1 if something that training needs is missing."""
    parser = make_parser(
        "doctor",
        "Versions, devices, compiler and data found on this machine.",
        usage="[options]",
        settings=False,
    )
    parser.add_argument("--path", type=str | None, help="also look at this folder of data")
    own, _ = parse(parser, argv)

    import torch

    from frostbit.training.provenance import cpu_name, versions

    print("versions")
    for name, version in versions().items():
        _row(name, version)
    missing = [package for package in PACKAGES if not _installed(package)]
    for package in PACKAGES:
        if package not in missing and package != "lightning":
            _row(package, metadata.version(package))
    for package in missing:
        _row(package, "missing: pip install 'frostbit[all]'")
    print("devices")
    _row("cpu", f"{cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        _row(f"cuda:{index}", torch.cuda.get_device_name(index))
    if not torch.cuda.is_available():
        _row("cuda", "none")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    _row("compiler", compiler or "none: torch.compile has to use backend='aot_eager'")
    print("data")
    _row("digits", "comes with scikit-learn" if "scikit-learn" not in missing else "needs scikit-learn")
    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path.home() / ".cache" / "huggingface" / "datasets"))
    found = sorted(entry.name for entry in cache.iterdir() if entry.is_dir()) if cache.is_dir() else []
    _row("hub cache", ", ".join(found) or "nothing downloaded yet")
    if own["path"]:
        _row(own["path"], _describe_folder(Path(own["path"]).expanduser()))
    return 1 if missing else 0


def _row(name: str, value: str) -> None:
    print(f"  {name:<14} {value}")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return importlib.util.find_spec(package) is not None
    return True


def _describe_folder(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    files = sorted(path.name for path in folder.glob("*.parquet"))
    if files:
        return f"parquet files {', '.join(files)}"
    splits = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    counts = {path.name: sum(1 for inner in path.iterdir() if inner.is_dir()) for path in splits}
    found = [f"{name} with {count} class folders" for name, count in counts.items()]
    return ", ".join(found) or "neither parquet files nor class folders"
