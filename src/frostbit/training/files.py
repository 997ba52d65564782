"""Files that are either the old version or the new one, never half of one."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from frostbit.errors import RunError, UsageError


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write a file through a temporary one beside it, so that a kill or a full disk spares the old one.

    Args:
        path: the file; its folder is made if needed.
        content: all of it; text is written as UTF-8.

    Raises:
        RunError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "; the older version is kept" if path.exists() else ""
        raise RunError(f"cannot write {str(path)!r}: {error.strerror}{kept}") from None


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a mapping as readable JSON, atomically; see :func:`write_atomically`."""
    write_atomically(path, json.dumps(data, indent=1, default=str) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that this package wrote.

    Raises:
        UsageError: it is absent or not such a file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or 'not JSON'}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{str(path)!r} must hold one JSON object, found {type(data).__name__}")
    return data


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically; the columns are the keys in order of first appearance."""
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def save_tensors(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a checkpoint or state dict, atomically; see :func:`write_atomically`."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    write_atomically(path, buffer.getvalue())


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint or state dict without executing anything it contains.

    Args:
        path: a file written by ``torch.save``.

    Returns:
        The mapping it holds, tensors on the CPU.

    Raises:
        UsageError: no such file, or not a readable checkpoint.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot read the checkpoint {str(path)!r}: {error.strerror}") from None
    except Exception:  # whatever the unpickler stumbles over in a file that is none
        raise UsageError(f"{str(path)!r} is damaged or is no checkpoint of torch") from None
    if not isinstance(data, dict):
        raise UsageError(f"{str(path)!r} must hold a state dict, found {type(data).__name__}")
    return data
