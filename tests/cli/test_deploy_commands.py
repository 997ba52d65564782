"""From a trained run to a file, to labels, to a table of times, as a user types it."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from frostbit.cli import bench, main
from frostbit.errors import RunError

SMALL = [
    *("--model", "mlp", "--model.args.hidden", "[24,24,24]", "--binarize.min_binary_macs", "0"),
    *("--data.limit_train", "320", "--data.limit_test", "100", "--epochs", "2", "--batch", "64"),
    *("--train.threads", "1", "--train.accelerator", "cpu"),
]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished run, two pictures of a three and of a five, and what the run was packed to."""
    folder = tmp_path_factory.mktemp("deploy")
    assert main(["train", "--method", "ste", "--out", str(folder), "--quiet", *SMALL]) == 0
    (folder / "pictures").mkdir()
    digits = load_digits()
    for index in (np.flatnonzero(digits.target == 3)[0], np.flatnonzero(digits.target == 5)[0]):
        pixels = (digits.images[index] * 15.9375).astype(np.uint8)
        image = Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST)
        image.convert("RGB").save(folder / "pictures" / f"{digits.target[index]}.png")
    assert main(["export", str(folder / "ste-seed0"), "--out", str(folder / "net.safetensors")]) == 0
    return folder


def frostbit(*words, code=0):
    assert main([w for word in words for w in (word.split() if isinstance(word, str) else [str(word)])]) == code


def test_a_packed_file_has_the_accuracy_of_its_run(place, capsys):
    result = json.loads((place / "ste-seed0" / "result.json").read_text())
    final = f"{result['final']['recalibrated']:.2f} %"
    frostbit("predict", place / "net.safetensors", "--data digits --threads 1")
    assert capsys.readouterr().out == f"{final} of 100 test images ({final} when it was trained)\n"


def test_export_says_how_small_it_became_and_what_it_is(place, capsys):
    frostbit("export", place / "ste-seed0", "--rest float16 --real_weights int8 --samples 100")
    out = capsys.readouterr().out
    assert "of 100 samples agree with the hardened model" in out
    small, large = place / "ste-seed0" / "net.safetensors", place / "net.safetensors"
    assert f"{small.stat().st_size:,} bytes" in out
    assert small.stat().st_size < large.stat().st_size
    import frostbit_runtime

    info = frostbit_runtime.read(large).info
    assert info["run"]["arm"] == "ste"
    assert info["run"]["checkpoint"] == "final.pt"
    assert info["preprocess"].keys() == {"size", "channels", "mean", "std", "crop"}
    assert str(place) not in json.dumps(dict(info))


def test_export_takes_the_last_checkpoint_too(place, tmp_path, capsys):
    frostbit("export", place / "ste-seed0" / "last.ckpt", "--out", tmp_path / "net.safetensors")
    frostbit("predict", tmp_path / "net.safetensors", "--data digits")
    of_last = capsys.readouterr().out.splitlines()[-1]
    assert of_last.split()[0] == of_last.split("(")[1].split()[0]  # recalibrated as the run's end was
    frostbit("export", place / "ste-seed0" / "result.json", "--out", tmp_path / "net.safetensors", code=2)
    assert "last.ckpt and final.pt to export, found 'result.json'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["onnx", "qonnx"])
def test_export_to_other_runtimes(kind, place, tmp_path, capsys):
    pytest.importorskip(kind)
    frostbit("export", place / "ste-seed0", f"--format {kind} --samples 3 --out", tmp_path / "net")
    assert "100.0% of 3 samples agree" in capsys.readouterr().out
    assert (tmp_path / "net").stat().st_size > 1000


def test_predict_labels_pictures(place, capsys):
    frostbit("predict", place / "net.safetensors", place / "pictures", "--top 2 --format csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2"]
    assert [row["image"].rpartition("/")[2] for row in rows] == ["3.png", "3.png", "5.png", "5.png"]
    assert all(float(a["probability"]) >= float(b["probability"]) for a, b in zip(rows[::2], rows[1::2], strict=True))
    frostbit("predict", place / "net.safetensors", place / "pictures" / "3.png", "--format json")
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["label"], row["probability"]) == (rows[0]["label"], float(rows[0]["probability"]))
    frostbit("predict", place / "net.safetensors", place / "pictures" / "3.png")
    assert f"{100 * row['probability']:.2f} %  {row['label']}" in capsys.readouterr().out


def test_predict_refuses_what_it_cannot_use(place, tmp_path, capsys):
    for words, sentence in (
        ([tmp_path], "has no images in it"),
        ([tmp_path / "a.png"], "no such image"),
        ([place / "ste-seed0" / "result.json"], "cannot decode the image"),
        (["--data digit"], "did you mean 'digits'?"),
    ):
        frostbit("predict", place / "net.safetensors", *words, code=2)
        assert sentence in capsys.readouterr().err


def test_bench_measures_in_processes_of_their_own(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "ENGINES", {"frostbit_runtime": "frostbit_runtime", "other": "nowhere_to_be_found"})
    frostbit("bench", place / "net.safetensors", "--batch 1,3 --threads 1 --seconds 0.01 --out", tmp_path / "b.json")
    out, err = capsys.readouterr()
    assert "other is left out: nowhere_to_be_found is not installed" in err
    assert len(out.splitlines()) == 4
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [(row["threads"], row["batch"]) for row in rows] == [(1, 1), (1, 3)]
    assert all(row["ms"] > 0 and row["cpu_ms"] > 0 and row["peak_mb"] > 1 for row in rows)


@pytest.mark.slow
def test_bench_knows_its_neighbours(place, capsys):
    frostbit("bench", place / "net.safetensors", "--batch 2 --threads 1 --seconds 0.01")
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()[2:]] == list(bench.ENGINES)
    assert not err


def test_bench_runs_on_given_images(place, tmp_path):
    """A file of two samples serves any batch; one of another size is refused, so it was read."""
    request = {"file": str(place / "net.safetensors"), "engine": "frostbit_runtime", "threads": 1, "batches": [1, 3]}
    request |= {"seconds": 0.01, "images": str(tmp_path / "x.npy")}
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    assert set(bench.measure(request)) == {"1", "3"}
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 9, 9), np.float32))
    with pytest.raises(RunError, match="frostbit_runtime failed"):
        bench.measure(request)


def test_bench_says_which_engine_failed(place, capsys, monkeypatch):
    """And keeps what the others took."""
    monkeypatch.setattr(bench, "ENGINES", {"frostbit_runtim": "numpy", "frostbit_runtime": "frostbit_runtime"})
    frostbit("bench", place / "net.safetensors", "--batch 1 --threads 1 --seconds 0.01", code=1)
    printed = capsys.readouterr()
    assert "frostbit_runtim failed on" in printed.err
    assert printed.out.splitlines()[-1].startswith("frostbit_runtime ")
