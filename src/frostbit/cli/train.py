"""``frostbit train``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frostbit.cli.options import make_parser, parse
from frostbit.errors import UsageError
from frostbit.registry import nearest
from frostbit.training.recipe import Recipe
from frostbit.training.recipe_file import at_scale, read_recipe_file
from frostbit.training.resolve import resolve
from frostbit.training.settings import Flat, changed, flatten, overlay


def run(argv: Sequence[str]) -> int:
    """Train one network as the words say; return the exit code."""
    parser = make_parser(
        "train",
        "Train one network, and leave a run folder that explains itself.",
        usage="[recipe.yaml] [options]",
        without=["seeds"],
    )
    parser.add_argument("recipe", nargs="?", type=str | None, help="recipe file (YAML)")
    parser.add_argument("--config", type=str | None, help="the same, as an option")
    parser.add_argument("--scale", type=str | None, help="full, or one of the recipe's smaller scales, e.g. cpu")
    parser.add_argument("--arm", type=str | None, help="which arm of the recipe")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, data order and masks")
    parser.add_argument("--out", type=str | None, help="folder of the experiment; runs/<name> if left out")
    parser.add_argument("--resume", type=str | None, metavar="RUN", help="go on with an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an older run in the same folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    own, given = parse(parser, argv)

    from frostbit.training.run import resume, train

    progress = sys.stderr.isatty() and not own["quiet"]
    if own["resume"]:
        if given or own["recipe"] or own["config"] or own["arm"] or own["scale"]:
            raise UsageError("--resume takes all settings from the run folder: give no others beside it")
        folder = Path(own["resume"])
        result = resume(folder, progress=progress)
    else:
        stated = read_recipe(own)
        arm, layers = choose_arm(stated, own["arm"], given)
        recipe = resolve(*layers, strict=given)
        folder = Path(own["out"] or Path("runs") / recipe.name) / f"{arm}-seed{own['seed']}"
        check_vacant(folder, recipe, own["overwrite"])
        result = train(recipe, arm=arm, seed=own["seed"], folder=folder, progress=progress)
    if result:
        report(folder, result, quiet=own["quiet"])
    return 0


def read_recipe(own: dict[str, Any]) -> Flat:
    """Return the flat settings of the recipe file that was named, at the scale asked for; none if there is no file."""
    if own["recipe"] and own["config"]:
        raise UsageError(f"give the recipe once: found {own['recipe']!r} and --config {own['config']!r}")
    path = own["recipe"] or own["config"]
    return at_scale(read_recipe_file(path) if path else {}, own["scale"])


def choose_arm(stated: Flat, arm: str | None, given: Flat) -> tuple[str, list[Flat]]:
    """Return the arm's name and the settings below the command line's.

    Args:
        stated: flat settings of the recipe file.
        arm: what ``--arm`` said.
        given: the command line's settings.

    Raises:
        UsageError: no such arm, or the recipe has arms and none was chosen.
    """
    arms = stated.get("arms") or {}
    if arm is None:
        if arms and "method" not in given:
            raise UsageError(f"the recipe has arms: use frostbit compare, or choose --arm from {', '.join(arms)}")
        return str(overlay(stated, given).get("method", Recipe().method)), [stated]
    if arm not in arms:
        raise UsageError(f"the recipe has no arm {arm!r}: {nearest(arm, arms) if arms else 'it has none at all'}")
    return arm, [stated, flatten(arms[arm] or {}, f"arm {arm!r}")]


def check_vacant(folder: Path, recipe: Recipe, overwrite: bool) -> None:
    """Refuse to write over another run, remove it if asked to.

    Raises:
        UsageError: the folder holds a run, finished or not.
    """
    # the other processes of a distributed run find the folder that the first one made for all of them
    later = any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
    if later or not (folder / "config.yaml").exists():
        return
    if overwrite:
        shutil.rmtree(folder)
        return
    from frostbit.training.run import read_config

    found = changed(read_config(folder)[0], recipe)
    if found:
        name, (old, new) = next(iter(found.items()))
        raise UsageError(
            f"{str(folder)!r} holds a run with other settings ({name} is {old} there, {new} here): "
            "add --overwrite or choose another --out"
        )
    state = "is finished" if (folder / "result.json").exists() else f"can go on with --resume {folder}"
    raise UsageError(f"{str(folder)!r} holds this very run, which {state}: add --overwrite to repeat it")


def report(folder: Path, result: dict[str, Any], *, quiet: bool) -> None:
    """Write the run's page and say its figures."""
    from frostbit.cli.report import write_run_page

    write_run_page(folder, result)
    if not quiet:
        final = result["final"]
        how = f", fully binary and recalibrated ({final['raw']:.2f} % raw)" if result["binary_macs"] else ""
        print(
            f"{result['arm']}, seed {result['seed']}: {final['recalibrated']:.2f} % test accuracy{how} "
            f"in {result['seconds']:.0f} s"
        )
        print(folder / "report.html")
