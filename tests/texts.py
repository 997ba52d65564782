"""A task of words, and a BERT small enough for it: what tests of texts share."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

GOOD, BAD = ("fine", "warm", "witty"), ("dull", "flat", "stale")
PLAIN = ("the", "film", "is", "a", "plot", "and", "cast", "so", "very", "it")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN, "##s")


def sentences(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Return sentences of one to seven plain words around a good or a bad one, and which it is."""
    draw = random.Random(seed)
    labels = [draw.randrange(2) for _ in range(count)]
    texts = []
    for label in labels:
        words = [draw.choice(PLAIN) for _ in range(draw.randint(1, 7))]
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if label else BAD))
        texts.append(" ".join(words))
    return texts, labels


def write_sst2(folder: Path, train: int = 320, validation: int = 100) -> Path:
    """Write a folder with the columns of SST-2, a test split without labels included."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, count) in enumerate({"train": train, "validation": validation, "test": 5}.items()):
        texts, labels = sentences(count, number)
        labels = [-1] * count if name == "test" else labels
        pq.write_table(
            pa.table({"sentence": texts, "label": labels, "idx": list(range(count))}), folder / f"{name}.parquet"
        )
    return folder


def write_vocabulary(folder: Path) -> Path:
    """Write ``vocab.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return folder / "vocab.txt"


def write_checkpoint(folder: Path, kind: str = "Bert", dropout: float = 0.0, **config: int) -> Path:
    """Write a randomly initialized encoder of two layers with its tokenizer, as transformers saves them."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, object] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    if kind == "DistilBert":
        sizes = {"vocab_size": len(VOCABULARY), "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    if kind == "Roberta":
        sizes["pad_token_id"] = 1
    settings = getattr(transformers, f"{kind}Config")(**sizes | config)
    getattr(transformers, f"{kind}Model")(settings).save_pretrained(folder)
    transformers.BertTokenizer(vocab=str(write_vocabulary(folder))).save_pretrained(folder)
    return folder
