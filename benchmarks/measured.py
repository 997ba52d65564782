"""Write the README's measured tables from the files in `results/`: `python benchmarks/measured.py`.

Nothing between the markers is typed by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from frostbit.analysis.tables import Spread, markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
Runs = dict[str, dict[int, dict[str, Any]]]


def runs(study: str) -> Runs:
    """Return a study's final figures by arm, in the recipe's order, and seed."""
    found: Runs = {arm: {} for arm in yaml.safe_load((ROOT / "recipes" / f"{study}.yaml").read_text())["arms"]}
    for path in sorted((RESULTS / study).glob("*.json")):
        result = json.loads(path.read_text())
        found[result["arm"]][result["seed"]] = result["final"]
    return {arm: by_seed for arm, by_seed in found.items() if by_seed}


def spread(by_seed: dict[int, dict[str, Any]] | None, key: str) -> str:
    """Return mean ± standard deviation over seeds, or a dash."""
    return str(Spread.of([final[key] for final in by_seed.values()])) if by_seed else "–"


def trial_table() -> str:
    """Return the trial network under SGD (two refresh rates) and Adam."""
    studies = {"trial-sgd": "SGD", "trial-refresh6": "SGD, refresh 6", "trial-adam": "Adam"}
    by_study = {title: runs(study) for study, title in studies.items()}
    arms = list(dict.fromkeys(arm for found in by_study.values() for arm in found))
    keys = [(title, key) for title in by_study for key in ("recalibrated", "raw")]
    rows = [(arm, *(spread(by_study[title].get(arm), key) for title, key in keys)) for arm in arms]
    return markdown(("arm", *(f"{title}, {key}" for title, key in keys)), rows)


def depth_table() -> str:
    """Return accuracy by depth in the paper's form, and the gain over the best-tuned baseline."""
    found = runs("depth")
    rows = []
    for layers in ("10", "18", "34"):
        mine = {arm.partition("-")[2]: by_seed for arm, by_seed in found.items() if arm.startswith(f"{layers}-")}
        rates = [arm for arm in mine if arm.startswith("ste-")]
        if not rates:
            continue
        best = max(rates, key=lambda arm: mine[arm][0]["recalibrated"])  # by the seed that all three rates have
        cells = [
            layers,
            spread(mine.get("float"), "recalibrated"),
            f"{spread(mine[best], 'recalibrated')} ({best[4:]})",
        ]
        cells += [spread(mine.get(arm), "recalibrated") for arm in ("stompp", "stompp+ste")]
        cells += [gain(mine.get(arm), mine[best]) for arm in ("stompp", "stompp+ste")]
        rows.append(cells)
    titles = ("layers", "float", "STE (rate)", "StoMPP", "StoMPP+STE", "gain, STE-free", "gain, +STE")
    return markdown(titles, rows)


def gain(arm: dict[int, dict[str, Any]] | None, base: dict[int, dict[str, Any]]) -> str:
    """Return the mean difference over the seeds that both have, with its spread."""
    seeds = sorted(set(arm or {}) & set(base))
    return str(Spread.of([(arm or {})[s]["recalibrated"] - base[s]["recalibrated"] for s in seeds])) if seeds else "–"


def benchmark_table(path: Path) -> str:
    """Return one benchmark's rows and the machine that they were measured on."""
    data = json.loads(path.read_text())
    rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in data["rows"]]
    machine = data["machine"]
    about = f"`benchmarks/{path.stem}.py` ({machine['cpu']}, {machine['threads']} thread, torch {machine['torch']}):"
    return f"{about}\n\n{markdown(list(data['rows'][0]), rows)}"


SECTIONS: dict[str, Callable[[], str]] = {
    "Test accuracy in percent of the fully binary network, last epoch, mean ± sd over seeds; batch norm recalibrated "
    "on training images, or raw. CIFAR-10 (JPEG copy) at 16x16, 10 240 training images, 20 epochs, a ResNet with real "
    "shortcuts and 12 binary convolutions (`recipes/trial-*.yaml`; one CPU core a run):": trial_table,
    "The paper's form (the residual sum is binarized too) by depth: width 8, 5 120 images, 10 epochs, SGD "
    "(`recipes/depth.yaml`); the baseline's rate is the best of three on seed 0:": depth_table,
}


def main() -> None:
    """Rewrite the block between the markers."""
    parts = [f"{about}\n\n{table()}" for about, table in SECTIONS.items()]
    files = sorted((RESULTS / "benchmarks").glob("*/*.json"), key=lambda path: path.stem)
    parts += map(benchmark_table, files)
    block = "<!-- measured -->\n" + "\n".join(parts) + "<!-- /measured -->"
    readme = ROOT / "README.md"
    text = readme.read_text()
    readme.write_text(re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: block, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
