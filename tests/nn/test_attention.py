"""Attention: torch's own where nothing is binary, torch's own on signs where something is."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostbit import nn as fnn
from frostbit.quantizers import Clip, Masked, STEClip, hard

E, HEADS, BATCH, QUERIES, KEYS = 8, 2, 3, 4, 5
MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "both extras": {"add_bias_kv": True, "add_zero_attn": True},
    "kdim": {"kdim": 6, "vdim": 10},
    "kdim without bias": {"kdim": 6, "bias": False, "batch_first": True},
    "vdim": {"vdim": 10, "add_bias_kv": True},
}


def pair(options: dict[str, Any], **binary: Any) -> tuple[fnn.MultiheadAttention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, HEADS, **options).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    ours = fnn.MultiheadAttention(E, HEADS, **options, **binary).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def operands(module: nn.MultiheadAttention, batched: bool = True, keys: int = KEYS) -> list[Tensor]:
    """Return query, key, value in the module's layout."""
    found = []
    for length, width in ((QUERIES, E), (keys, module.kdim), (keys, module.vdim)):
        x = torch.randn(BATCH, length, width, dtype=torch.float64)
        found.append((x if module.batch_first else x.transpose(0, 1)) if batched else x[0])
    return [x.detach().requires_grad_() for x in found]


def masks(batched: bool = True, keys: int = KEYS) -> dict[str, dict[str, Any]]:
    causal = torch.arange(keys)[None] > torch.arange(QUERIES)[:, None] + 1
    padding = torch.zeros(BATCH, keys, dtype=torch.bool)
    padding[1, -2:] = True
    padding = padding if batched else padding[1]
    per_head = torch.randn((BATCH if batched else 1) * HEADS, QUERIES, keys, dtype=torch.float64)
    additive = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, float("-inf"))
    return {
        "none": {},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(QUERIES, keys, dtype=torch.float64)},
        "per head": {"attn_mask": per_head},
        "padding": {"key_padding_mask": padding},
        "both bool": {"attn_mask": causal, "key_padding_mask": padding},
        "both float": {"attn_mask": per_head, "key_padding_mask": additive},
        "hint": {"attn_mask": torch.arange(keys)[None] > torch.arange(QUERIES)[:, None], "is_causal": True},
    }


def assert_same(mine: Any, plain: Any, leaves: tuple[list[Tensor], list[Tensor]]) -> None:
    assert (mine[1] is None) == (plain[1] is None)
    for a, b in zip(mine, plain, strict=True):
        if a is not None:
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), leaf, retain_graph=True, allow_unused=True)
        for y, leaf in ((mine[0], leaves[0]), (plain[0], leaves[1]))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("name", MODULES)
def test_without_quantizers_it_is_torchs_attention(name: str, mask: str) -> None:
    if mask == "hint" and any("add" in option for option in MODULES[name]):
        pytest.skip("torch lets its hint, not the mask, decide on the keys that were added")
    ours, theirs = pair(MODULES[name], weight_quantizer=None, input_quantizer=None)
    for batched, need, average in itertools.product((True, False), (True, False), (True, False)):
        qkv = operands(ours, batched)
        options = masks(batched)[mask] | {"need_weights": need, "average_attn_weights": average}
        mine, plain = ours(*qkv, **options), theirs(*qkv, **options)
        assert_same(mine, plain, ([*qkv, *ours.parameters()], [*qkv, *theirs.parameters()]))


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_takes_the_fused_projection(batch_first: bool) -> None:
    ours, theirs = pair({"batch_first": batch_first}, weight_quantizer=None, input_quantizer=None)
    x = operands(ours)[0]
    assert_same(ours(x, x, x), theirs(x, x, x), ([x, *ours.parameters()], [x, *theirs.parameters()]))
    keywords = {"query": x, "key": x, "value": x}
    assert_same(ours(**keywords), theirs(**keywords), ([x], [x]))


def on_signs(theirs: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """Give torch's module the signs of its projections; its output projection reads signs too."""
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
                parameter.copy_(hard(parameter))
    return theirs


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("need_weights", [True, False])
def test_binary_projections_are_torchs_on_signs(name: str, need_weights: bool) -> None:
    ours, theirs = pair(MODULES[name], weight_quantizer="ste_clip", input_quantizer="ste_clip")
    ours.out_proj.input_quantizer = None  # torch's function cannot take the signs there
    on_signs(theirs)
    qkv = operands(ours)
    mine = ours(*qkv, need_weights=need_weights)
    plain = theirs(*(hard(x) for x in qkv), need_weights=need_weights)
    torch.testing.assert_close(mine[0], plain[0])
    binary = {name for name, _, _ in ours.latents()} | {"out_proj.weight"}
    leaves = dict(ours.named_parameters())
    gradients = torch.autograd.grad(mine[0].square().sum(), [*qkv, *leaves.values()], allow_unused=True)
    signs = [hard(x).requires_grad_() for x in qkv]
    again = theirs(*signs, need_weights=need_weights)[0]
    expected = torch.autograd.grad(again.square().sum(), [*signs, *theirs.parameters()], allow_unused=True)
    inside = [x.abs() <= 1 for x in qkv] + [(p.abs() <= 1) | (n not in binary) for n, p in leaves.items()]
    for a, b, ok in zip(gradients, expected, inside, strict=True):
        torch.testing.assert_close(a, b * ok)


def test_the_output_projection_reads_signs_too() -> None:
    ours, _ = pair({"batch_first": True})
    seen: list[Tensor] = []
    ours.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = operands(ours)[0]
    y, _ = ours(x, x, x)
    expected = nn.functional.linear(hard(seen[0]), hard(ours.out_proj.weight), ours.out_proj.bias)
    torch.testing.assert_close(y, expected)
    assert ours.out_proj.input_quantizer is not ours.input_quantizer


@pytest.mark.parametrize("name", ["plain", "kdim"])
def test_scaled_masked_and_frozen_projections(name: str) -> None:
    ours, theirs = pair(MODULES[name], weight_scale="mean_abs", input_quantizer=None)
    with torch.no_grad():
        for parameter_name, parameter, _ in (*ours.latents(), ("out_proj.weight", theirs.out_proj.weight, None)):
            other = theirs.get_parameter(parameter_name)
            other.copy_(hard(parameter) * parameter.abs().mean(1, keepdim=True))
    qkv = operands(ours)
    torch.testing.assert_close(ours(*qkv)[0], theirs(*qkv)[0])

    for _, parameter, quantizer in list(ours.latents()):
        owner, key = next((m, k) for m in ours.modules() for k, child in m._modules.items() if child is quantizer)
        masked = Masked(Clip(), STEClip())
        masked.stage, masked.mask = "mixed", torch.rand(parameter.shape) < 0.5
        owner._modules[key] = masked
        assert ours.get_submodule(key if owner is ours else f"projection_quantizers.{key}") is masked
    ours.weight_scale = None
    with torch.no_grad():
        for parameter_name, parameter, quantizer in ours.latents():
            mixture = torch.where(quantizer.mask, hard(parameter), parameter.clamp(-1, 1))
            theirs.get_parameter(parameter_name).copy_(mixture)
        theirs.out_proj.weight.copy_(hard(ours.out_proj.weight))
        ours.out_proj.weight_scale = None
    torch.testing.assert_close(ours(*qkv)[0], theirs(*qkv)[0])
    same = qkv[0]
    if name == "plain":  # the fused and the split paths see one mask
        torch.testing.assert_close(ours(same, same, same)[0], theirs(same, same, same)[0])
    for _, _, quantizer in ours.latents():
        quantizer.stage, quantizer.ste = "hard", None
    ours.zero_grad()
    ours(*qkv)[0].sum().backward()
    assert all(parameter.grad is None for _, parameter, _ in ours.latents())


def test_dropout_acts_in_training_only() -> None:
    ours, theirs = pair({"dropout": 0.5, "batch_first": True}, weight_quantizer=None, input_quantizer=None)
    x = operands(ours)[0]
    for need in (True, False):
        torch.testing.assert_close(ours.eval()(x, x, x, need_weights=need)[0], theirs.eval()(x, x, x)[0])
        assert not torch.allclose(ours.train()(x, x, x, need_weights=need)[0], theirs(x, x, x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_torchs_dtype(dtype: torch.dtype) -> None:
    ours, theirs = (module.float() for module in pair({"add_bias_kv": True}))
    x = torch.randn(QUERIES, BATCH, E, requires_grad=True)
    for need in (True, False):
        with torch.autocast("cpu", dtype):
            y, weights = ours(x, x, x, need_weights=need, attn_mask=torch.zeros(QUERIES, QUERIES))
            plain, _ = theirs(x, x, x, need_weights=need, attn_mask=torch.zeros(QUERIES, QUERIES))
        assert y.dtype == plain.dtype
        assert (weights is None) != need
        y.float().sum().backward()
    assert ours.in_proj_weight.grad.dtype == torch.float32


def test_a_causal_hint_needs_its_mask() -> None:
    ours, _ = pair({})
    x = operands(ours)[0]
    with pytest.raises(ValueError, match=r"is_causal=True .* needs"):
        ours(x, x, x, is_causal=True)


@pytest.mark.parametrize("name", ["plain", "kdim"])
def test_latents_copies_and_checkpoints(name: str) -> None:
    ours, theirs = pair(MODULES[name])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    latents = [parameter_name for parameter_name, _, _ in ours.latents()]
    split = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    assert latents == (["in_proj_weight"] if name == "plain" else split)
    qkv = operands(ours)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(*qkv)[0], ours(*qkv)[0])
    converted = fnn.MultiheadAttention.from_float(theirs, weight_quantizer="ste_clip", input_quantizer="ste_clip")
    assert converted is theirs
    assert torch.equal(converted(*qkv)[0], ours(*qkv)[0])
