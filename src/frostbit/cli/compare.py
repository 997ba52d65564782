"""``frostbit compare``."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostbit.analysis import differences_by_value, markdown, summarize
from frostbit.analysis.tables import arm_table
from frostbit.cli.options import make_parser, parse
from frostbit.cli.train import check_vacant, read_recipe
from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.training.files import read_json, write_atomically, write_json
from frostbit.training.methods import METHODS
from frostbit.training.recipe import Recipe
from frostbit.training.resolve import resolve
from frostbit.training.settings import Flat, changed, differences, flatten, overlay, to_dict


@dataclass
class Job:
    """One run of the comparison."""

    arm: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """The run's short name."""
        return f"{self.arm}-seed{self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return (self.folder / "result.json").exists()


def run(argv: Sequence[str]) -> int:
    """Run every arm with every seed; return the exit code."""
    parser = make_parser(
        "compare",
        "Train several methods on one matched recipe and hold them side by side. Finished runs are not "
        "repeated, interrupted ones go on where they stopped.",
        usage="[recipe.yaml | --methods a,b] [options]",
        without=["method"],
    )
    parser.add_argument("recipe", nargs="?", type=str | None, help="recipe file (YAML) with arms")
    parser.add_argument("--config", type=str | None, help="the same, as an option")
    parser.add_argument("--methods", type=str | None, help=f"without a recipe: some of {', '.join(METHODS)}")
    add_options(parser)
    parser.add_argument("--results", type=str | None, help="also write results and table to DIR/<recipe>/")
    own, given = parse(parser, argv)
    return compare(own, given)


def add_options(parser: Any) -> None:
    """Add the options that every command over several runs has."""
    parser.add_argument("--scale", type=str | None, help="full, or one of the recipe's smaller scales, e.g. cpu")
    parser.add_argument("--arms", type=str | None, help="only these arms of the recipe, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; one thread each if several")
    parser.add_argument("--out", type=str | None, help="folder of the experiment; runs/<name> if left out")
    parser.add_argument("--overwrite", action="store_true", help="replace runs that had other settings")
    parser.add_argument("--quiet", action="store_true", help="print the table only")


def compare(own: dict[str, Any], given: Flat) -> int:
    """Run what the parsed options ask for, show one table; return 1 if some run stopped with an error."""
    if own["jobs"] < 1:
        raise UsageError(f"--jobs must be at least 1, found {own['jobs']}")
    stated = read_recipe(own)
    recipes = arm_recipes(stated, own, given)
    first = next(iter(recipes.values()))
    out = Path(own["out"] or Path("runs") / first.name)
    jobs = [
        Job(arm, seed, recipe, out / f"{arm}-seed{seed}") for seed in first.seeds for arm, recipe in recipes.items()
    ]
    order = list(recipes)

    def finished() -> list[dict[str, Any]]:
        done = sorted((job for job in jobs if job.finished), key=lambda job: order.index(job.arm))
        return [read_json(job.folder / "result.json") for job in done]

    def file_results() -> None:
        if own["results"]:
            write_results(Path(own["results"]) / first.name, finished(), list(stated.get("arms") or order))

    failures = run_jobs(jobs, own["jobs"], overwrite=own["overwrite"], quiet=own["quiet"], after_each=file_results)
    file_results()
    show(first.name, finished(), recipes, failures, out)
    return 1 if failures else 0


def write_results(folder: Path, results: Sequence[dict[str, Any]], arms: Sequence[str]) -> None:
    """Add results to a folder, and write the table of all that lie there."""
    for result in results:
        write_json(folder / f"{result['arm']}-seed{result['seed']}.json", result)
    write_atomically(folder / "table.md", markdown(*arm_table(summarize(read_results(folder, arms)))))


def read_results(folder: Path, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return the results of these arms that lie in a folder, in the order of the arms."""
    found = [read_result(path) for path in sorted(folder.glob("*-seed*.json"))]
    return sorted((run for run in found if run["arm"] in arms), key=lambda run: arms.index(run["arm"]))


def read_result(path: Path) -> dict[str, Any]:
    """Return the result of one run.

    Raises:
        UsageError: the file cannot be read, or lacks what a table shows.
    """
    result = read_json(path)
    lacking = [key for key in ("arm", "seed", "final", "seconds") if key not in result]
    if lacking:
        raise UsageError(f"{str(path)!r} is no result of a run: it has no {lacking[0]!r}")
    return result


def arm_recipes(stated: Flat, own: dict[str, Any], given: Flat) -> dict[str, Recipe]:
    """Return the complete recipe of each arm.

    Args:
        stated: flat settings of the recipe file.
        own: the command's own options.
        given: the command line's settings; they win in every arm that has such a thing at all.

    Raises:
        UsageError: no arms, an unknown arm or method, or a setting that no arm has a use for.
    """
    arms = dict(stated.get("arms") or {})
    if own["methods"]:
        if arms:
            raise UsageError("the recipe has arms of its own: choose among them with --arms, not --methods")
        arms = {name: {"method": name} for name in own["methods"].split(",")}
        given = {"name": "-".join(arms) if not stated else stated.get("name", "run"), **given}
    if not arms:
        raise UsageError("nothing to compare: name a recipe with arms, or --methods such as float,ste,stompp")
    if own["arms"]:
        chosen = own["arms"].split(",")
        for name in chosen:
            if name not in arms:
                raise UsageError(f"the recipe has no arm {name!r}: {nearest(name, arms)}")
        arms = {name: arms[name] for name in chosen}
    layers = {name: flatten(settings or {}, f"arm {name!r}") for name, settings in arms.items()}
    common = {name: value for name, value in stated.items() if name not in ("arms", "scales")}  # long, and of no arm
    recipes: dict[str, Recipe] = {}
    refused: list[UsageError] = []
    for name, layer in layers.items():
        recipes[name] = resolve(overlay(common, layer), given)
        try:
            resolve(common, layer, strict=given)
        except UsageError as error:
            refused.append(error)
    if len(refused) == len(layers):
        raise refused[0]
    return recipes


def run_jobs(
    jobs: Sequence[Job], at_once: int, *, overwrite: bool, quiet: bool, after_each: Callable[[], None]
) -> dict[str, str]:
    """Run each job in a process of its own, so that one that dies takes nothing with it.

    Args:
        jobs: what to run; finished ones are skipped.
        at_once: how many processes at the same time.
        overwrite: replace runs that had other settings.
        quiet: say nothing in between.
        after_each: called when a run has ended.

    Returns:
        ``{run: the sentence it stopped with}`` of those that failed.
    """
    waiting = [job for job in jobs if prepare(job, threads=1 if at_once > 1 else 0, overwrite=overwrite)]
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
    failures: dict[str, str] = {}
    total, count = len(waiting), 0
    # a polite end must reach the `finally` below: runs left behind would disturb the next attempt
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running.append((job, start(job), time.perf_counter()))
            time.sleep(0.1)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                job, process, began = entry
                count += 1
                if process.returncode or not job.finished:
                    failures[job.name] = last_words(job, process.returncode)
                after_each()
                if not quiet:
                    say(job, count, total, time.perf_counter() - began, failures.get(job.name))
    finally:
        for _, process, _ in running:
            process.kill()
            process.wait()
    return failures


def prepare(job: Job, *, threads: int, overwrite: bool) -> bool:
    """Write the job's configuration; return whether there is anything left to run.

    Raises:
        UsageError: its folder holds a run with other settings.
    """
    from frostbit.training.run import read_config, write_config

    if (job.folder / "config.yaml").exists():
        if not changed(read_config(job.folder)[0], job.recipe):
            return not job.finished
        check_vacant(job.folder, job.recipe, overwrite)
    job.recipe.train.threads = job.recipe.train.threads or threads
    write_config(job.folder, job.recipe, job.arm, job.seed)
    return True


def start(job: Job) -> subprocess.Popen[bytes]:
    """Start the job's process; what it says goes to ``log.txt`` in its folder."""
    with open(job.folder / "log.txt", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "frostbit.cli", "train", "--resume", str(job.folder), "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def last_words(job: Job, code: int) -> str:
    """Return why a process ended without a result."""
    lines = (job.folder / "log.txt").read_text(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    if code < 0:
        then = "goes on from its last checkpoint" if (job.folder / "last.ckpt").exists() else "starts it anew"
        return f"killed by signal {-code}; the same command {then}, {job.folder / 'log.txt'} holds its last words"
    return said[-1].removeprefix("frostbit: ") if said else f"exit code {code}"


def say(job: Job, count: int, total: int, seconds: float, failure: str | None) -> None:
    """Print one line about a run that ended."""
    if failure:
        text = f"stopped: {failure}"
    else:
        final = read_json(job.folder / "result.json")["final"]
        text = f"{final['recalibrated']:.2f} %"
    print(f"[{count}/{total}] {job.name}: {text} ({seconds:.0f} s)", flush=True)


def show(
    name: str,
    results: list[dict[str, Any]],
    recipes: dict[str, Recipe],
    failures: dict[str, str],
    out: Path,
) -> None:
    """Print the table and write page and figure."""
    from rich.console import Console
    from rich.table import Table

    from frostbit.cli.report import comparison_page, write_run_page

    for result in results:
        folder = out / f"{result['arm']}-seed{result['seed']}"
        if not (folder / "report.html").exists():
            write_run_page(folder, result)
    differing = differences({arm: to_dict(recipe) for arm, recipe in recipes.items()})
    rows = differences_by_value(differing)
    console = Console(width=None if sys.stdout.isatty() else 80)
    table = Table(title=name, title_justify="left", box=None, padding=(0, 1, 0, 0))
    (arm, *figures), cells = arm_table(summarize(results))
    table.add_column(arm, no_wrap=True)
    for heading in figures:
        lines = heading.replace(", ", "\n").replace("core ", "core\n")
        table.add_column(lines, justify="right", overflow="fold")
    for row in cells:
        table.add_row(*row)
    if results:
        console.print(table)
    if rows:
        settings = Table(title="The arms differ in", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for heading in ("setting", "value", "arms"):
            settings.add_column(heading, overflow="fold")
        for row in rows:
            settings.add_row(*row)
        console.print()
        console.print(settings)
    for run_name, why in failures.items():
        print(f"frostbit: {run_name} stopped: {why}", file=sys.stderr)
    html, png = comparison_page(name, results, differing, failures)
    write_atomically(out / "report.html", html)
    write_atomically(out / "curves.png", png)
    print(f"\n{out / 'report.html'}")
