"""Whatever is wrong with a request: one sentence, the nearest valid name, exit code 2, no traceback."""

import subprocess
import sys

import pytest
import yaml

import frostbit
from frostbit.cli import COMMANDS, main

RECIPE = {"arms": {"a": {"method": "ste"}, "b": None}, "train": {"epochs": 1}}

CASES = {
    "command": ("trian", "unknown command 'trian': did you mean 'train'?"),
    "option of none": ("--versoin", "unknown command '--versoin': did you mean '--version'?"),
    "option": ("train --epoch 3", "has no option '--epoch': did you mean '--epochs'?"),
    "dotted option": ("train --train.epoch 3", "did you mean '--train.epochs'?"),
    "option of another command": ("train --seeds 1", "did you mean '--seed'?"),
    "option with equals": ("train --refrsh=3", "did you mean '--refresh'?"),
    "option of a command without settings": ("doctor --pth x", "did you mean '--path'?"),
    "abbreviation": ("train --train.ep 3", "has no option '--train.ep'"),
    "number": ("train --epochs few", "--train.epochs must be a whole number, found 'few'"),
    "number of the command": ("compare --jobs few", "--jobs must be a whole number, found 'few'"),
    "list": ("train --schedule.milestones a,b", "--schedule.milestones must be a list"),
    "choice": ("train --binarize.placement inside", "unknown binarize.placement 'inside'"),
    "method": ("train --method stomp", "unknown method 'stomp': did you mean 'stompp'?"),
    "model": ("summary --model resnet19", "unknown model 'resnet19': did you mean"),
    "model argument": ("summary --model mlp --model.args.hiden [8]", "did you mean 'hidden'?"),
    "data": ("train --data digit", "unknown data set 'digit': did you mean 'digits'?"),
    "quantizer": ("summary --binarize.weight ste_clp", "did you mean 'ste_clip'?"),
    "order": ("train --order foward --out OUT", "unknown order 'foward': did you mean 'forward'?"),
    "computed order": ("train --order damge --out OUT", "unknown order 'damge': did you mean 'damage'?"),
    "setting without use": ("train --method ste --refresh 3", "progression.refresh means nothing here"),
    "setting no arm uses": ("compare --methods float,ste --refresh 3", "progression.refresh means nothing"),
    "recipe": ("train nope.yaml", "cannot read the recipe 'nope.yaml'"),
    "recipe twice": ("train a.yaml --config b.yaml", "give the recipe once"),
    "arm": ("train RECIPE --arm c", "the recipe has no arm 'c': known: a, b"),
    "no arm": ("train RECIPE", "use frostbit compare, or choose --arm from a, b"),
    "arms": ("compare RECIPE --arms a,c", "the recipe has no arm 'c'"),
    "methods over arms": ("compare RECIPE --methods ste", "choose among them with --arms"),
    "nothing to compare": ("compare", "name a recipe with arms, or --methods"),
    "jobs": ("compare RECIPE --jobs 0", "--jobs must be at least 1"),
    "resume": ("train --resume nope", "'nope' is not a run folder"),
    "resume with settings": ("train --resume nope --epochs 3", "--resume takes all settings"),
    "evaluate": ("evaluate nope", "'nope' is not a run folder"),
    "inspect": ("inspect nope", "'nope' is not a run folder"),
    "export": ("export nope", "'nope' is not a run folder"),
    "export format": ("export nope --format onxx", "unknown format 'onxx': did you mean 'onnx'?"),
    "export option": ("export nope --sample 3", "did you mean '--samples'?"),
    "export samples": ("export nope --samples 0", "--samples must be at least 1"),
    "export encoding": ("export nope --format onnx --rest float16", "--rest and --real_weights are for packed files"),
    "predict": ("predict nope.safetensors a.png", "nope.safetensors: cannot be read: No such file"),
    "predict nothing": ("predict nope.safetensors", "needs images, or --data with the name of a data set"),
    "predict top": ("predict nope.safetensors a.png --top 0", "--top must be at least 1"),
    "predict no packed file": ("predict RECIPE a.png", "r.yaml: "),
    "bench": ("bench nope.safetensors", "nope.safetensors: cannot be read: No such file"),
    "bench numbers": ("bench nope.safetensors --batch few", "--batch must be whole numbers of at least 1"),
    "bench option": ("bench nope.safetensors --thread 1", "did you mean '--threads'?"),
    "missing argument": ("evaluate", "run"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    words, sentence = CASES[case]
    words = words.replace("RECIPE", "r.yaml").replace("OUT", "out")
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.startswith("frostbit: ")
    assert err.count("\n") == 1
    assert not out
    assert "Traceback" not in err


def test_debug_shows_where_it_came_from():
    with pytest.raises(ValueError, match="did you mean"):
        main(["trian", "--debug"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: frostbit {command}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    assert main([]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert all(sum(line.startswith(f"  {command} ") for line in lines) == 2 for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"frostbit {frostbit.__version__}\n"


def test_help_shows_short_names(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    for short in ("--model", "--data", "--method", "--epochs", "--batch", "--lr", "--refresh", "--order"):
        assert short in out


def test_a_reader_that_has_enough_is_no_error():
    """As in ``frostbit --help | head -1``."""
    command = [sys.executable, "-m", "frostbit.cli", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
