"""Hardness along the clock: μ as the sum of learning rates, BNN++'s usual path, StoMPP over BNN++."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

import frostbit as fb
from frostbit.quantizers import Quantizer, hard

from .test_windows import network


def quantizers_of(model: torch.nn.Module) -> list[Quantizer]:
    return [unit.layers[0].weight_quantizer for unit in fb.units(model)]


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()


def test_the_forward_of_step_t_has_one_plus_the_sum_of_the_rates_before_it():
    model = network(weight="prox_linear", input=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / math.sqrt(t + 1))
    fb.Anneal(model, 8, shape="sum_lr").attach(optimizer)
    expected = 1.0
    for t in range(8):
        for quantizer in quantizers_of(model):
            assert quantizer.hardness.dtype == torch.float32
            assert quantizer.hardness.item() == pytest.approx(expected, rel=1e-6)
            assert not quantizer.finished
        expected += 0.5 / math.sqrt(t + 1)
        step(optimizer)
        scheduler.step()
    assert all(quantizer.finished for quantizer in quantizers_of(model))


def test_each_unit_sums_the_rates_of_its_own_weights():
    model = network(weight="parq", input=None)
    latents = [p for _, p in fb.binary_parameters(model)]
    groups = [{"params": [p], "lr": 10.0**-i} for i, p in enumerate(latents[:2])]
    optimizer = torch.optim.SGD([{"params": [model[0].bias], "lr": 7.0}, *groups], lr=0.1)
    fb.Anneal(model, 5, shape="sum_lr", tail=1).attach(optimizer)
    for _ in range(3):
        step(optimizer)
    # the third unit's weight is in no group: the first group's rate stands in
    assert [q.hardness.item() for q in quantizers_of(model)] == pytest.approx([4.0, 1.3, 22.0])


def test_only_the_steps_of_a_unit_s_window_count():
    model = network(weight="bnn++", input=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    fb.Anneal(model, 12, shape="sum_lr", order="reverse").attach(optimizer)
    seen = []
    for _ in range(12):
        seen.append([q.hardness.item() for q in quantizers_of(model)])
        step(optimizer)
    assert [row[2] for row in seen] == pytest.approx([1, 1.5, 2, 2.5] + [3] * 8)
    assert [row[0] for row in seen] == pytest.approx([1] * 8 + [1, 1.5, 2, 2.5])


def test_sums_come_back_and_skipped_steps_do_not_count():
    def start() -> tuple[torch.nn.Module, torch.optim.Optimizer, fb.Anneal]:
        model = network(weight="bnn++", input=None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        return model, optimizer, fb.Anneal(model, 10, shape="sum_lr").attach(optimizer)

    model, optimizer, progression = start()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 6)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert quantizers_of(model)[0].hardness == 1.5
    again, other, resumed = start()
    resumed.load_state_dict(progression.state_dict())
    step(other)
    assert [q.hardness.item() for q in quantizers_of(again)] == [1.75] * 3
    with pytest.raises(fb.UsageError, match="has shape='geometric', the saved one 'sum_lr'"):
        fb.Anneal(network(weight="bnn++"), 10).load_state_dict(progression.state_dict())


def test_sum_lr_needs_an_optimizer_and_has_no_ends():
    with pytest.raises(RuntimeError, match="attach the progression to the optimizer"):
        fb.Anneal(network(weight="bnn++"), 10, shape="sum_lr").step()
    with pytest.raises(fb.UsageError, match="has no end, found start=None and end=9"):
        fb.Anneal(network(weight="bnn++"), 10, shape="sum_lr", end=9)
    with pytest.raises(fb.UsageError, match="did you mean 'sum_lr'"):
        fb.Anneal(network(weight="bnn++"), 10, shape="sumlr")


def test_the_usual_path_of_bnn_is_geometric_from_5_to_500_then_the_sign():
    model = network(weight="bnn++", input=None)
    progression = fb.Anneal(model, 100, tail=0.15)
    quantizer = quantizers_of(model)[1]
    seen = []
    for _ in range(100):
        seen.append(quantizer.hardness.item())
        assert quantizer.finished == (len(seen) > 85)
        progression.step()
    ratios = [b / a for a, b in itertools.pairwise(seen[:85])]
    assert ratios == pytest.approx([100 ** (1 / 85)] * 84, rel=1e-5)
    assert seen[84] == pytest.approx(500, rel=1e-6)
    assert set(quantizer(torch.randn(50)).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("order", ["forward", "reverse", "global"])
def test_stompp_over_bnn_trains_and_ends_hard(order):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 6, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long()
    model = network(2, placement="input", weight="bnn++", input="ste_clip")
    fb.units(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    progression = fb.StoMPP(
        model, 150, soft="bnn++", soft_hardness=(5, 500), ste="ste_clip", order=order, refresh=10
    ).attach(optimizer)
    masked = quantizers_of(model)[0]
    losses, hardness = [], []
    for _ in range(150):
        hardness.append(masked.soft.hardness.item())
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert hardness == sorted(hardness)
    assert hardness[0] < 12
    assert hardness[-1] == pytest.approx(500)
    assert progression.done
    assert fb.is_hard(model)
    weight = model[2].weight.detach()
    assert torch.equal(model[2].weight_quantizer(weight), hard(weight))
    assert sum(losses[-10:]) / 10 < 0.9 * losses[0]
