"""What a conversion refuses: one sentence, and the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.errors import UsageError
from tests.nn.zoo import (
    IMAGES,
    ROWS,
    TOKENS,
    Branching,
    Functional,
    ResNet,
    Shared,
    ViT,
    assert_untouched,
    attention,
    chain,
    fingerprint,
)

FAILURES: list[tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = [
    (ResNet, IMAGES, {"placement": "inptu"}, "unknown placement 'inptu': did you mean 'input'"),
    (ResNet, IMAGES, {"weight": None, "input": None}, "nothing to do"),
    (ResNet, IMAGES, {"weight": "ste_clp"}, "unknown quantizer 'ste_clp': did you mean 'ste_clip'"),
    (ResNet, IMAGES, {"keep": "layr1.0.conv1"}, "keep: 'layr1.0.conv1' matches no .* did you mean 'layer1.0.conv1'"),
    (ResNet, IMAGES, {"keep": "*"}, "keeps all 9 layers: pass another keep=, or None for nothing"),
    (ResNet, IMAGES, {"overrides": {"layer3.*": {}}}, "overrides: 'layer3.*' matches no"),
    (ResNet, IMAGES, {"overrides": {"layer1.*": {"wieght": "sign"}}}, "'wieght': did you mean 'weight'"),
    (ResNet, IMAGES, {"overrides": {"fc": {"weight": "sign"}}}, "'fc' matches only layers that keep= leaves real"),
    (ResNet, IMAGES, {"pad_value": 0.3}, "pad_value must be 0, 1 or -1"),
    (ResNet, IMAGES, {"latent_clip": -1}, "latent_clip must be positive"),
    (ResNet, IMAGES, {"weight_scale": "mean"}, "unknown weight_scale 'mean'"),
    (ResNet, IMAGES, {"min_binary_macs": 0.999}, r"only \d+\.\d% of the multiply-accumulates .* expected 100%"),
    (ResNet, ROWS, {}, "ResNet cannot run on example_input"),
    (ViT, IMAGES, {"placement": "activation"}, "found no ReLU in ViT"),
    (
        ResNet,
        IMAGES,
        {"placement": "activation", "overrides": {"layer1.*": {"weight": "sign", "input": "sign"}}},
        r"overrides\['layer1.\*'\]: with placement='activation' no layer has an input quantizer of its own",
    ),
    (Functional, IMAGES, {}, "input of 'conv2' comes from the function 'relu'"),
    (Functional, None, {}, "input of 'conv2' comes from the function 'relu'"),
    (lambda: Functional("relu6"), IMAGES, {"keep": None}, "the function 'relu6'.* use an nn.ReLU"),
    (lambda: Functional("method"), IMAGES, {}, "the function 'relu'"),
    (Functional, IMAGES, {"placement": "activation"}, "calls 'relu' as a function"),
    (lambda: chain(nn.Sigmoid()), ROWS, {}, "the binarized input of '3' is constant on the example batch"),
    (lambda: chain(nn.ReLU(), nn.Sigmoid()), ROWS, {"keep": "0"}, "the binarized input of '4' is constant"),
    (lambda: chain(nn.ReLU(), nn.Softmax(-1), nn.ReLU()), ROWS, {"placement": "activation"}, "input of '4' is const"),
    (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(8)), ROWS, {}, "Sequential has no layer that can become"),
    (Shared, ROWS, {}, "layer 'twice' is called more than once"),
    (Branching, None, {}, "^Branching cannot be traced without an input: pass example_input=, one batch$"),
    (attention, TOKENS, {"keep": None, "weight_scale": "mean"}, "unknown weight_scale"),
    (attention, TOKENS, {"keep": "linear1", "min_binary_macs": 1.0}, "multiply-accumulates"),
    (ResNet, IMAGES, {"min_binary_macs": 80}, "min_binary_macs is a share from 0 to 1, found 80"),
    (ResNet, IMAGES, {"overrides": {"layer1.*": "ste_clip"}}, "must be a table such as .* found 'ste_clip'"),
    (lambda: nn.Sequential(nn.Embedding(9, 4, sparse=True)), torch.tensor([[1, 2]]), {"keep": None}, "sparse=True"),
]


@pytest.mark.parametrize(("make", "batch", "options", "message"), FAILURES, ids=[str(f[2:]) for f in FAILURES])
def test_a_refusal_is_one_sentence_and_leaves_the_model_as_it_was(
    make: Callable[[], nn.Module], batch: Any, options: dict[str, Any], message: str
) -> None:
    model = make()
    handle = next(model.children()).register_forward_hook(lambda *_: None)
    before, rng = fingerprint(model), torch.get_rng_state()
    with pytest.raises(UsageError, match=message) as caught:
        fb.binarize_(model, example_input=batch, **options)
    assert "\n" not in str(caught.value)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), rng)
    handle.remove()


def test_what_is_binary_already_is_refused() -> None:
    model = ResNet()
    fb.binarize_(model, example_input=IMAGES)
    before = fingerprint(model)
    with pytest.raises(UsageError, match="ResNet is binary already"):
        fb.binarize_(model, example_input=IMAGES)
    assert_untouched(model, before)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"binarize_ takes a model, an instance of torch.nn.Module, found <class"):
        fb.binarize_(ResNet)  # the class is what a typo leaves
