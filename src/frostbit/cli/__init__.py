"""The command line: ``frostbit <command> [options]``."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from frostbit.errors import RunError, UsageError
from frostbit.registry import nearest

COMMANDS = {
    "train": "train one network",
    "compare": "train several methods on one recipe and hold them side by side",
    "reproduce": "run a published table, or list them all beside the figures measured so far",
    "sweep": "search settings of a recipe by their accuracy on validation samples",
    "evaluate": "accuracies of a trained run: as it is, hardened, recalibrated",
    "summary": "layers, bits, bytes and multiply-accumulates of a network",
    "inspect": "what happened inside runs: saw-tooth, gradients, flips",
    "export": "write a run's network as a packed file, as ONNX or as QONNX",
    "predict": "labels and probabilities of images, by a packed file",
    "bench": "time a packed file beside the same network in torch and onnxruntime",
    "doctor": "versions, devices and data found on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``frostbit``; those of the process if left out.

    Returns:
        The exit code: 0 for success, 1 for a run that failed, 2 for a request that cannot be.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    before, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_help(), flush=True)
            return 0 if words else 2
        if words[0] == "--version":
            print(f"frostbit {version('frostbit')}", flush=True)
            return 0
        command, *rest = words
        if command not in COMMANDS:
            known = ("--help", "--version") if command.startswith("-") else COMMANDS
            raise UsageError(f"unknown command {command!r}: {nearest(command, known)}")
        module = importlib.import_module(f"frostbit.cli.{command}")
        code = int(module.run(rest))
        sys.stdout.flush()
        return code
    except (UsageError, RunError) as error:
        if debug:
            raise
        print(f"frostbit: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("frostbit"):
            raise
        print(f"frostbit: needs the package {error.name!r}: pip install 'frostbit[all]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads, such as `head`, has enough; nothing may be written when Python closes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("frostbit: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = before


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    return f"frostbit: warning: {message}\n"


def _help() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: frostbit <command> [options]",
            "",
            "Train deep binary neural networks.",
            "",
            *lines,
            "",
            "frostbit <command> --help shows its options; --debug shows the traceback of an error.",
            "frostbit --version shows the version, frostbit doctor those of everything else too.",
        ]
    )
