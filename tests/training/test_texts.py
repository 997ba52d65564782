"""Fine-tuning on texts goes the same way as training on images: recipe, run, resume, commands."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from frostbit.cli import main
from frostbit.errors import UsageError
from frostbit.training.build import build
from frostbit.training.evaluate import score
from frostbit.training.module import TrainingModule
from frostbit.training.recipe import Recipe
from frostbit.training.resolve import resolve
from frostbit.training.run import load_run, resume, train
from frostbit.training.settings import flatten
from tests.texts import write_checkpoint, write_sst2, write_vocabulary

from .test_resume import run_and_die, same, traces
from .test_run import plain_loop

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_sst2(folder / "sst2")
    write_checkpoint(folder / "bert")
    write_checkpoint(folder / "dropping", dropout=0.2)
    write_vocabulary(folder / "words")
    return folder


@pytest.fixture
def tiny(place):
    def make(method: str = "stompp+ste", **settings: object) -> Recipe:
        stated = {
            "name": "tiny-text",
            "model": {"name": "bert", "args": {"checkpoint": str(place / "bert")}},
            "data": {"name": "sst2", "path": str(place / "sst2"), "limit_train": 320, "val_fraction": 0.2},
            "binarize": {"weight_scale": "mean_abs", "min_binary_macs": 0.0},
            "optimizer": {"name": "adamw", "lr": 0.02},
            "train": {"epochs": 4, "batch": 32, "record_every": 2, "threads": 1, "accelerator": "cpu"},
            "progression": {"refresh": 1},
        }
        return resolve(flatten(stated), flatten({"method": method, **settings}))

    return make


def test_a_float_network_learns_the_task(tiny, tmp_path):
    result = train(tiny("float"), arm="float", seed=0, folder=tmp_path)
    assert result["final"]["recalibrated"] > 90
    assert result["final"]["val"] > 90


@pytest.mark.parametrize("method", ["float", "ste", "stompp+ste", "stompp-bwn"])
def test_training_equals_a_plain_loop(method, tiny, tmp_path):
    recipe = tiny(method, **{"train.epochs": 2})
    train(recipe, arm="a", seed=1, folder=tmp_path)
    module, built = load_run(tmp_path)
    expected, found = plain_loop(recipe, 1).state_dict(), module.net.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    result = json.loads((tmp_path / "result.json").read_text())
    assert score(module.net, module.loader(built.data.test), hardened=True)[1] == result["final"]["raw"]
    # without batch norm there is nothing to recalibrate
    assert result["final"]["recalibrated"] == result["final"]["raw"]
    assert [window[0].split(".")[4] for window in result["windows"]] == sorted(
        "0000" + "1111" if result["windows"] else ""
    )


def test_a_killed_run_resumes_bit_for_bit_dropout_included(tiny, place, tmp_path):
    recipe = tiny(**{"model.args": {"checkpoint": str(place / "dropping")}, "train.epochs": 3})
    train(recipe, folder=tmp_path / "whole", arm="a", seed=3)
    run_and_die(recipe, tmp_path / "killed", TrainingModule, "training_step", 20)
    resume(tmp_path / "killed")
    found = traces(tmp_path / "killed")
    for part, value in traces(tmp_path / "whole").items():
        assert same(found[part], value), part


def test_a_float_run_is_the_start_of_a_binary_one(tiny, place, tmp_path):
    train(tiny("float", **{"train.epochs": 1}), arm="f", seed=0, folder=tmp_path)
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    net = build(tiny(init_from=str(tmp_path)), 5).net
    assert all(torch.equal(net.state_dict()[key], final[key]) for key in final)


def test_the_result_names_no_place(tiny, place, tmp_path):
    recipe = tiny("float", **{"train.epochs": 1, "data.tokenizer": str(place / "words" / "vocab.txt")})
    train(recipe, arm="a", seed=0, folder=tmp_path)
    text = (tmp_path / "result.json").read_text()
    assert str(place) not in text
    assert json.loads(text)["resolved"]["model"]["args"] == {"checkpoint": "bert"}
    assert json.loads(text)["resolved"]["data"]["tokenizer"] == "vocab.txt"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model.name": "resnet8"}, "model 'resnet8' reads images, but data set 'sst2' holds texts"),
        ({"data.name": "digits", "data.path": None}, "model 'bert' reads texts, but data set 'digits' holds images"),
        ({"data.augment.flip": True}, "augment changes images, found texts"),
        ({"data.length": 30}, "has 24 positions, found texts of 30 tokens"),
        ({"data.length": 2}, "length must be at least 3"),
        ({"model.args": {}}, "data set 'sst2' holds texts and needs a tokenizer"),
        ({"model.args": {}, "data.tokenizer": "WORDS"}, "model 'bert' needs a checkpoint"),
        ({"data.tokenizer": "MORE"}, "the tokenizer has 24 tokens and pads with 0, but model 'bert' knows 22"),
        ({"model.num_classes": 1}, "model.num_classes is 1, but 'sst2' has 2 classes"),
        ({"model.input_size": 99}, "model.input_size is 99, but the inputs of 'sst2' have"),
        ({"model.width": 8}, "model 'bert' has no argument 'width'"),
    ],
)
def test_what_cannot_be_gets_one_sentence(settings, said, tiny, place, tmp_path):
    words = place / "words" / "vocab.txt"
    more = tmp_path / "vocab.txt"
    more.write_text(words.read_text() + "\nmore\nwords")
    settings = {key: {"WORDS": str(words), "MORE": str(more)}.get(str(v), v) for key, v in settings.items()}
    recipe = tiny(**settings)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        loader_of(recipe)
    assert "\n" not in str(caught.value)


def loader_of(recipe):
    built = build(recipe, 0)
    module = TrainingModule(built.net, built.recipe, built.data, seed=0, steps_per_epoch=built.steps_per_epoch)
    return module.loader(built.data.train, train=True)


def test_commands_take_texts_as_they_take_images(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = {
        "name": "words",
        "model": {"name": "bert", "args": {"checkpoint": str(place / "bert")}},
        "data": {"name": "sst2", "path": str(place / "sst2"), "limit_train": 64, "val_fraction": 0.25},
        "binarize": {"weight_scale": "mean_abs", "min_binary_macs": 0.0},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "train": {"epochs": 1, "batch": 24, "record_every": 1, "threads": 1, "accelerator": "cpu"},
        "arms": {"ste": {"method": "ste"}},
    }
    Path("words.yaml").write_text(yaml.safe_dump(recipe))

    def frostbit(words):
        assert main(words.split()) == 0

    frostbit("train words.yaml --arm ste --out x")
    frostbit("evaluate x/ste-seed0")
    assert "100 test samples" in capsys.readouterr().out
    frostbit("summary words.yaml --arm ste")
    assert "12 layers binary" in capsys.readouterr().out
    frostbit("inspect x/ste-seed0")
    frostbit("export x/ste-seed0 --samples 24")
    assert "100.0% of 24 samples agree with the hardened model" in capsys.readouterr().out
    assert main(["predict", "x/ste-seed0/net.safetensors", "a.png"]) == 2
    assert "reads texts as indices of tokens, and this command reads images" in capsys.readouterr().err
    frostbit("sweep words.yaml --arm ste --over optimizer.lr=0.01,0.1 --out s --quiet")
    assert "best of 2 trials" in capsys.readouterr().out
