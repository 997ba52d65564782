"""Sweeps: what may be varied, what is chosen by, and that a study survives its workers."""

import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState

from frostbit.cli import main, report
from frostbit.training import sweep as sweeps
from frostbit.training.module import TrainingModule
from frostbit.training.space import parse_dimension

fork = multiprocessing.get_context("fork")

SMALL = [
    *("--method", "stompp", "--model", "mlp", "--model.args.hidden", "[12,12]", "--binarize.min_binary_macs", "0"),
    *("--data.limit_train", "256", "--data.limit_test", "40", "--data.val_fraction", "0.25", "--epochs", "2"),
    *("--batch", "64", "--train.accelerator", "cpu", "--train.record_every", "2", "--train.threads", "1"),
]
LR = ("--over", "optimizer.lr=log:1e-2:1")
URL = "sqlite:///s/study.db"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeps, "HEARTBEAT", 1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def short_pages(request, monkeypatch):
    """The pages of single runs take longer than the runs; one test looks at them."""
    if "explains_itself" not in request.node.name:
        monkeypatch.setattr(report, "write_run_page", lambda folder, result: None)


def frostbit(*words, code=0):
    assert main([w for word in words for w in (word.split() if isinstance(word, str) else word)]) == code


def sweep(*words, trials, code=0, out="s"):
    frostbit("sweep", SMALL, list(words), f"--trials {trials} --out {out} --study s", code=code)


def load(url=URL):
    return optuna.load_study(study_name="s", storage=url)


def test_a_sweep_chooses_by_validation_images_and_explains_itself(workplace, capsys):
    sweep(*LR, "--over", "progression.order=forward,reverse", "--prune", "false", trials=4)
    out = capsys.readouterr().out
    study = load()
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 4
    results = [json.loads((workplace / "s" / f"trial-{n:04d}" / "result.json").read_text()) for n in range(4)]
    for trial, result in zip(study.trials, results, strict=True):
        assert trial.value == result["final"]["val"]
        chosen = trial.user_attrs["settings"]
        assert result["resolved"]["optimizer"]["lr"] == chosen["optimizer.lr"]
        assert result["resolved"]["progression"]["order"] == chosen["progression.order"]
        assert list(trial.intermediate_values.values()) == [row["val_acc_as_is"] for row in result["curve"]]
        assert (workplace / "s" / f"trial-{trial.number:04d}" / "report.html").exists()
    best = max(study.trials, key=lambda t: (t.value, -t.number))
    assert f"best of 4 trials: {best.value:.2f} % on validation samples, trial {best.number}" in out
    assert yaml.safe_load((workplace / "s" / "best.yaml").read_text()) == best.user_attrs["settings"]
    page = (workplace / "s" / "report.html").read_text()
    assert f'href="trial-{best.number:04d}/report.html"' in page
    assert "data:image/png;base64," in page

    # the command that it shows repeats the best run
    command = next(line for line in out.splitlines() if line.startswith("  frostbit train"))
    frostbit(*([word] for word in shlex.split(command)[1:]), "--out again --quiet")
    again = json.loads((workplace / "again" / "stompp-seed0" / "result.json").read_text())
    assert again["final"] == results[best.number]["final"]


def test_the_final_validation_accuracy_is_that_of_the_hardened_recalibrated_network(workplace):
    sweep(*LR, trials=1)
    from frostbit.training.evaluate import score
    from frostbit.training.run import load_run

    folder = workplace / "s" / "trial-0000"
    module, built = load_run(folder)
    module.net.load_state_dict(torch.load(folder / "final.pt", weights_only=True))
    final = json.loads((folder / "result.json").read_text())["final"]
    assert final["val"] == score(module.net, module.loader(built.data.val), hardened=True)[1]
    assert len(built.data.val) == 64


def test_more_trials_go_on_where_the_study_stood_and_draws_do_not_depend_on_it(workplace):
    sweep(*LR, trials=2)
    stamp = (workplace / "s" / "trial-0000" / "result.json").stat().st_mtime_ns
    sweep(*LR, trials=3)
    assert (workplace / "s" / "trial-0000" / "result.json").stat().st_mtime_ns == stamp
    sweep(*LR, trials=3, out="whole")
    a, b = (load(f"sqlite:///{out}/study.db").trials for out in ("s", "whole"))
    assert [(t.params, t.value) for t in a] == [(t.params, t.value) for t in b]


def test_choices_alone_are_run_once_each(workplace):
    words = ("--over", "optimizer.lr=0.1,0.3", "--over", "progression.order=forward,reverse")
    sweep(*words, trials=1)  # too few for all: a choice of them
    sweep(*words, trials=20)
    trials = load().trials
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    found = {(t.params["optimizer.lr"], t.params["progression.order"]) for t in trials}
    assert len(found) == len(trials) == 4


def test_settings_that_were_tried_are_not_run_again(workplace):
    sweep("--over", "train.eval_every=1:2", trials=6)
    trials = load().trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 6
    assert len(list((workplace / "s").glob("trial-*"))) == len({t.params["train.eval_every"] for t in trials}) == 2
    for trial in trials:
        same = trial.user_attrs.get("same_as", trial.number)
        assert (trial.value, trial.params) == (trials[same].value, trials[same].params)


def test_a_hopeless_trial_is_stopped_at_its_evaluation(workplace, monkeypatch):
    class Strict(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda **_: Strict())
    sweep(*LR, trials=3)
    states = [t.state for t in load().trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    folder = workplace / "s" / "trial-0001"
    assert not (folder / "result.json").exists()
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2
    page = (workplace / "s" / "report.html").read_text()
    assert "pruned at epoch 1 with" in page
    assert "trial-0001/report.html" not in page


def test_a_run_that_diverges_is_a_bad_trial_not_the_end(workplace, capsys):
    sweep("--over", "optimizer.lr=1e38,0.1", "--method", "ste_identity", trials=6)
    trials = load().trials
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert "not finite at step" in (workplace / "s" / "report.html").read_text()
    assert "optimizer.lr: 0.1" in capsys.readouterr().out


def test_a_sweep_that_cannot_run_says_so_at_once(workplace, capsys):
    sweep(*LR, "--binarize.min_binary_macs", "1.0", trials=3, code=2)
    assert "multiply-accumulates became binary" in capsys.readouterr().err
    sweep(*LR, "--binarize.min_binary_macs", "1.0", trials=3, code=2)  # and again, instead of counting it as a trial


def die_at(call):
    """Kill this process at the n-th training step from now on."""
    step, count = TrainingModule.training_step, [0]

    def counted(self, batch, index):
        count[0] += 1
        if count[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, index)

    TrainingModule.training_step = counted


def in_child(function, *arguments, **options):
    process = fork.Process(target=function, args=arguments, kwargs=options)
    process.start()
    return process


def test_killed_and_started_again_it_continues_the_trial_that_was_running(workplace):
    def until_killed():
        die_at(11)  # three steps an epoch, two epochs a trial: in the second epoch of the second trial
        sweep(*LR, trials=3)

    process = in_child(until_killed)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [t.state for t in load().trials] == [TrialState.COMPLETE, TrialState.RUNNING]

    sweep(*LR, trials=3)
    study = load()
    finished = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(finished) == 3
    assert [t.state for t in study.trials if t.state not in (TrialState.COMPLETE, TrialState.FAIL)] == []
    retried = next(t for t in finished if t.user_attrs["folder"] == "trial-0001")
    assert retried.params == study.trials[1].params
    assert len(list((workplace / "s").glob("trial-*"))) == 3
    # the run ended as one that was left alone
    sweep(*LR, trials=2, out="whole")
    whole = load("sqlite:///whole/study.db").trials[1]
    assert (retried.value, retried.intermediate_values) == (whole.value, whole.intermediate_values)


def test_an_interrupted_trial_is_queued_again(workplace, monkeypatch, capsys):
    step, count = TrainingModule.training_step, [0]

    def interrupted(self, batch, index):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    sweep(*LR, trials=2, code=130)
    assert [t.state for t in load().trials] == [TrialState.FAIL, TrialState.WAITING]
    sweep(*LR, trials=2)
    assert [t.state for t in load().trials] == [TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    assert load().trials[1].user_attrs["folder"] == "trial-0000"


def test_two_workers_share_a_study(workplace, monkeypatch):
    step = TrainingModule.training_step

    def slowly(self, batch, index):
        time.sleep(0.05)
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", slowly)
    workers = [in_child(sweep, *LR, trials=6) for _ in range(2)]
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    trials = [t for t in load().trials if t.state == TrialState.COMPLETE or t.state == TrialState.PRUNED]
    assert len(trials) in (6, 7)  # both may take the last one in the same moment
    assert len({t.params["optimizer.lr"] for t in trials}) == len(trials)
    overlap = [
        (a.number, b.number)
        for a in trials
        for b in trials
        if a.number < b.number and b.datetime_start < a.datetime_complete
    ]
    assert overlap  # they did work at the same time


@pytest.mark.slow
def test_jobs_start_workers_and_report_a_death(workplace, capsys):
    command = [sys.executable, "-m", "frostbit.cli", "sweep", *SMALL, *LR, "--trials", "4", "--out", "s", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\ntrial ") + done.stdout.startswith("trial ") in (4, 5)
    assert "best of" in done.stdout
    done = subprocess.run(
        [*command, "--over", "data.augment.flip=true,false", "--out", "t", "--data.path", "x"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "a worker stopped: data set 'digits' comes with scikit-learn and takes no path" in done.stderr


CASES = {
    "no validation": ("--data.val_fraction 0 --over optimizer.lr=0.1", "a sweep chooses by validation samples"),
    "nothing": ("", "name a setting with --over"),
    "typo": ("--over optimizer.lt=0.1", "no setting 'optimizer.lt': did you mean 'optimizer.lr'?"),
    "no section": ("--over lr=0.1,0.2", "did you mean 'optimizer.lr'?"),
    "form": ("--over optimizer.lr", "--over must be SETTING=VALUES"),
    "name": ("--over name=a,b", "cannot vary 'name': it is no setting of a single run"),
    "data": ("--over data.limit_train=100,200", "trials would be scored on different samples"),
    "order": ("--over optimizer.lr=1:0.1", "must have low < high, found 1:0.1"),
    "log of zero": ("--over optimizer.lr=log:0:1", "must have 0 < low < high"),
    "half a range": ("--over optimizer.lr=log:1", "a logarithmic range is log:low:high"),
    "range of words": ("--over progression.order=1:2", "is no number and takes no range"),
    "range of parts": ("--over train.eval_every=1.5:3", "train.eval_every is a whole number, found the range 1.5:3"),
    "bound": ("--over optimizer.lr=-1:1", "optimizer.lr must be above 0, found -1"),
    "type": ("--over train.eval_every=2,many", "train.eval_every must be a whole number, found 'many'"),
    "list": ("--over optimizer.betas=[0.9,0.99]", "must be plain values"),
    "choice": ("--over optimizer.name=sgd,adm", "unknown optimizer 'adm'"),
    "no use": ("--over optimizer.betas=null,0.9", "optimizer.betas must be"),
    "changes nothing": ("--over schedule.final_lr=0.1,0.2", "schedule.final_lr means nothing here"),
    "no section here": ("--method ste --over progression.refresh=2,3", "progression.refresh means nothing here"),
    "twice": ("--over optimizer.lr=0.1,0.2 --over optimizer.lr=1:2", "names optimizer.lr twice"),
    "fixed": ("--lr 0.1 --over optimizer.lr=0.1,0.2", "optimizer.lr is both fixed and varied"),
    "trials": ("--over optimizer.lr=0.1 --trials 0", "--trials must be at least 1"),
    "devices": ("--over optimizer.lr=0.1 --train.devices 2", "a sweep trains each trial on one device"),
    "storage": ("--over optimizer.lr=0.1 --storage nowhere", "--storage must be a database such as"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(case, workplace, capsys):
    words, sentence = CASES[case]
    small = [*SMALL]
    if "--data.val_fraction" in words:
        del small[small.index("--data.val_fraction") : small.index("--data.val_fraction") + 2]
    frostbit("sweep", small, words, code=2)
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_a_study_about_something_else_is_not_continued(workplace, capsys):
    sweep(*LR, trials=1)
    sweep(*LR, "--epochs", "3", trials=2, code=2)
    assert "(train.epochs is 2 there, 3 here): choose another --study" in capsys.readouterr().err
    sweep("--over", "optimizer.lr=log:1e-2:2", trials=2, code=2)
    assert "choose another --study" in capsys.readouterr().err
    frostbit("sweep", SMALL, LR, f"--trials 2 --out other --study another --storage {URL}")  # another study, same file


def test_a_setting_that_some_methods_lack_may_be_varied_along_with_the_method(workplace):
    small = SMALL[2:]
    words = ("--over method=ste,stompp", "--over progression.refresh=2,8")
    frostbit("sweep", small, *words, "--trials 4 --out s --study s")
    for trial in load().trials:
        result = workplace / "s" / trial.user_attrs["folder"] / "result.json"
        if result.exists():
            progression = json.loads(result.read_text())["resolved"]["progression"]
            assert (progression is None) == (trial.params["method"] == "ste")


def test_ranges_keep_to_their_bounds_and_kinds():
    def study():
        return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    whole, log, odd = map(parse_dimension, ("train.epochs=1:4", "optimizer.lr=log:1e-3:1", "data.augment.crop_pad=0,2"))
    narrow = parse_dimension("optimizer.lr=0.12341:0.12342")
    asked = study()
    seen = [[d.suggest(trial) for d in (whole, log, odd)] for trial in (asked.ask() for _ in range(200))]
    epochs, rates, pads = map(set, zip(*seen, strict=True))
    assert epochs == {1, 2, 3, 4}
    assert pads == {0, 2}
    assert 1e-3 <= min(rates) < 3e-3
    assert sum(rate < 0.0316 for rate in rates) in range(70, 130)  # half of them below the geometric mean
    assert all(rate == float(f"{rate:.4g}") for rate in rates)
    assert all(0.12341 <= narrow.suggest(study().ask()) <= 0.12342 for _ in range(5))
