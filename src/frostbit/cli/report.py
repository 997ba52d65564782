"""The pages that commands leave behind."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from frostbit.analysis import Section, differences_by_value, figures, page, summarize
from frostbit.analysis.page import image, links, preformatted, table, text
from frostbit.analysis.sawtooth import sawtooth_amplitude
from frostbit.analysis.tables import arm_table
from frostbit.training.files import read_json, write_atomically

Result = Mapping[str, Any]


def read_steps(folder: Path, name: str = "metrics_steps.csv") -> list[dict[str, Any]]:
    """Return the rows of one of a run's CSV files as numbers; none if it is absent."""
    path = folder / name
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {key: int(value) if key == "step" else float(value or "nan") for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def live_result(folder: Path) -> Result:
    """Return a run's result, or as much of one as a running or interrupted run can show."""
    if (folder / "result.json").exists():
        return read_json(folder / "result.json")
    from frostbit.training.run import read_config, read_windows

    _, arm, seed = read_config(folder)
    return {"arm": arm, "seed": seed, "windows": read_windows(folder)}


def write_run_page(folder: Path, result: Result) -> None:
    """Write ``report.html``, ``curves.png`` and ``inspect.png`` of one run.

    Args:
        folder: the run's folder.
        result: its result.
    """
    curve_png = figures.to_png(figures.curves({result["arm"]: [result["curve"]]}))
    write_atomically(folder / "curves.png", curve_png)
    sections = [
        Section("Result", table(("", ""), _result_rows(result))),
        Section("Accuracy", image(curve_png, "Accuracy over epochs.")),
    ]
    inside = inside_section(folder, result)
    if inside is not None:
        sections.append(inside)
    sections += [Section("Configuration", preformatted(_yaml(result["resolved"]))), origin_section([result])]
    title = f"{result['recipe']}: {result['arm']}, seed {result['seed']}"
    write_atomically(folder / "report.html", page(title, "One training run.", sections))


def inside_section(folder: Path, result: Result) -> Section | None:
    """Write ``inspect.png`` of one run, and ``flips.png`` where weights flip, and return the section that shows them.

    Returns:
        The section; ``None`` without records.
    """
    steps = read_steps(folder)
    if not steps:
        return None
    png = figures.to_png(figures.sawtooth(steps, result["windows"]))
    write_atomically(folder / "inspect.png", png)
    body = image(png, f"Training of {result['arm']}, seed {result['seed']}, step by step.")
    amplitude = sawtooth_amplitude(steps, result["windows"])
    if amplitude is not None:
        drop = f"Median drop of train accuracy in the first tenth of a window: {amplitude:.1f} points."
        body = text(drop) + body
    drawn = figures.flips(steps)
    if drawn is not None:
        png = figures.to_png(drawn)
        write_atomically(folder / "flips.png", png)
        headings = ("layer", "flips of a weight, whole run", "share flipping in a step, last record", "undecided, last")
        body += image(png, "Flips, layer by layer.") + table(headings, _flip_rows(steps), figures=True)
    body += "".join(text(f"Warning: {sentence}.") for sentence in result.get("warnings", []))
    return Section("Inside the run", body)


def _flip_rows(steps: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    spans = [row["step"] - before for row, before in zip(steps, (0, *(row["step"] for row in steps)), strict=False)]
    rows: list[Sequence[str]] = []
    for layer in figures.flip_layers(steps):
        ratios = [row[f"flips/{layer}"] for row in steps]
        total = sum(ratio * span for ratio, span in zip(ratios, spans, strict=True))
        rows.append((layer, f"{total:.3g}", f"{ratios[-1]:.2g}", f"{100 * steps[-1][f'undecided/{layer}']:.1f} %"))
    return rows


def comparison_page(
    name: str,
    results: Sequence[Result],
    differences: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, str],
) -> tuple[str, bytes]:
    """Return the page of a comparison and its figure.

    Args:
        name: the recipe's name.
        results: of all runs, in the order of the arms.
        differences: as from :func:`frostbit.training.settings.differences`.
        failures: ``{run: the sentence it stopped with}``.

    Returns:
        HTML and PNG.
    """
    png = figures.to_png(figures.curves(curves_by_arm(results)))
    accuracy = Section(
        "Accuracy of the binary networks",
        table(*arm_table(summarize(results)), figures=True)
        + text(
            "Test accuracy of the last epoch with every unit fully binary; recalibrated: batch-norm "
            "statistics taken anew on training images. Mean ± standard deviation over seeds."
        ),
    )
    curves = Section("Curves", image(png, "Mean over seeds; a band or bar spans lowest to highest seed."))
    stopped = Section("Runs that stopped", table(("run", "why"), list(failures.items())))
    differing = Section(
        "In which settings the arms differ",
        table(("setting", "value", "arms"), differences_by_value(differences)),
    )
    parts = [(accuracy, results), (stopped, failures), (curves, results), (differing, True)]
    sections = [section for section, what in parts if what]
    if results:
        runs = [f"{result['arm']}-seed{result['seed']}" for result in results]
        sections.append(Section("Runs", links({run: f"{run}/report.html" for run in runs})))
        config = _yaml(results[0]["resolved"])
        sections.append(Section(f"Configuration of {runs[0]}", preformatted(config)))
        sections.append(origin_section(results))
    return page(f"{name}: comparison", f"{len(results)} runs.", sections), png


def curves_by_arm(results: Sequence[Result]) -> dict[str, list[Any]]:
    """Return ``{arm: [curve of each seed]}``."""
    arms: dict[str, list[Any]] = {}
    for result in results:
        arms.setdefault(result["arm"], []).append(result["curve"])
    return arms


def origin_section(results: Sequence[Result]) -> Section:
    """Return the section that says by which code, versions and hardware the figures came about."""
    rows = []
    for key in ("git", "versions", "hardware"):
        for value in dict.fromkeys(_pairs(result[key]) for result in results):
            rows.append((key, value))
    return Section("Origin", table(("", ""), rows))


def _pairs(mapping: Mapping[str, Any] | None) -> str:
    return "none" if mapping is None else ", ".join(f"{key} {value}" for key, value in mapping.items())


def _result_rows(result: Result) -> list[tuple[str, str]]:
    final = result["final"]
    return [
        ("test accuracy, hardened, recalibrated", f"{final['recalibrated']:.2f} %"),
        ("test accuracy, hardened, raw", f"{final['raw']:.2f} %"),
        ("train accuracy", f"{final['train']:.2f} %"),
        ("share of binary multiply-accumulates", f"{100 * result['binary_macs']:.1f} %"),
        ("optimizer steps", str(result["resolved"]["derived"]["steps"])),
        ("seconds", f"{result['seconds']:.1f}"),
        ("core seconds", f"{result['seconds_cpu']:.1f}"),
    ]


def _yaml(config: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(config), sort_keys=False))
