"""The benchmarks' house: every machine's figures beside the others'."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import harness  # noqa: E402  # after its folder is on the path


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
