"""Each command does its work on a small network, from the command line as a user types it."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from frostbit.cli import main
from frostbit.cli.options import make_parser, parse

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--model", "mlp", "--model.args.hidden", "[16,16]", "--binarize.min_binary_macs", "0"),
    *("--data.limit_train", "320", "--data.limit_test", "100", "--epochs", "2", "--batch", "64"),
    *("--train.threads", "1", "--train.accelerator", "cpu", "--train.record_every", "2"),
]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


def frostbit(*words, code=0):
    assert main([w for word in words for w in (word.split() if isinstance(word, str) else word)]) == code


def test_train_evaluate_and_inspect(workplace, capsys):
    frostbit("train --method stompp --seed 3 --out x", SMALL)
    folder = workplace / "x" / "stompp-seed3"
    made = [
        *("config.yaml", "result.json", "metrics.csv", "metrics_steps.csv", "units.parquet", "last.ckpt", "final.pt"),
        *("report.html", "tb"),
    ]
    assert {path.name for path in folder.iterdir()} >= {*made, "curves.png", "inspect.png"}
    result = json.loads((folder / "result.json").read_text())
    assert f"{result['final']['recalibrated']:.2f} % test accuracy" in capsys.readouterr().out

    frostbit("evaluate --threads 1 x/stompp-seed3")
    out = capsys.readouterr().out
    assert f"as it is                 {result['final']['raw']:6.2f} %" in out
    assert f"hardened, recalibrated   {result['final']['recalibrated']:6.2f} %" in out

    frostbit("evaluate --threads 1 x/stompp-seed3/final.pt", code=2)
    assert "a run folder or the last.ckpt in it, found 'x/stompp-seed3/final.pt'" in capsys.readouterr().err
    frostbit("evaluate --threads 1 x/stompp-seed3/last.ckpt")
    assert capsys.readouterr().out == out

    (folder / "result.json").unlink()  # an unfinished run can be looked into as well
    frostbit("inspect x/stompp-seed3 --out look.html")
    assert (workplace / "look.html").read_text().count("plotly-graph-div") >= 5
    pictures = {path.name for path in workplace.glob("look-*")}
    assert pictures == {f"look-{n}.{k}" for n in ("sawtooth", "gradient", "flips", "depth") for k in ("png", "svg")}


def test_evaluate_computes_at_the_precision_of_the_run(workplace, monkeypatch):
    from frostbit.training import evaluate

    frostbit("train --method ste --train.precision bf16 --out x", SMALL)
    seen = []
    plain = evaluate.F.cross_entropy
    monkeypatch.setattr(evaluate.F, "cross_entropy", lambda y, labels: seen.append(y.dtype) or plain(y, labels))
    frostbit("evaluate --threads 1 x/ste-seed0")
    assert set(seen) == {torch.bfloat16}


def test_train_refuses_to_write_over_a_run(workplace, capsys):
    frostbit("train --method ste --out x", SMALL)
    before = (workplace / "x" / "ste-seed0" / "result.json").read_bytes()
    frostbit("train --method ste --out x", SMALL, code=2)
    assert "holds this very run, which is finished" in capsys.readouterr().err
    frostbit("train --method ste --out x --lr 0.3", SMALL, code=2)
    assert "optimizer.lr is 0.1 there, 0.3 here" in capsys.readouterr().err
    assert (workplace / "x" / "ste-seed0" / "result.json").read_bytes() == before
    frostbit("train --method ste --out x --lr 0.3 --overwrite", SMALL)
    assert json.loads((workplace / "x" / "ste-seed0" / "result.json").read_text())["resolved"]["optimizer"]["lr"] == 0.3


def test_a_run_that_fails_exits_with_1(capsys):
    frostbit("train --method ste_identity --lr 1e30 --out x", SMALL, code=1)
    err = capsys.readouterr().err
    assert "not finite at step" in err
    assert err.count("\n") == 1


def test_a_last_batch_of_one_image_does_not_end_a_run(workplace):
    small = [word for word in SMALL if word not in ("--data.limit_train", "320")]
    frostbit("train --method ste --out x --data.limit_train 129", small)
    assert (workplace / "x" / "ste-seed0" / "result.json").exists()


def test_when_every_run_stops_the_reasons_are_shown(workplace, capsys):
    arms = {"ste": {"method": "ste"}, "wild": {"method": "ste_identity", "optimizer.lr": 1e30}}
    (workplace / "r.yaml").write_text(yaml.safe_dump({"name": "small", "arms": arms, "seeds": [0]}))
    frostbit("compare r.yaml --arms wild --results res", SMALL, code=1)
    err = capsys.readouterr().err
    assert "wild-seed0 stopped: the loss is not finite" in err
    assert err.count("\n") == 1
    page = (workplace / "runs" / "small" / "report.html").read_text()
    assert "not finite" in page
    assert "Accuracy of the binary networks" not in page  # nothing to show there


def test_compare_runs_resumes_skips_and_reports(workplace, capsys):
    arms = {"ste": {"method": "ste"}, "wild": {"method": "ste_identity", "optimizer.lr": 1e30}}
    (workplace / "r.yaml").write_text(yaml.safe_dump({"name": "small", "arms": arms, "seeds": [0]}))
    frostbit("compare r.yaml --jobs 2 --results res", SMALL, code=1)
    out, err = capsys.readouterr()
    assert all(word in out for word in ("small", "ste", "optimizer.lr"))
    table = [line for line in out.splitlines() if not line.startswith("[")]
    assert max(map(len, table)) <= 80
    assert "wild-seed0 stopped: the loss is not finite" in err
    page = (workplace / "runs" / "small" / "report.html").read_text()
    assert all(word in page for word in ("Runs that stopped", "ste-seed0/report.html"))
    small = json.loads((workplace / "res" / "small" / "ste-seed0.json").read_text())
    assert {
        "recipe",
        "arm",
        "seed",
        "resolved",
        "git",
        "versions",
        "hardware",
        "seconds",
        "seconds_cpu",
        "curve",
        "final",
    } <= set(small)
    assert str(workplace) not in json.dumps(small)
    table = (workplace / "res" / "small" / "table.md").read_text()
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["ste"]

    finished = workplace / "runs" / "small" / "ste-seed0" / "result.json"
    stamp = finished.stat().st_mtime_ns
    frostbit("compare r.yaml --arms ste", SMALL)  # nothing is repeated
    assert finished.stat().st_mtime_ns == stamp
    frostbit("compare r.yaml --arms ste --lr 0.2", SMALL, code=2)
    assert "optimizer.lr is 0.1 there, 0.2 here" in capsys.readouterr().err


def test_results_are_filed_as_each_run_ends_beside_those_of_other_seeds(workplace, monkeypatch):
    from frostbit.cli import compare

    measured = json.loads((ROOT / "results" / "blockade-cpu" / "forward-seed0.json").read_text())
    filed = []

    def look_and_pretend(job):
        filed.append(sorted(path.stem for path in (workplace / "res").glob("small/*.json")))
        (job.folder / "result.json").write_text(json.dumps({**measured, "arm": job.arm, "seed": job.seed}))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(compare, "start", look_and_pretend)
    arms = {"b": {"method": "ste"}, "a": {"method": "ste_clip"}}
    (workplace / "r.yaml").write_text(yaml.safe_dump({"name": "small", "arms": arms}, sort_keys=False))
    for choice in ("--seeds [0]", "--seeds [1] --arms a"):
        frostbit(f"compare r.yaml --results res --quiet {choice}", SMALL)
    assert filed == [[], ["b-seed0"], ["a-seed0", "b-seed0"]]
    rows = [line.split("|")[1:-1] for line in (workplace / "res" / "small" / "table.md").read_text().splitlines()[2:]]
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [("b", "1"), ("a", "2")]


def test_reproduce_runs_a_table_and_shows_it_beside_the_published_figure(workplace, capsys):
    table = {
        "name": "table-1",
        "train.epochs": 100,
        "data.val_fraction": 0.1,
        "arms": {"ste": {"method": "ste"}, "float": {"method": "float"}},
        "scales": {"cpu": {"train.eval_every": 7, "seeds": [0, 1]}},
        "paper": {
            "figure": "A against B " * 9,
            "standing": "V",
            "source": "a paper",
            "values": {"ste": 51.5},
            "verdict": {"cpu": "agrees in sign " * 9, "full": "of a scale that was not run"},
        },
    }
    (workplace / "recipes").mkdir()
    (workplace / "recipes" / "table-1.yaml").write_text(yaml.safe_dump(table))
    (workplace / "recipes" / "aside.yaml").write_text("name: aside")
    frostbit("reproduce --list")
    listed = capsys.readouterr().out
    assert "A against B" in listed
    assert "not run: full, cpu" in listed
    assert "agrees" not in listed
    assert "aside" not in listed
    frostbit("reproduce table-1 --scale cpu --quiet --arms ste", SMALL)
    shown = capsys.readouterr().out
    assert "validation" in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    runs = [json.loads(path.read_text()) for path in sorted((workplace / "results" / "table-1-cpu").glob("*.json"))]
    assert [(run["resolved"]["scale"], run["resolved"]["train"]["eval_every"], run["seed"]) for run in runs] == [
        ("cpu", 7, 0),
        ("cpu", 7, 1),
    ]
    mean = sum(run["final"]["recalibrated"] for run in runs) / 2
    frostbit("reproduce --list")
    listed = capsys.readouterr().out
    assert f"cpu, {runs[0]['date']}: ste {mean:.1f} ±" in listed
    assert "(standing V)" in listed
    assert "not run: full\n" in listed
    assert "verdict: agrees in sign" in listed
    assert "was not run" not in listed
    assert max(map(len, listed.splitlines())) <= 80
    broken = workplace / "results" / "table-1-cpu" / "ste-seed2.json"
    broken.write_text('{"arm": "ste", "seed": 2}')
    frostbit("reproduce --list", code=2)
    assert "ste-seed2.json' is no result of a run: it has no 'final'" in capsys.readouterr().err
    broken.unlink()
    # a verdict comes after the runs, and makes no other runs of them
    table["paper"]["verdict"]["cpu"] = "does not agree"
    (workplace / "recipes" / "table-1.yaml").write_text(yaml.safe_dump(table))
    frostbit("reproduce table-1 --scale cpu --quiet --arms ste", SMALL)
    frostbit("reproduce --table")
    page = (workplace / "results" / "README.md").read_text()
    assert f"| ste | 51.5 | {mean:.1f} ±" in page
    assert "Verdict: does not agree." in page
    assert runs[0]["date"] in page
    capsys.readouterr()
    frostbit("reproduce tabel-1", code=2)
    assert "did you mean 'table-1'?" in capsys.readouterr().err
    frostbit("reproduce table-1 --list", code=2)


def test_summary_describes_a_network_without_its_data(capsys):
    frostbit("summary --model resnet14 --model.width 4 --data cifar100 --method ste")
    out = capsys.readouterr().out
    assert "12 layers binary" in out
    assert "1-bit parameters 10,656" in out
    frostbit("summary --model mlp --method float")
    assert "1-bit parameters 0" in capsys.readouterr().out


def test_doctor_finds_what_is_there(workplace, capsys):
    (workplace / "train" / "cat").mkdir(parents=True)
    frostbit(f"doctor --path {workplace}")
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "train with 1 class folders" in out


def test_only_settings_that_were_typed_count_as_given():
    parser = make_parser("train", "", usage="")
    parser.add_argument("--out", type=str | None)
    assert parse(make_parser("compare", "", usage=""), ["--seed", "4"])[1] == {"seeds": [4]}
    own, given = parse(parser, ["--epochs", "3", "--seeds", "0,1", "--model.args.hidden=[8]", "--data.path", "x"])
    assert own == {"out": None}
    assert given == {"train.epochs": 3, "seeds": [0, 1], "model.args": {"hidden": [8]}, "data.path": "x"}


@pytest.mark.slow
def test_a_folder_of_images_is_streamed_end_to_end(workplace):
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 8)):
        for name, colour in (("reddish", 0), ("bluish", 2)):
            (workplace / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = generator.integers(0, 120, (50, 70, 3)).astype(np.uint8)
                picture[..., colour] += 100
                Image.fromarray(picture).save(workplace / "images" / split / name / f"{number}.jpg")
    frostbit(
        "train --model resnet8 --model.width 8 --data folder --data.path images --data.stream true --data.size 16",
        "--data.workers 1 --data.augment.crop_scale 0.3 --data.augment.flip true --method stompp+ste --epochs 4",
        "--batch 16 --train.threads 1 --train.accelerator cpu --out x --lr 0.05 --quiet",
    )
    result = json.loads((workplace / "x" / "stompp+ste-seed0" / "result.json").read_text())
    assert result["final"]["recalibrated"] > 80


@pytest.mark.slow
def test_two_processes_freeze_what_one_process_freezes(workplace):
    def shares(folder):
        with open(workplace / folder / "stompp-seed0" / "metrics_steps.csv", newline="") as file:
            return [{k: v for k, v in row.items() if k not in ("loss", "train_acc")} for row in csv.DictReader(file)]

    for folder, devices in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-m", "frostbit.cli", "train", "--method", "stompp", "--out", folder, *SMALL]
        done = subprocess.run([*command, "--train.devices", devices], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report.html") == 1
    assert shares("one") == shares("two")
    result = json.loads((workplace / "two" / "stompp-seed0" / "result.json").read_text())
    assert result["curve"][-1]["acc_as_is"] == result["final"]["raw"]


OWN = """
import torch
import frostbit as fb

@fb.quantizers.register("narrow")
class Narrow(fb.quantizers.Quantizer):
    def B(self, x, h):
        return (x.abs() < 0.5).to(x.dtype)

@fb.models.register("own")
class Own(torch.nn.Sequential):
    def __init__(self, num_classes, input_size, in_channels):
        sizes = (in_channels * input_size**2, 24, 24, num_classes)
        layers = [torch.nn.Flatten()]
        for a, b in zip(sizes, sizes[1:]):
            layers += [torch.nn.Linear(a, b, bias=False), torch.nn.BatchNorm1d(b), torch.nn.ReLU()]
        super().__init__(*layers[:-1])
        self.input_shape = (in_channels, input_size, input_size)
"""


def test_quantizers_and_networks_of_ones_own_go_through_every_command(workplace, capsys):
    (workplace / "own.py").write_text(OWN)
    words = "--model own --imports [own.py] --binarize.weight narrow --binarize.input narrow --jobs 1"
    frostbit("compare --methods ste,stompp --out own", words, SMALL[4:])
    frostbit("evaluate own/ste-seed0")
    frostbit("export own/ste-seed0")
    assert (workplace / "own/stompp-seed0/result.json").exists()
    capsys.readouterr()
    (workplace / "wrong.py").write_text("1 / 0")
    for name, sentence in (("no.py", "imports names Python files"), ("wrong.py", "fails with ZeroDivisionError")):
        frostbit(f"train --method ste --imports [{name}]", SMALL, code=2)
        assert sentence in capsys.readouterr().err


def test_a_run_that_has_no_bits_is_no_packed_file(workplace, capsys):
    (workplace / "net.onnx").write_bytes(b"x")
    for name in (".", "net.onnx"):
        frostbit(f"predict {name} a.png", code=2)
        assert "is no packed file: frostbit export RUN writes one" in capsys.readouterr().err


def test_a_narrow_network_trains_on_grey_images(workplace):
    frostbit("train --method ste --data digits --model resnet8 --model.width 4 --epochs 1 --train.threads 1 --out y")


def test_a_run_is_evaluated_on_other_samples_of_its_classes_alone(workplace, capsys):
    def images(folder, classes, count):
        for split, name in itertools.product(("train", "test"), classes):
            (workplace / folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(
                    workplace / folder / split / name / f"{number}.png"
                )

    images("many", "ab", 6)
    images("few", "ab", 3)
    images("other", "ac", 6)
    small = [
        *SMALL[:6],
        *[
            "--train.threads",
            "1",
            "--train.accelerator",
            "cpu",
            "--batch",
            "4",
            "--epochs",
            "2",
            "--data.name",
            "folder",
        ],
    ]
    frostbit("train --method stompp --out x --data.path many", small)
    frostbit("evaluate x/stompp-seed0 --path few")
    assert "6 test samples" in capsys.readouterr().out
    frostbit("evaluate x/stompp-seed0 --path other", code=2)
    assert "was trained on a class 'b', where the data have 'c'" in capsys.readouterr().err
