"""The house: what imports what, and what `import frostbit` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "frostbit"

# room -> what it may import; the arrows of the design and all that lies behind them, none the other way
ALLOWED = {
    "errors": set(),
    "registry": {"errors"},
    "quantizers": {"errors", "registry"},
    "nn": {"errors", "registry", "quantizers"},
    "graph": {"errors", "nn"},
    "keep": {"errors", "registry"},
    "units": {"errors", "graph", "nn", "quantizers"},
    "counting": {"graph", "nn"},
    # what a network takes when it is packed is asked of the packer
    "summarize": {"counting", "deploy", "errors", "graph", "nn", "units"},
    "signs": {"errors", "graph", "nn", "units"},
    "conversion": {"errors", "registry", "keep", "graph", "nn", "quantizers", "units", "counting", "signs"},
    "binarize": {"errors", "registry", "keep", "graph", "nn", "quantizers", "conversion"},
    "evaluation": {"errors", "nn", "quantizers", "units"},
    "signals": {"nn", "quantizers", "units"},
    "progression": {"errors", "registry", "nn", "quantizers", "units", "signals"},
    "optim": set(),
    "checkpoints": {"errors"},
    "models": {"errors", "registry", "checkpoints"},
    "data": {"errors", "registry", "checkpoints"},
    "analysis": {"errors", "registry", "quantizers", "nn", "progression", "units", "signals"},
    "deploy": {
        "errors",
        "registry",
        "quantizers",
        "nn",
        "graph",
        "units",
        "counting",
        "evaluation",
        "frostbit_runtime",
    },
    "training": {
        *("errors", "registry", "quantizers", "nn", "keep", "graph", "units", "counting", "signs", "binarize"),
        "conversion",
        *("evaluation", "models", "data", "progression", "optim", "signals", "analysis"),
    },
    "cli": {
        *("errors", "registry", "quantizers", "nn", "keep", "graph", "units", "counting", "signs", "binarize"),
        *("evaluation", "models", "data", "progression", "optim", "training", "analysis", "deploy"),
        *("summarize", "frostbit_runtime"),
    },
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for package, *rooms in (name.split(".") for name in names):
            if package == "frostbit":
                found.add(rooms[0] if rooms else "all of frostbit")
            elif package == "frostbit_runtime":
                found.add(package)
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_arrows_run_one_way(room):
    files = [SOURCE / f"{room}.py"] if (SOURCE / f"{room}.py").exists() else (SOURCE / room).rglob("*.py")
    for file in files:
        assert imports(file) <= ALLOWED[room] | {room}, file.name


def test_every_room_is_in_the_plan():
    rooms = {p.stem for p in SOURCE.glob("*.py")} | {p.name for p in SOURCE.iterdir() if list(p.glob("*.py"))}
    assert rooms - {"__init__"} <= set(ALLOWED)


def test_import_needs_torch_alone():
    heavy = ("lightning", "datasets", "transformers", "matplotlib", "plotly", "pandas", "PIL", "sklearn", "yaml")
    heavy += ("numba", "onnx", "onnxruntime", "qonnx", "frostbit_runtime", "frostbit.deploy")
    code = f"import frostbit, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_command_does_not_wait_for_what_it_may_not_use():
    code = "import importlib, sys; from frostbit import cli; [importlib.import_module(f'frostbit.cli.{c}') for c in "
    code += "cli.COMMANDS]; print([m for m in ('lightning', 'torch._dynamo', 'pandas', 'optuna') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
