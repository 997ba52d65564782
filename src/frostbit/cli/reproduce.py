"""``frostbit reproduce``: the published tables, each a command, beside what was measured here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from frostbit.analysis.tables import ArmSummary, arm_table, markdown, summarize
from frostbit.cli.compare import add_options, compare, read_results
from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.training.files import write_atomically
from frostbit.training.recipe_file import read_recipe_file


def run(argv: Sequence[str]) -> int:
    """Run one table, or list all; return the exit code."""
    parser = make_parser(
        "reproduce",
        "Run a published table by name, at full scale or at one that a laptop finishes. Finished runs are not "
        "repeated, interrupted ones go on where they stopped.",
        usage="NAME [--scale cpu] [options] | --list | --table",
        without=["method", "name"],
    )
    parser.add_argument("recipe", nargs="?", type=str | None, metavar="NAME", help="a name that --list shows")
    parser.add_argument("--list", action="store_true", help="show every table with its published and measured figures")
    parser.add_argument("--table", action="store_true", help="write them to README.md in the folder of results")
    add_options(parser)
    parser.add_argument("--recipes", type=str, default="recipes", help="folder of the recipes")
    parser.add_argument("--results", type=str, default="results", help="folder of the results")
    own, given = parse(parser, argv)
    if sum([own["recipe"] is not None, own["list"], own["table"]]) != 1:
        raise UsageError("frostbit reproduce needs one of: a name, --list, --table")
    tables = find_tables(Path(own["recipes"]), Path(own["results"]))
    if own["list"]:
        show(tables)
        return 0
    if own["table"]:
        path = Path(own["results"]) / "README.md"
        write_atomically(path, page(tables))
        print(path)
        return 0
    names = [table.name for table in tables]
    if own["recipe"] not in names:
        raise UsageError(f"no recipe {own['recipe']!r} in {own['recipes']!r}: {nearest(own['recipe'], names)}")
    path = Path(own["recipes"]) / f"{own['recipe']}.yaml"
    return compare({**own, "recipe": str(path), "config": None, "methods": None}, given)


@dataclass(frozen=True)
class Measured:
    """What was measured of one table at one scale."""

    scale: str
    arms: list[ArmSummary]
    date: str


@dataclass(frozen=True)
class Table:
    """One recipe that answers to a publication, and its results so far."""

    name: str
    paper: dict[str, Any]
    scales: list[str]
    measured: list[Measured]


def find_tables(recipes: Path, results: Path) -> list[Table]:
    """Read every recipe with a ``paper`` section and the results that lie in ``results/<name>[-<scale>]``.

    Raises:
        UsageError: no such folder of recipes.
    """
    if not recipes.is_dir():
        raise UsageError(f"no folder of recipes at {str(recipes)!r}: run this in a clone, or name one with --recipes")
    tables = []
    for path in sorted(recipes.glob("*.yaml")):
        stated = read_recipe_file(path)
        paper = {name.partition(".")[2]: value for name, value in stated.items() if name.startswith("paper.")}
        if paper:
            name, scales = str(stated.get("name", path.stem)), ["full", *(stated.get("scales") or {})]
            order = list(stated.get("arms") or {})
            tables.append(Table(name, paper, scales, list(_measured(name, scales, order, results))))
    return tables


def _measured(name: str, scales: Sequence[str], order: Sequence[str], results: Path) -> Iterator[Measured]:
    for scale in scales:
        folder = results / (name if scale == "full" else f"{name}-{scale}")
        found = read_results(folder, order)
        if found:
            yield Measured(scale, summarize(found), max(str(run.get("date", "-")) for run in found))


def show(tables: Sequence[Table]) -> None:
    """Print the list, for a terminal of 80 columns."""
    for table in tables:
        print(f"{table.name}  (standing {table.paper.get('standing', '-')})")
        _say("published", str(table.paper.get("figure", "-")))
        for measured in table.measured:
            _say(f"{measured.scale}, {measured.date}", figures(measured.arms, table.paper.get("values") or {}))
            verdict = (table.paper.get("verdict") or {}).get(measured.scale)
            if verdict:
                _say("verdict", verdict)
        missing = [scale for scale in table.scales if scale not in [measured.scale for measured in table.measured]]
        if missing:
            _say("not run", ", ".join(missing))


def _say(what: str, text: str) -> None:
    print(fill(f"{what}: {text}", 80, initial_indent="  ", subsequent_indent="      ", break_long_words=False))


_MANY = 12


def figures(arms: Sequence[ArmSummary], published: Mapping[str, Any]) -> str:
    """Return arms and accuracies in one line; of many arms, the published ones, the worst and the best."""
    said = {arm.arm: f"{arm.arm} {arm.recalibrated}" for arm in arms}
    if len(arms) <= _MANY:
        return ", ".join(said.values())
    ranked = sorted(arms, key=lambda arm: arm.recalibrated.mean)
    parts = [said[name] for name in said if name in published]
    return ", ".join([f"{len(arms)} arms", *parts, f"worst {said[ranked[0].arm]}", f"best {said[ranked[-1].arm]}"])


def page(tables: Sequence[Table]) -> str:
    """Return the page of all results as Markdown; every figure in it comes from a result file."""
    parts = [
        "# Results\n",
        "Written by `frostbit reproduce --table` from the files beside it. Accuracy is that of the fully binary "
        "network on the test images at the last epoch, mean ± standard deviation over seeds, batch norm recalibrated "
        "on training images, or raw. *Standing* says how well a published figure is known: V verified, S second-hand, "
        "R recalled, D a choice of ours. A smaller scale (`cpu`) shows the sign of an effect, not its size.\n",
    ]
    for table in tables:
        paper = {"figure": "-", "source": "-", "standing": "-", **table.paper}
        said = "Published: {figure} ({source}; standing {standing}).".format_map(paper)
        parts.append(f"## {table.name}\n\n{said}\n")
        values = paper.get("values") or {}
        for measured in table.measured:
            command = f"frostbit reproduce {table.name}" + (
                f" --scale {measured.scale}" if measured.scale != "full" else ""
            )
            (arm, *figures), cells = arm_table(measured.arms)
            rows = [(name, str(values.get(name, "-")), *row) for name, *row in cells]
            parts.append(f"`{command}`, {measured.date}:\n\n{markdown((arm, 'published %', *figures), rows)}")
            verdict = (paper.get("verdict") or {}).get(measured.scale)
            if verdict:
                parts.append(f"Verdict: {verdict}.\n")
        if not table.measured:
            parts.append(f"Not run yet; scales: {', '.join(table.scales)}.\n")
    return "\n".join(parts)
