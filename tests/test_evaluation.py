"""The network as it ships: hardened for a while, recalibrated, with latents in bounds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostbit as fb
from frostbit.errors import UsageError
from frostbit.quantizers import Quantizer

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def soft_model() -> tuple[nn.Module, fb.StoMPP]:
    """Return a network in transition: one unit frozen, one mixed, the rest soft."""
    torch.manual_seed(0)
    model = fb.models.create("resnet8", width=4, input_size=8)
    fb.binarize_(model, weight_scale="mean_abs")
    progression = fb.StoMPP(model, total_steps=60)
    for _ in range(14):
        progression.step()
    shares = list(fb.frozen_fraction(model).values())
    assert shares[0] == 1.0
    assert 0 < shares[1] < 1
    assert shares[-1] == 0.0
    return model, progression


def snapshot(model: nn.Module) -> list[Any]:
    """Return everything that an evaluation must leave alone."""
    masks = [q.mask.clone() for q in model.modules() if isinstance(q, fb.quantizers.Masked) and q.mask is not None]
    names = ("training", "stage", "finished", "_hardened")
    flags = [[getattr(module, name, None) for name in names] for module in model.modules()]
    return [[value.clone() for value in model.state_dict().values()], masks, [torch.get_rng_state()], flags]


def assert_equal(before: list[Any], after: list[Any]) -> None:
    for mine, other in zip(before[:3], after[:3], strict=True):
        assert len(mine) == len(other)
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert before[3] == after[3]


def test_hardened_is_fully_binary_and_restores() -> None:
    model, _ = soft_model()
    model.eval()
    before = snapshot(model)
    soft = model(IMAGES)
    frozen_now = copy.deepcopy(model)
    for module in frozen_now.modules():
        if isinstance(module, fb.nn.Conv2d):
            with torch.no_grad():  # plain layers of signs, as they would ship
                scale = module.weight.abs().mean((1, 2, 3), keepdim=True)
                module.weight.copy_(fb.quantizers.hard(module.weight) * scale)
            module.weight_quantizer, module.input_quantizer = None, fb.quantizers.create("sign")
    with fb.hardened(model) as same:
        assert same is model
        y = model(IMAGES)
    torch.testing.assert_close(y, frozen_now(IMAGES))
    assert not torch.allclose(y, soft)
    assert torch.equal(model(IMAGES), soft)
    assert_equal(before, snapshot(model))


def test_hardened_restores_after_an_exception_and_nests() -> None:
    model, _ = soft_model()
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), fb.hardened(model):
        _ = 1 / 0
    assert_equal(before, snapshot(model))
    with fb.hardened(model):
        with fb.hardened(model):
            pass
        assert all(q._hardened for q in model.modules() if isinstance(q, Quantizer))
    assert_equal(before, snapshot(model))


def test_hardened_values_are_two_and_real_inputs_stay_real() -> None:
    for quantizer in (fb.quantizers.create("clip"), fb.quantizers.from_pair(lambda x, h: x**3, lambda x, h: 3 * x**2)):
        model = nn.Sequential(fb.nn.Linear(4, 3, weight_quantizer=quantizer, input_quantizer=None, bias=False))
        x = torch.randn(5, 4)
        with fb.hardened(model):
            torch.testing.assert_close(model(x), x @ fb.quantizers.hard(model[0].weight).t())
            assert not model(x).requires_grad
    with fb.hardened(nn.Linear(2, 2)) as plain:
        assert plain(torch.ones(1, 2)).requires_grad


def test_is_hard_says_whether_hardening_changes_anything() -> None:
    model, progression = soft_model()
    assert not fb.is_hard(model)
    while not progression.done:
        progression.step()
    assert fb.is_hard(model)
    assert fb.is_hard(nn.Linear(2, 2))
    assert not fb.is_hard(nn.Sequential(fb.nn.Binarizer("clip")))
    assert fb.is_hard(nn.Sequential(fb.nn.Binarizer("ede")))


def test_recalibrated_statistics_are_averages_over_the_hardened_network() -> None:
    """Each batch norm sees batches normalized by their own statistics, as in training; plain means of all."""
    torch.manual_seed(0)
    model = nn.Sequential(
        fb.nn.Conv2d(3, 4, 3, weight_quantizer="clip", input_quantizer="clip"), nn.BatchNorm2d(4, momentum=0.3),
        nn.Dropout(0.5), fb.nn.Conv2d(4, 2, 3, weight_quantizer="clip", input_quantizer="clip"),
        nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, track_running_stats=False),
    )  # fmt: skip
    model[2].eval()
    modes = [module.training for module in model.modules()]
    batches = [torch.randn(5, 3, 8, 8) * scale for scale in (1.0, 2.0, 0.5)]
    means: list[list[Tensor]] = [[], []]
    variances: list[list[Tensor]] = [[], []]
    sign = fb.quantizers.hard
    for batch in batches:
        y = nn.functional.conv2d(sign(batch), sign(model[0].weight), model[0].bias)
        means[0].append(y.mean((0, 2, 3)))
        variances[0].append(y.var((0, 2, 3)))
        y = nn.functional.batch_norm(y, None, None, model[1].weight, model[1].bias, True)
        y = nn.functional.conv2d(sign(y), sign(model[3].weight), model[3].bias)
        means[1].append(y.mean((0, 2, 3)))
        variances[1].append(y.var((0, 2, 3)))
    rng = torch.get_rng_state()
    loader = [(batches[0], torch.zeros(5)), batches[1], [batches[2], torch.zeros(5)]]
    assert fb.recalibrate_(model, loader) == 3
    assert torch.equal(torch.get_rng_state(), rng)
    for norm, mean, variance in zip((model[1], model[4]), means, variances, strict=True):
        torch.testing.assert_close(norm.running_mean, torch.stack(mean).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack(variance).mean(0))
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)
    assert not any(q._hardened for q in model.modules() if isinstance(q, Quantizer))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_recalibration_without_batches_keeps_the_statistics() -> None:
    model = nn.Sequential(fb.nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(5, 3))
    before = snapshot(model)
    with pytest.raises(UsageError, match="at least one batch"):
        fb.recalibrate_(model, [])
    with pytest.raises(UsageError, match=r"several batches, found one tensor of shape \(5, 3\)"):
        fb.recalibrate_(model, torch.zeros(5, 3))
    assert_equal(before, snapshot(model))


def test_recalibration_puts_modes_back_after_an_exception() -> None:
    model = nn.Sequential(fb.nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=0.2))

    def failing() -> Iterator[Tensor]:
        yield torch.randn(5, 3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk"):
        fb.recalibrate_(model, failing())
    assert all(module.training for module in model.modules())
    assert model[1].momentum == 0.2
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert torch.equal(model[1].running_var, torch.ones(3))
    assert not fb.is_hard(nn.Sequential(fb.nn.Binarizer("clip")))


class ByName(nn.Sequential):
    """Takes its input as transformers do."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


def test_recalibration_takes_batches_of_keyword_arguments() -> None:
    model = ByName(fb.nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(5, 3)
    fb.recalibrate_(model, [{"inputs": x}])
    expected = model[0](x).detach().mean(0)
    torch.testing.assert_close(model[1].running_mean, expected)


def test_latents_are_clipped_where_a_layer_says_so() -> None:
    model = nn.Sequential(
        fb.nn.Linear(3, 3, latent_clip=0.5), fb.nn.Linear(3, 3), fb.nn.MultiheadAttention(4, 2, latent_clip=1.0),
        nn.Linear(3, 3), fb.nn.Linear(3, 3, weight_quantizer=None, latent_clip=0.1),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-3, 3)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    objects = {name: parameter for name, parameter in model.named_parameters()}
    fb.clip_latents_(model)
    clipped = {"0.weight": 0.5, "2.in_proj_weight": 1.0, "2.out_proj.weight": 1.0}
    for name, parameter in model.named_parameters():
        bound = clipped.get(name)
        assert torch.equal(parameter, before[name] if bound is None else before[name].clamp(-bound, bound)), name
        assert parameter is objects[name]


def test_latents_are_clipped_after_each_step_of_an_optimizer() -> None:
    model = fb.nn.Linear(3, 3, latent_clip=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    optimizer.register_step_post_hook(lambda *_: fb.clip_latents_(model))
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    assert model.weight.abs().max() <= 0.2
    assert model.bias.abs().max() > 0.2


def test_plain_layers_under_a_prox_connect_are_not_hard() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    fb.optim.ProxConnect(model, torch.optim.SGD, lr=0.1, quantizer=fb.quantizers.create("bnn++"))
    x = torch.randn(4, 6)
    assert fb.evaluation.hardening_distance(model, x) > 0
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.finished = True
    assert fb.evaluation.hardening_distance(model, x) == 0
