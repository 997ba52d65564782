"""The benchmarks' house: every machine's figures beside the others'."""

import json
from pathlib import Path

import epochs_to
import flips
import harness
import pandas as pd
import parity
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_every_result_lies_where_its_machine_says():
    """Figures of one processor never stand under the name of another."""
    files = sorted((ROOT / "results" / "benchmarks").rglob("*.json"))
    assert files
    for path in files:
        about = json.loads(path.read_text())
        assert path == harness.place(about["benchmark"], about["machine"]["cpu"])


def test_a_report_leaves_other_machines_figures_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for cpu, ms in (("Some(R) CPU @ 2.0 GHz", 1.0), ("Other CPU", 2.0), ("Some(R) CPU @ 2.0 GHz", 3.0)):
        monkeypatch.setattr(harness, "cpu_name", lambda cpu=cpu: cpu)
        harness.report("step", [{"ms": ms}])
    found = {path.parent.name: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*/step.json")}
    assert found == {"some-r-cpu-2-0-ghz": [{"ms": 3.0}], "other-cpu": [{"ms": 2.0}]}


def test_epochs_to_an_accuracy_are_the_first_at_or_above_it():
    def run(arm, *accuracies):
        curve = [{"epoch": 2 * number, "acc_hardened": value} for number, value in enumerate(accuracies, 1)]
        return {"arm": arm, "curve": curve}

    results = [run("a", 10, 30, 20), run("a", 10, 29.9, 40), run("b", 5, 6, 7), run("c", 30, 30, 30), run("c", 1, 1, 1)]
    assert epochs_to.rows(results, [10, 30]) == [
        ("a", "2.0 ± 0.0", "5.0 ± 1.4"),
        ("b", "never", "never"),
        ("c", "2.0 (1 of 2)", "2.0 (1 of 2)"),
    ]


def test_flips_are_summed_within_quarters_and_averaged_over_units_and_seeds():
    def record(*shares):
        rows = [
            (step, unit, share) for step, pair in enumerate(shares, 1) for unit, share in zip("ab", pair, strict=True)
        ]
        return pd.DataFrame(rows, columns=["step", "unit", "flips"])

    nan = float("nan")  # a unit without binary weights
    one = record((0.1, nan), (0.3, nan), (0, nan), (0, nan), (0.01, nan), (0.01, nan), (1, nan), (0, nan))
    assert flips.by_quarter(one) == pytest.approx([40, 0, 2, 100])
    two = record((0.1, 0.3), (0.2, 0), (0, 0.4), (0.5, 0.5))
    assert flips.by_quarter(two) == pytest.approx([20, 10, 20, 50])
    assert flips.rows({"x": [two], "y": [two, two]}) == [
        ("x", "20.0", "10.0", "20.0", "50.0", "100.0"),
        ("y", "20.0 ± 0.0", "10.0 ± 0.0", "20.0 ± 0.0", "50.0 ± 0.0", "100.0 ± 0.0"),
    ]


def test_parity_asks_every_output_of_networks_that_sum_integers():
    for model, equal, short in (("binarynet", 100.0, False), ("binarynet", 99.9, True), ("resnet18", 99.5, False)):
        found = parity.short_of({"model": model, "file": "ONNX", "equal argmax %": equal})
        assert (found is not None) == short
    assert "99.40 %" in parity.short_of({"model": "resnet18", "file": "packed", "equal argmax %": 99.4})
