"""The house: what imports what, and what `import frostbit` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "frostbit"

# room -> rooms that it may import; the arrows of the design, none the other way
ALLOWED = {
    "errors": set(),
    "registry": {"errors"},
    "quantizers": {"errors", "registry"},
    "nn": {"errors", "registry", "quantizers"},
    "graph": {"errors", "nn"},
    "keep": {"errors", "registry"},
    "units": {"errors", "graph", "nn", "quantizers"},
    "counting": {"graph", "nn"},
    "summarize": {"counting", "deploy", "errors", "graph", "nn", "units"},
    "deploy": {"errors", "registry", "nn", "quantizers", "graph", "evaluation"},
    "binarize": {"errors", "registry", "keep", "graph", "nn", "quantizers", "units", "counting"},
    "evaluation": {"errors", "nn", "quantizers", "units"},
    "progression": {"errors", "registry", "nn", "quantizers", "units"},
    "optim": set(),
    "models": {"errors", "registry"},
    "data": {"errors", "registry"},
}
ALLOWED["analysis"] = set(ALLOWED)
ALLOWED["training"] = set(ALLOWED)
ALLOWED["cli"] = set(ALLOWED)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "frostbit":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("frostbit.")}
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
