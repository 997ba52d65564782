"""``frostbit sweep``."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostbit.cli.options import make_parser, parse
from frostbit.cli.train import choose_arm, read_recipe
from frostbit.errors import RunError, UsageError
from frostbit.training.files import read_json, write_atomically
from frostbit.training.space import Dimension, check_space, parse_dimension

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from frostbit.training.sweep import Sweep


def run(argv: Sequence[str]) -> int:
    """Search the settings that were named; return the exit code."""
    parser = make_parser(
        "sweep",
        "Search settings of a recipe with Optuna: each trial is an ordinary run, judged by the accuracy of the fully "
        "binary network on validation samples, which are split off the training ones. The same command goes on where "
        "it was stopped; several machines that name one --storage share a study.",
        usage="[recipe.yaml] --over SETTING=VALUES [--over …] [options]",
        without=["seeds"],
    )
    parser.add_argument("recipe", nargs="?", type=str | None, help="recipe file (YAML)")
    parser.add_argument("--config", type=str | None, help="the same, as an option")
    parser.add_argument("--scale", type=str | None, help="full, or one of the recipe's smaller scales, e.g. cpu")
    parser.add_argument("--arm", type=str | None, help="which arm of the recipe")
    parser.add_argument("--seed", type=int, default=0, help="of each run, and of the choice of settings")
    parser.add_argument(
        "--over",
        action="append",
        metavar="SETTING=VALUES",
        help="vary a setting: a,b,c or low:high or log:low:high; give it once for each",
    )
    parser.add_argument(
        "--trials", type=int, default=20, help="trials that the study is to have, earlier ones included"
    )
    parser.add_argument("--study", type=str | None, help="name of the study; recipe and arm if left out")
    parser.add_argument("--storage", type=str | None, help="database URL; sqlite in the folder if left out")
    parser.add_argument("--prune", type=bool, default=True, help="stop trials below the median of the others")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time; one thread each if several")
    parser.add_argument("--out", type=str | None, help="folder of the sweep; runs/<study> if left out")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    own, given = parse(parser, argv)
    for name in ("jobs", "trials"):
        if own[name] < 1:
            raise UsageError(f"--{name} must be at least 1, found {own[name]}")
    if not own["over"]:
        raise UsageError("nothing to search: name a setting with --over, such as --over optimizer.lr=log:1e-3:1")
    space = [parse_dimension(text) for text in own["over"]]
    arm, layers = choose_arm(read_recipe(own), own["arm"], given)
    base = check_space(space, layers, given)
    if not base.data.val_fraction:
        raise UsageError("a sweep chooses by validation samples: set --data.val_fraction above 0, e.g. 0.1")
    if base.train.devices > 1:
        raise UsageError("a sweep trains each trial on one device: start a worker for each of them instead")

    from frostbit.training.sweep import Sweep, open_study, plan, work

    name = own["study"] or f"{base.name}-{arm}"
    out = Path(own["out"] or Path("runs") / name)
    out.mkdir(parents=True, exist_ok=True)
    storage = own["storage"] or f"sqlite:///{out / 'study.db'}"
    sweep = Sweep((*layers, given), base, tuple(space), arm, own["seed"], out, own["prune"])
    study = open_study(sweep, name, storage)
    trials = plan(study, sweep, own["trials"])

    def say(trial: FrozenTrial) -> None:
        finished(trial, out, quiet=own["quiet"])

    if own["jobs"] > 1:
        share([*argv, "--study", name, "--storage", storage, "--out", str(out)], own["jobs"], out, study, say)
    else:
        work(study, sweep, trials, say)
    show(study, sweep, own, given)
    return 0


def share(argv: Sequence[str], jobs: int, out: Path, study: optuna.Study, say: Callable[[FrozenTrial], None]) -> None:
    """Run ``jobs`` workers of the same sweep, each a process of its own, and wait for them.

    Raises:
        RunError: a worker stopped; the message has its last words.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # reach the `finally`
    command = [sys.executable, "-m", "frostbit.cli", "sweep", *argv, "--jobs", "1", "--train.threads", "1"]
    workers: list[tuple[Path, subprocess.Popen[bytes]]] = []
    told = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    try:
        for number in range(jobs):
            log = out / f"worker-{number}.log"
            with open(log, "wb") as file:
                workers.append((log, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)))
        running = True
        while running:
            running = any(process.poll() is None for _, process in workers)
            for trial in study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number not in told:
                    told.add(trial.number)
                    say(trial)
            time.sleep(0.5 if running else 0)
    finally:
        for _, process in workers:
            process.kill()
            process.wait()
    for log, process in workers:
        if process.returncode:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            why = said[-1].removeprefix("frostbit: ") if said else f"exit code {process.returncode}"
            raise RunError(f"a worker stopped: {why} (see {log}; the same command goes on)")


def finished(trial: FrozenTrial, out: Path, *, quiet: bool) -> None:
    """Write the page of a trial's run, and say how it ended."""
    from frostbit.cli.report import write_run_page
    from frostbit.training.sweep import settings_of

    folder = out / trial.user_attrs.get("folder", "")
    if (folder / "result.json").exists() and not (folder / "report.html").exists():
        write_run_page(folder, read_json(folder / "result.json"))
    if not quiet:
        chosen = ", ".join(f"{name} {_word(value)}" for name, value in settings_of(trial).items())
        print(f"trial {trial.number}: {_ending(trial)}; {chosen}", flush=True)


def _ending(trial: FrozenTrial) -> str:
    if "stopped" in trial.user_attrs:
        return f"stopped: {trial.user_attrs['stopped']}"
    accuracy = _accuracy(trial)
    said = trial.state.name.lower() if accuracy is None else f"{accuracy:.2f} %"
    if trial.state.name == "PRUNED" and trial.intermediate_values:
        said = f"pruned at epoch {max(trial.intermediate_values)} with {said}"
    return f"{said}, as trial {trial.user_attrs['same_as']}" if "same_as" in trial.user_attrs else said


def _accuracy(trial: FrozenTrial) -> float | None:
    """Return the final accuracy of a trial, or the last one reported."""
    if trial.state.name == "COMPLETE":
        return trial.value
    return max(trial.intermediate_values.items())[1] if trial.intermediate_values else None


def show(study: optuna.Study, sweep: Sweep, own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Print the best settings, write them to ``best.yaml``, and write the page."""
    import yaml

    from frostbit.training.sweep import best_trials, settings_of

    trials = study.get_trials(deepcopy=False)
    best = best_trials(trials)
    snippet = command = ""
    if best:
        settings = settings_of(best[0])
        snippet = str(yaml.safe_dump(settings, sort_keys=False))
        command = best_command(own, {**given, **settings})
        write_atomically(sweep.out / "best.yaml", snippet)
        print(f"best of {len(trials)} trials: {best[0].value:.2f} % on validation samples, trial {best[0].number}")
        print("".join(f"  {line}\n" for line in (*snippet.splitlines(), command)), end="")
    else:
        print(f"none of {len(trials)} trials came to its end")
    write_atomically(sweep.out / "report.html", sweep_page(study.study_name, trials, sweep.space, snippet, command))
    print(sweep.out / "report.html")


def best_command(own: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the command that trains with ``settings`` on top of the recipe that was swept."""
    words = ["frostbit", "train", *([own["recipe"] or own["config"]] if own["recipe"] or own["config"] else [])]
    for name in ("scale", "arm"):
        words += [f"--{name}", own[name]] if own[name] else []
    words += [word for name, value in settings.items() for word in (f"--{name}", _word(value))]
    return shlex.join([*words, "--seed", str(own["seed"])])


def _word(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def sweep_page(name: str, trials: Sequence[FrozenTrial], space: Sequence[Dimension], snippet: str, command: str) -> str:
    """Return the page of a sweep as HTML; arguments as `show` has them."""
    from frostbit.analysis import Section, figures, page
    from frostbit.analysis.page import image, links, preformatted, table, text
    from frostbit.analysis.sweeps import Point, sweep_figure
    from frostbit.training.sweep import best_trials, settings_of

    names = [dimension.name for dimension in space]
    known = [(trial, _accuracy(trial)) for trial in trials]
    points = [Point(t.number, settings_of(t), a, t.state.name == "COMPLETE") for t, a in known if a is not None]
    shown = [trial for trial in trials if trial.state.name != "FAIL"]  # those ran again under another number
    ranked = [*best_trials(shown), *(trial for trial in shown if trial not in best_trials(shown))]
    rows = [
        (str(t.number), _ending(t), *(_word(settings_of(t).get(setting, "-")) for setting in names)) for t in ranked
    ]
    sections = []
    if snippet:
        body = text("As part of a recipe:") + preformatted(snippet) + text("As a command:") + preformatted(command)
        sections.append(Section("Best settings", body))
    if points:
        png = figures.to_png(sweep_figure(points, {d.name: d.log for d in space}))
        caption = (
            "Validation accuracy: over trials and over each setting; crosses were stopped early, at the accuracy shown."
        )
        sections.append(Section("Accuracy", image(png, caption)))
    note = (
        "Accuracy of the fully binary network at the last epoch, batch norm recalibrated, on validation samples split "
        "off the training ones. Test samples took no part in any choice."
    )
    sections.append(Section("Trials, best first", table(("trial", "result", *names), rows) + text(note)))
    runs = {t.user_attrs["folder"]: f"{t.user_attrs['folder']}/report.html" for t in best_trials(shown)}
    sections.append(Section("Runs", links(runs)))
    return page(f"{name}: sweep", f"{len(shown)} trials over {', '.join(names)}.", sections)
