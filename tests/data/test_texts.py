"""Texts: from parquet files to token ids and batches, and one sentence for each bad input."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from frostbit import data
from frostbit.data import Augment, Loader
from frostbit.errors import UsageError
from tests.texts import VOCABULARY, sentences, write_checkpoint, write_sst2, write_vocabulary

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("sst2"), train=40, validation=10)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_vocabulary(tmp_path_factory.mktemp("vocabulary")))


def in_words(ids: torch.Tensor) -> list[str]:
    return [" ".join(VOCABULARY[i] for i in row if i) for row in ids.tolist()]


def test_sentences_become_ids_of_one_length(folder: Path, vocabulary: str) -> None:
    found = data.load("sst2", folder, tokenizer=vocabulary)
    for split, seed, count in ((found.train, 0, 40), (found.test, 1, 10)):  # the test split is the labelled one
        texts, labels = sentences(count, seed)
        assert in_words(split.inputs) == [f"[CLS] {text} [SEP]" for text in texts]
        assert split.labels.tolist() == labels
        assert split.inputs.dtype == torch.int32
    longest = max(len(text.split()) for seed, count in ((0, 40), (1, 10)) for text in sentences(count, seed)[0])
    assert found.input_shape == (longest + 2,)
    assert (found.mean, found.std, found.vocabulary) == (None, None, (len(VOCABULARY), 0))
    assert found.classes == ("negative", "positive")
    cut = data.load("sst2", folder, tokenizer=vocabulary, length=4)
    assert cut.input_shape == (4,)
    assert in_words(cut.train.inputs)[0].split()[-1] == "[SEP]"


def test_a_checkpoints_tokenizer_gives_the_same(folder: Path, vocabulary: str, tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path))
    a, b = (data.load("sst2", folder, tokenizer=name) for name in (vocabulary, checkpoint))
    assert torch.equal(a.train.inputs, b.train.inputs)


def test_words_that_are_not_in_the_vocabulary_and_capitals(tmp_path: Path, vocabulary: str) -> None:
    for name in ("train", "validation"):
        pq.write_table(pa.table({"text": ["Films , FINE !"], "label": [1]}), tmp_path / f"{name}-0.parquet")
    found = data.load("sst2", tmp_path, tokenizer=vocabulary)
    assert in_words(found.train.inputs) == ["[CLS] film ##s [UNK] fine [UNK] [SEP]"]


def test_limits_and_validation_split_are_those_of_images(folder: Path, vocabulary: str) -> None:
    found = data.load("sst2", folder, tokenizer=vocabulary, limit_train=20, limit_test=7, val_fraction=0.25)
    assert found.val is not None
    assert (len(found.train), len(found.val), len(found.test)) == (15, 5, 7)
    whole = data.load("sst2", folder, tokenizer=vocabulary, limit_train=20, limit_test=7)
    rows = [tuple(row) for split in (found.train, found.val) for row in in_words(split.inputs)]
    assert sorted(rows) == sorted(tuple(row) for row in in_words(whole.train.inputs))


def test_batches_are_ids_ready_for_an_embedding(folder: Path, vocabulary: str) -> None:
    found = data.load("sst2", folder, tokenizer=vocabulary)
    make = {"mean": found.mean, "std": found.std, "augment": Augment(flip=False)}
    loader = Loader(found.train, 16, shuffle=True, **make)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [16, 16, 8]
    assert {ids.dtype for ids, _ in batches} == {torch.int64}
    together = sorted(line for ids, _ in batches for line in in_words(ids))
    assert together == sorted(in_words(found.train.inputs))
    ranks = [Loader(found.train, 16, shuffle=True, rank=r, world_size=2, **make) for r in range(2)]
    for index in range(2):
        assert torch.equal(torch.cat([loader.batch(3, index)[0] for loader in ranks]), loader.batch(3, index)[0])
    with pytest.raises(UsageError, match="augment changes images, found texts"):
        Loader(found.train, 16, shuffle=True, mean=None, std=None, augment=Augment(flip=True))


def table(folder: Path, **columns: list[object]) -> None:
    for name in ("train", "validation"):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")


BAD_TABLES = {
    "no text": ({"words": ["a"], "label": [0]}, "expected a column of texts, one of sentence, text"),
    "no label": ({"sentence": ["a"], "mood": [0]}, "expected a column of labels"),
    "numbers": ({"sentence": [3], "label": [0]}, "expected texts in"),
    "none": ({"sentence": ["a", None], "label": [0, 1]}, "expected a text in every row, found none in"),
    "label": ({"sentence": ["a"], "label": [2]}, "expected labels 0..1, found 2"),
    "empty": ({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "expected texts in"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_is_none_gets_one_sentence(case: str, tmp_path: Path, vocabulary: str) -> None:
    columns, said = BAD_TABLES[case]
    table(tmp_path, **columns)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        data.load("sst2", tmp_path, tokenizer=vocabulary)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "data set 'sst2' holds texts and needs a tokenizer"),
        ({"tokenizer": "/nowhere/at-all"}, "cannot load the tokenizer '/nowhere/at-all'"),
        ({"tokenizer": "VOCABULARY", "length": 2}, "length must be at least 3 with this tokenizer, found 2"),
        ({"tokenizer": "VOCABULARY", "limit_train": 41}, "limit_train must be in [1, 40], the number of samples"),
        ({"path": "missing"}, "expected a folder of texts at missing, found nothing"),
        ({"path": "."}, "expected train*.parquet in"),
    ],
)
def test_a_bad_option_gets_one_sentence(
    options: dict[str, object], said: str, folder: Path, vocabulary: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()  # class folders are for images
    options = {key: vocabulary if value == "VOCABULARY" else value for key, value in options.items()}
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        data.load("sst2", **{"path": folder, **options})
    assert "\n" not in str(caught.value)
