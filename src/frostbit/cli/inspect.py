"""``frostbit inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError


def run(argv: Sequence[str]) -> int:
    """Draw the frozen share of each unit and the saw-tooth of runs, as PNG and on an HTML page."""
    parser = make_parser(
        "inspect",
        "Frozen share of each unit over time and the saw-tooth of training, as inspect.png in each run "
        "folder and on an HTML page. Works on unfinished runs too.",
        usage="RUN [RUN ...] [options]",
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
