"""`frostbit inspect quantizer NAME`: a figure, a verdict, and one sentence for what cannot be."""

import pytest

from frostbit import quantizers
from frostbit.cli import main


@pytest.mark.parametrize("words", [["bnn++"], ["ede", "--hardness", "3"], ["sign"], ["clip", "--numerical", "true"]])
def test_it_draws_and_says_the_verdict(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "quantizer", *words]) == 0
    verdict, path = capsys.readouterr().out.splitlines()
    assert path == f"quantizer-{words[0]}.png"
    assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")
    proximal = quantizers.decompose(words[0]).proximal
    assert verdict.startswith(f"{words[0]} is {'proximal: ' if proximal else 'not proximal: '}")


def test_where_the_figure_goes(tmp_path, capsys):
    out = tmp_path / "deep" / "x.png"
    assert main(["inspect", "quantizer", "parq", "--hardness", "4", "--limit", "1", "--out", str(out)]) == 0
    assert out.stat().st_size > 5000
    assert capsys.readouterr().out.splitlines()[1] == str(out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bnn+++"], "unknown quantizer 'bnn+++': did you mean 'bnn++'?"),
        (["clip", "--hardness", "3"], "Clip has no hardness"),
        (["ede", "--hardness", "-3"], "hardness must be positive"),
        (["ede", "--limit", "0"], "--limit must be above 0"),
        (["ede", "--hardnes", "3"], "did you mean '--hardness'"),
        ([], "name"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "quantizer", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
