"""A user's own Python files: what they register has a name in recipes and on the command line."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from frostbit.errors import UsageError


def import_files(names: Iterable[str]) -> list[str]:
    """Run Python files, each once in this process.

    Args:
        names: of the files; relative ones start at the current folder.

    Returns:
        The files' full names, so that other processes find them from elsewhere.

    Raises:
        UsageError: no such file, or an error in one.
    """
    found = []
    for name in names:
        path = Path(name).resolve()
        if path.suffix != ".py" or not path.is_file():
            raise UsageError(f"imports names Python files, which register quantizers or models: {name!r} is none")
        module_name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if module_name not in sys.modules:
            spec = importlib.util.spec_from_file_location(module_name, path)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                del sys.modules[module_name]
                raise UsageError(f"imports: {name!r} fails with {type(error).__name__}: {error}") from error
        found.append(str(path))
    return found
