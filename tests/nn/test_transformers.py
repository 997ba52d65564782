"""Conversion of transformers: fused and shared projections, torch's own encoder, Hugging Face models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.errors import UsageError
from tests.nn.zoo import IMAGES, TOKENS, ViT


def test_a_vit_with_fused_projections() -> None:
    torch.manual_seed(0)
    model = ViT()
    report = fb.binarize_(model, example_input=IMAGES)
    assert set(report.kept) == {"patch_embed", "head"}
    assert len(report.converted) == 8
    names = [unit.name for unit in fb.units(model)]
    assert names == [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")]
    assert [unit.feature_shape for unit in fb.units(model)] == [(16,), (16,), (16,), (32,)] * 2
    logits = model(IMAGES)
    assert not torch.equal(logits[0], logits[1])
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_transformers_bert_shares_q_k_v() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    keys = list(model.state_dict())
    batch = transformers.BatchEncoding(
        {"input_ids": torch.randint(1, 30, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    )
    with pytest.raises(UsageError, match="pass example_input="):
        fb.binarize_(model)
    keep = ["*embeddings*", "*pooler*", "classifier"]
    report = fb.binarize_(model, example_input=batch, keep=keep)
    assert len(report.converted) == 12
    assert list(model.state_dict()) == keys
    units = {unit.name: unit for unit in fb.units(model)}
    assert len(units) == 8
    first = units["bert.encoder.layer.0.attention.self.query"]
    names = [name for name, module in model.named_modules() if module in first.layers]
    assert [name.rpartition(".")[2] for name in names] == ["query", "key", "value"]
    assert len({id(layer.input_quantizer) for layer in first.layers}) == 1
    assert first.input_quantizer is first.layers[0].input_quantizer
    logits = model(**batch).logits
    assert not torch.equal(logits[0], logits[1])
    logits.sum().backward()
    progression = fb.StoMPP(model, total_steps=16)
    for _ in range(16):
        progression.step()
    assert set(fb.frozen_fraction(model).values()) == {1.0}
    assert not model(**batch).logits.isnan().any()


@pytest.mark.filterwarnings("ignore")
def test_transformers_vit() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    report = fb.binarize_(model, example_input={"pixel_values": IMAGES}, min_binary_macs=0.7)
    assert len(report.converted) == 6
    assert len(fb.units(model)) == 4
    logits = model(pixel_values=IMAGES).logits
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("stack", [False, True], ids=["layer", "encoder"])
def test_torchs_inference_fast_path_does_not_pass_the_binary_layers_by(stack: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.GELU(), batch_first=True)
    model: nn.Module = nn.TransformerEncoder(layer, 2) if stack else layer
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    model.eval()
    with torch.no_grad():
        float_output = model(TOKENS, src_key_padding_mask=padding)
    fb.binarize_(model, example_input=TOKENS, keep=None)
    slow = model(TOKENS, src_key_padding_mask=padding)
    with torch.no_grad():
        fast = model(TOKENS, src_key_padding_mask=padding)
    torch.testing.assert_close(fast, slow.detach())
    assert not torch.allclose(fast[0], float_output[0], atol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(TOKENS, src_key_padding_mask=padding), fast)
