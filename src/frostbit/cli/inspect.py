"""``frostbit inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frostbit import quantizers
from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError


def run(argv: Sequence[str]) -> int:
    """Draw the frozen share of each unit and the saw-tooth of runs, as PNG and on an HTML page; or a quantizer."""
    if argv and argv[0] == "quantizer":
        return _quantizer(argv[1:])
    parser = make_parser(
        "inspect",
        "Frozen share of each unit over time and the saw-tooth of training, as inspect.png in each run "
        "folder and on an HTML page. Works on unfinished runs too. `frostbit inspect quantizer NAME` draws a "
        "quantizer instead.",
        usage="RUN [RUN ...] [options] | quantizer NAME [options]",
        settings=False,
    )
    parser.add_argument("runs", nargs="+", type=str, help="run folders")
    parser.add_argument("--out", type=str | None, help="the page; inspect.html by the run if left out")
    own, _ = parse(parser, argv)

    from frostbit.analysis import Section, page
    from frostbit.cli.report import inside_section, live_result
    from frostbit.training.files import write_atomically

    folders = [Path(name) for name in own["runs"]]
    sections = []
    for folder in folders:
        section = inside_section(folder, live_result(folder))
        if section is None:
            raise UsageError(f"{str(folder)!r} has nothing to show yet: no records in metrics_steps.csv")
        sections.append(Section(folder.name, section.html))
        print(folder / "inspect.png")
    default = folders[0] / "inspect.html" if len(folders) == 1 else folders[0].parent / "inspect.html"
    out = Path(own["out"] or default)
    write_atomically(out, page("Inside the runs", "Step by step, as the optimizer saw it.", sections))
    print(out)
    return 0


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
