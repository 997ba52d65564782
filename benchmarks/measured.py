"""Write the measured tables of README and docs/benchmarks.md from `results/`: `python benchmarks/measured.py`.

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
        found.setdefault(result["arm"], {})[result["seed"]] = result["final"]  # the recipe may name it by a grid
    return {arm: by_seed for arm, by_seed in found.items() if by_seed}


def spread(by_seed: dict[int, dict[str, Any]] | None, key: str) -> str:
    """Return mean ± standard deviation over seeds, or a dash."""
    return str(Spread.of([final[key] for final in by_seed.values()])) if by_seed else "–"


def trial_table() -> str:
    """Return the trial network under SGD and Adam."""
    studies = {"trial-sgd": "SGD", "trial-adam": "Adam"}
    by_study = {title: runs(study) for study, title in studies.items()}
    arms = [arm for arm in dict.fromkeys(arm for found in by_study.values() for arm in found) if "tail" not in arm]
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


def recommended_table() -> str:
    """Return the recommended recipe beside the best-tuned baselines, on two triples of seeds."""
    found, rows = runs("frostbit"), []
    baselines = {"ste": "STE, Adam 0.03, cosine", "stompp": "StoMPP+STE, Adam 0.01, constant"}
    for placement, title in (("shortcut", "real shortcuts"), ("paper", "the paper's form")):
        ours = found.get(f"{placement}-frostbit", {})
        for method, tuned in baselines.items():
            base = found.get(f"{placement}-{method}", {})
            if base:
                triples = [{seed: ours[seed] for seed in seeds & set(ours)} for seeds in ({0, 1, 2}, {3, 4, 5})]
                gains = [gain(triple, base) for triple in triples]
                rows.append((title, tuned, spread(base, "recalibrated"), spread(ours, "recalibrated"), *gains))
    titles = ("placement", "baseline", "its accuracy", "`method: frostbit`", "gain, seeds 0 to 2", "gain, seeds 3 to 5")
    return markdown(titles, rows)


def gain(arm: dict[int, dict[str, Any]] | None, base: dict[int, dict[str, Any]]) -> str:
    """Return the mean difference over the seeds that both have, with its spread."""
    seeds = sorted(set(arm or {}) & set(base))
    return str(Spread.of([(arm or {})[s]["recalibrated"] - base[s]["recalibrated"] for s in seeds])) if seeds else "–"


def benchmark_tables() -> str:
    """Return every benchmark's rows, machine by machine."""
    parts = []
    for path in sorted((RESULTS / "benchmarks").glob("*/*.json")):
        data = json.loads(path.read_text())
        rows = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in data["rows"]]
        machine = data["machine"]
        about = f"{machine['cpu']}, {machine['threads']} thread, torch {machine['torch']}"
        parts.append(f"`python benchmarks/{path.stem}.py` ({about}):\n\n{markdown(list(data['rows'][0]), rows)}")
    return "\n".join(parts)


# what is said of speed at first sight: statement, benchmark, its row (first columns), column
HEADLINES = (
    ("STE training step / float step", "step", ("STE",), "x float"),
    ("bytes kept for backward, STE / float", "step", ("STE",), "bytes x float"),
    ("compiled STE step / compiled float step", "step", ("STE, compiled",), "x float"),
    ("STE-free step, half of the units frozen / STE step", "step", ("StoMPP, half frozen",), "x STE"),
    ("whole STE-free run / STE run", "whole_run", ("StoMPP, STE-free",), "x STE"),
    ("what the recorder adds to a ResNet-18 step, %", "recorder", ("resnet18",), "overhead %"),
    ("Bop2ndOrder step / foreach Adam step", "flip_step", ("Bop2ndOrder, none",), "x Adam"),
    (
        "torch float32 / packed 3x3, 256 to 256 at 14x14",
        "kernels",
        ("", "256 to 256 at 14x14", "float to float"),
        "x torch",
    ),
    *(
        (f"{engine} / packed {title}, {input_}", "deploy", (network, engine, 1, 1), "x runtime")
        for network, title, input_, attends in (
            ("binarynet at 32", "BinaryNet", "one image", False),
            ("bireal18 at 224", "Bi-Real-18", "one image", False),
            ("vit_small at 224", "ViT-small", "one image", True),
            ("bert at 64", "BERT (6 layers of 384)", "64 tokens", True),
        )
        for engine in ("onnxruntime float32", "onnxruntime int8", "larq-compute-engine 0.16.0")
        if not (attends and engine.startswith("larq"))  # it has no attention
    ),
)


def speed_table() -> str:
    """Return the headlines, one column for each machine; a dash where a machine has no such figure."""
    machines = sorted({path.parent for path in (RESULTS / "benchmarks").glob("*/*.json")})
    names, rows = [], [[label] for label, *_ in HEADLINES]
    for folder in machines:
        names.append(json.loads(next(folder.glob("*.json")).read_text())["machine"]["cpu"])
        for cells, (_, benchmark, wanted, column) in zip(rows, HEADLINES, strict=True):
            path = folder / f"{benchmark}.json"
            found = json.loads(path.read_text())["rows"] if path.exists() else []
            match = (row for row in found if all(w in ("", v) for w, v in zip(wanted, row.values(), strict=False)))
            value = next(match, {}).get(column, "–")
            cells.append(f"{value:.2f}" if isinstance(value, float) else str(value))
    return markdown(("one thread", *names), rows)


README: dict[str, Callable[[], str]] = {
    "Test accuracy in percent of the fully binary network, last epoch, mean ± sd over seeds; batch norm recalibrated "
    "on training images, or raw. CIFAR-10 (JPEG copy) at 16x16, 10 240 training images, 20 epochs, a ResNet with real "
    "shortcuts and 12 binary convolutions (`recipes/trial-*.yaml`; one CPU core a run). `bwn` arms have binary weights "
    "alone; a figure without ± is one seed:": trial_table,
    "The paper's form (the residual sum is binarized too) by depth: width 8, 5 120 images, 10 epochs, SGD "
    "(`recipes/depth.yaml`); the baseline's rate is the best of three on seed 0:": depth_table,
    "The recommended recipe (latent weights moved by Muon, a cosine, a float teacher of the same shape trained as "
    "long) beside the baselines that validation images chose (`recipes/frostbit-baselines.yaml`), on the first table's "
    "network, six seeds (`recipes/frostbit.yaml`; everything was chosen on seed 0):": recommended_table,
    "Speed, medians of alternating rounds in one process; [all benchmarks](docs/benchmarks.md):": speed_table,
}


def write(path: Path, parts: list[str]) -> None:
    """Rewrite the block between the markers of a page."""
    block = "<!-- measured -->\n" + "\n".join(parts) + "<!-- /measured -->"
    text = path.read_text()
    path.write_text(re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: block, text, flags=re.DOTALL))


if __name__ == "__main__":
    write(ROOT / "README.md", [f"{about}\n\n{table()}" for about, table in README.items()])
    write(ROOT / "docs" / "benchmarks.md", [benchmark_tables()])
