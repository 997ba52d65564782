"""From sentences to one tensor of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostbit.checkpoints import find_checkpoint, loading
from frostbit.data.sources import RawSplit
from frostbit.errors import UsageError


def load_tokenizer(name: str) -> Any:
    """Return a tokenizer of transformers.

    Args:
        name: a vocabulary file (``.txt``, one token a line: BERT's uncased WordPiece), or a checkpoint that has a
            tokenizer, see `frostbit.checkpoints.find_checkpoint`.

    Raises:
        UsageError: it cannot be loaded, or knows no padding.
    """
    with loading("tokenizer", name):
        from transformers import AutoTokenizer, BertTokenizer

        path = Path(name).expanduser()
        tokenizer = (
            BertTokenizer(vocab=str(path))
            if path.suffix == ".txt" and path.is_file()
            else AutoTokenizer.from_pretrained(find_checkpoint(name))
        )
    if tokenizer.pad_token_id is None:
        raise UsageError(f"the tokenizer {name!r} has no padding token, which batches of sentences need")
    return tokenizer


def tokenize(splits: Sequence[tuple[RawSplit, Sequence[int]]], tokenizer: Any, length: int | None) -> list[Tensor]:
    """Tokenize the chosen rows of splits, cut and padded to one length.

    Args:
        splits: texts, and which rows of them.
        tokenizer: from `load_tokenizer`.
        length: tokens per text, special ones included; ``None`` for those of the longest text.

    Returns:
        int32 ``[rows, length]`` for each split.

    Raises:
        UsageError: no room for a word beside the special tokens.
    """
    least = tokenizer.num_special_tokens_to_add() + 1
    if length is not None and length < least:
        raise UsageError(f"length must be at least {least} with this tokenizer, found {length}")
    longest = min(tokenizer.model_max_length, 512) if length is None else length
    encoded: list[list[list[int]]] = []
    for split, rows in splits:
        sentences = [str(split.open(row)) for row in rows]
        ids = tokenizer(sentences, truncation=True, max_length=longest)["input_ids"] if sentences else []
        encoded.append(ids)
    if length is None:
        longest = max(len(ids) for split_ids in encoded for ids in split_ids)
    tensors = []
    for split_ids in encoded:
        tensor = torch.full((len(split_ids), longest), tokenizer.pad_token_id, dtype=torch.int32)
        for row, ids in enumerate(split_ids):
            tensor[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        tensors.append(tensor)
    return tensors
