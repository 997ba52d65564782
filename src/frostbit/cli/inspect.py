"""``frostbit inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from frostbit import quantizers
from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from frostbit.analysis.inside import Inside


def run(argv: Sequence[str]) -> int:
    """Draw what happened inside runs, as PNG and SVG and on an interactive HTML page; or a quantizer."""
    if argv and argv[0] == "quantizer":
        return _quantizer(argv[1:])
    parser = make_parser(
        "inspect",
        "The saw-tooth of training with the units' windows, gradient norms and flips of each unit over time as heat "
        "maps, accuracy by depth; several runs are laid over each other. Writes one interactive HTML page that works "
        "offline, and PNG and SVG figures beside it. Works on unfinished runs too. "
        "`frostbit inspect quantizer NAME` draws a quantizer instead.",
        usage="RUN [RUN ...] [options] | quantizer NAME [options]",
        settings=False,
    )
    parser.add_argument("runs", nargs="+", type=str, help="run folders")
    parser.add_argument("--out", type=str | None, help="the page; inspect.html by the run if left out")
    own, _ = parse(parser, argv)

    from frostbit.analysis import figures
    from frostbit.analysis.interactive import inspect_page
    from frostbit.training.files import write_atomically

    folders = [Path(name) for name in own["runs"]]
    runs = [read_inside(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    default = folders[0] / "inspect.html" if len(folders) == 1 else folders[0].parent / "inspect.html"
    out = Path(own["out"] or default)
    for name, figure in _figures(runs).items():
        for kind, content in (("png", figures.to_png(figure, dpi=300)), ("svg", figures.to_svg(figure))):
            path = out.with_name(f"{out.stem}-{name}.{kind}")
            write_atomically(path, content)
            print(path)
    write_atomically(out, inspect_page(runs))
    print(out)
    return 0


def read_inside(folder: Path, name: str) -> Inside:
    """Read what a finished, running or interrupted run has recorded so far.

    Raises:
        UsageError: it is no run folder, or has no records yet.
    """
    from frostbit.analysis.inside import Inside, read_record
    from frostbit.cli.report import live_result, read_steps

    windows = live_result(folder)["windows"]
    steps = read_steps(folder)
    if not steps:
        raise UsageError(f"{str(folder)!r} has nothing to show yet: no records in metrics_steps.csv")
    return Inside(name, steps, windows, read_steps(folder, "metrics.csv"), read_record(folder / "units.parquet"))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, with their parents' where two would be the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]


def _figures(runs: Sequence[Inside]) -> dict[str, Figure]:
    from frostbit.analysis import heatmaps

    drawn = {"sawtooth": heatmaps.overlay(runs)}
    recorded = [run for run in runs if run.units]
    if recorded:
        drawn |= {name: heatmaps.heat_map(recorded, name) for name in ("gradient", "flips")}
    by_depth = heatmaps.depths(runs)
    return drawn if by_depth is None else drawn | {"depth": by_depth}


def _quantizer(argv: Sequence[str]) -> int:
    """Draw a quantizer's F, B, P and T with the verdict of the ProxConnect++ criterion, as PNG."""
    parser = make_parser(
        "inspect quantizer",
        "Forward F, backward B, and whether they follow a proximal quantizer: P and T with F = T∘P and B = T'∘P. "
        f"Names: {', '.join(quantizers.list())}.",
        usage="NAME [options]",
        settings=False,
    )
    parser.add_argument("name", type=str, help="a quantizer")
    parser.add_argument("--hardness", type=float | None, help="at which it is drawn; its own if left out")
    parser.add_argument("--limit", type=float, default=2.0, help="draws -limit to limit")
    parser.add_argument("--numerical", type=bool, default=False, help="integrate P even where it is known")
    parser.add_argument("--out", type=str | None, help="the PNG; quantizer-NAME.png here if left out")
    own, _ = parse(parser, argv)
    if not own["limit"] > 0:
        raise UsageError(f"--limit must be above 0, found {own['limit']}")

    from frostbit.analysis import figures, pairs
    from frostbit.training.files import write_atomically

    arguments = {} if own["hardness"] is None else {"hardness": own["hardness"]}
    quantizer = quantizers.create(own["name"], **arguments)
    limit = max(own["limit"], 4.0)
    verdict = quantizers.decompose(quantizer, limit=limit, numerical=own["numerical"])
    out = Path(own["out"] or f"quantizer-{own['name']}.png")
    figure = pairs.pair_figure(quantizer, verdict, name=own["name"], limit=own["limit"])
    write_atomically(out, figures.to_png(figure))
    print(f"{own['name']} is {verdict}")
    print(out)
    return 0
