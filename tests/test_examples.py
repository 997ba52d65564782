"""The examples do what they say: the bound holds, BC oscillates, PC settles."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("regularizer", ["box", "l1"])
def test_averaged_and_last_iterate_stay_under_the_bound(regularizer):
    convex = load("convex")
    gaps = convex.run(regularizer, steps=400)
    for t in range(400):
        for key in ("last", "averaged"):
            assert -1e-9 < gaps[key][t] <= gaps["bound"][t], (key, t)
    # the bound leaves room: what it promises for late steps is far above what is reached
    assert gaps["last"][-1] < 0.12 * gaps["last"][0]
    assert gaps["averaged"][-1] < 0.4 * gaps["averaged"][0]
    ratio = gaps["bound"][399] / gaps["bound"][99]
    assert ratio == pytest.approx((2 + 1.5 * math.log(400)) / (2 + 1.5 * math.log(100)) / 2)


def test_bc_oscillates_where_pc_settles():
    oscillation = load("oscillation")
    ends = {rule: oscillation.summary(*oscillation.run(rule)) for rule in oscillation.RULES}
    assert ends["PC"]["settled at loss 0"] == oscillation.STARTS
    assert ends["BC"]["settled"] <= 0.2 * oscillation.STARTS
    assert ends["BC"]["signs changed per step and start, last quarter"] > 5
    committed = json.loads((EXAMPLES.parent / "results" / "examples" / "oscillation.json").read_text())
    assert committed["PC"]["settled"] == oscillation.STARTS


def test_the_examples_write_their_figures(tmp_path, monkeypatch):
    oscillation = load("oscillation")
    monkeypatch.setattr(oscillation, "run", lambda rule, f=oscillation.run: f(rule, steps=8))
    out = ["--figure", str(tmp_path / "a.png"), "--result", str(tmp_path / "r" / "a.json")]
    monkeypatch.setattr(sys, "argv", ["oscillation.py", *out])
    oscillation.main()
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert set(json.loads((tmp_path / "r" / "a.json").read_text())) == {"BC", "PC"}
