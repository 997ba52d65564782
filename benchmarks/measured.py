"""Write the README's measured tables from the files in `results/`: `python benchmarks/measured.py`.

Nothing between the markers is typed by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from frostbit.analysis.tables import Spread, markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
STUDIES = {
    "trial-sgd": "12 binary convolutions, real shortcuts, CIFAR-10 (JPEG) at 16x16, 10 240 images, 20 epochs, SGD 0.1",
    "trial-adam": "the same network and data, Adam 0.003 with a cosine",
    "depth": "the paper's form (residual sum binarized) at 10, 18 and 34 layers, width 8, 5 120 images, 10 epochs, SGD",
}


def runs(study: str) -> dict[str, list[dict[str, Any]]]:
    """Return the results of a study by arm."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((RESULTS / study).glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["arm"], []).append(result)
    return found


def study_table(study: str, about: str) -> str:
    """Return one study: accuracy of the fully binary network, recalibrated and raw, mean and spread over seeds."""
    by_arm = runs(study)
    if not by_arm:
        return ""
    order = list(next(iter(by_arm.values()))[0]["resolved"].get("arms") or by_arm)
    rows = [
        (
            arm,
            str(Spread.of([r["final"]["recalibrated"] for r in by_arm[arm]])),
            str(Spread.of([r["final"]["raw"] for r in by_arm[arm]])),
            str(len(by_arm[arm])),
        )
        for arm in sorted(by_arm, key=lambda arm: order.index(arm) if arm in order else len(order))
    ]
    head = f"**`recipes/{study}.yaml`**: {about}. Test accuracy, fully binary, last epoch.\n\n"
    return head + markdown(("arm", "recalibrated %", "raw %", "seeds"), rows)


def benchmark_table(name: str) -> str:
    """Return one benchmark's rows and the machine that they were measured on."""
    path = RESULTS / "benchmarks" / f"{name}.json"
    if not path.exists():
        return ""
    data = json.loads(path.read_text())
    rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in data["rows"]]
    machine = data["machine"]
    head = f"**`benchmarks/{name}.py`**, {machine['cpu']}, {machine['threads']} thread, torch {machine['torch']}\n\n"
    return head + markdown(list(data["rows"][0]), rows)


def main() -> None:
    """Rewrite the block between the markers."""
    parts = [study_table(study, about) for study, about in STUDIES.items()]
    parts += [benchmark_table(path.stem) for path in sorted((RESULTS / "benchmarks").glob("*.json"))]
    block = "<!-- measured -->\n" + "\n".join(part for part in parts if part) + "<!-- /measured -->"
    readme = ROOT / "README.md"
    text = readme.read_text()
    readme.write_text(re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: block, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
