"""ProxConnect: every row of the paper's table against a loop by hand, and all that an optimizer has to bear."""

import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import frostbit as fb
from frostbit.optim import ProxConnect
from frostbit.quantizers import Quantizer, create, hard

from .latents import STEEP, SWITCHES, X, batch, loss_of, network, same, single, train


def by_hand(quantizer: Quantizer, grad_at: str, step_from: str, steps: int, lr: float) -> Tensor:
    """The six update rules in ten lines, from the formulas alone."""
    latent = single("sign")[0].weight.detach().clone()
    for _ in range(steps):
        w = quantizer.value(latent)
        at = (w if grad_at == "quantized" else latent).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(X @ at.t()), at)
        if grad_at == "quantized":
            gradient = quantizer.B(latent, quantizer.hardness) * gradient
        latent = (latent if step_from == "latent" else w) - lr * gradient
    return latent


ROWS = {
    "PT": ("ste_identity", None, "latent", "latent"),
    "BC": ("ste_identity", None, "quantized", "latent"),
    "PC": ("prox_linear", 1.8, "quantized", "latent"),
    "PARQ": ("parq", 3.0, "quantized", "latent"),
    "PQ": ("binary_relax", 1.2, "quantized", "quantized"),
    "PQ hard": ("ste_identity", None, "quantized", "quantized"),
    "rPC": ("prox_linear", 1.1, "latent", "quantized"),
    "PC++": ("bnn++", 4.0, "quantized", "latent"),
    "BNN+": ("bnn+", 4.0, "quantized", "latent"),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_rule_is_the_loop_by_hand(row):
    name, hardness, grad_at, step_from = ROWS[row]
    quantizer = create(name) if hardness is None else create(name, hardness=hardness)
    model = single(quantizer)
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.3, grad_at=grad_at, step_from=step_from)
    for step in range(1, 26):
        optimizer.zero_grad()
        loss_of(model(X)).backward()
        optimizer.step()
        if step in (1, 2, 25):
            expected = by_hand(quantizer, grad_at, step_from, step, 0.3)
            torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_rules_differ():
    ends = {row: by_hand(create("prox_linear", hardness=1.3), row[0], row[1], 25, 0.3) for row in SWITCHES}
    assert len({tuple(end.flatten().tolist()) for end in ends.values()}) == 4


def test_pc_plus_plus_is_plain_sgd_over_bnn_layers_bit_for_bit():
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}
    wrapped, plain = network("bnn++"), network("bnn++")
    optimizers = ProxConnect(wrapped, torch.optim.SGD, **options), torch.optim.SGD(plain.parameters(), **options)
    for model, optimizer in zip((wrapped, plain), optimizers, strict=True):
        fb.Anneal(model, 100, tail=0.15).attach(optimizer)
        train(model, optimizer, 100)
    assert same(wrapped, plain)


def clip_with_factor_1() -> Quantizer:
    return fb.quantizers.from_pair(lambda w, h: w.clamp(-1, 1), lambda w, h: torch.ones_like(w))


@pytest.mark.parametrize(
    ("prox", "other", "latent_clip"),
    [
        (create("prox_linear", rho=0.0, varrho=0.0), clip_with_factor_1(), None),
        (create("prox_linear", rho=0.0, varrho=0.0), create("clip"), 1.0),  # inside [-1, 1] their factors are one
        (create("prox_linear", hardness=1e12), create("ste_identity"), None),
        (create("parq", hardness=1e12), create("ste_identity"), None),
        (create("binary_relax", hardness=1e12), create("ste_identity"), 1.0),
    ],
    ids=["clip", "clip of bounded latents", "BC", "BC by PARQ", "BC by BinaryRelax"],
)
def test_both_ends_of_pc_step_for_step(prox, other, latent_clip):
    models = network(prox, latent_clip=latent_clip), network(other, latent_clip=latent_clip)
    optimizers = [ProxConnect(model, torch.optim.SGD, lr=0.2, momentum=0.9) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.register_step_post_hook(lambda *_, model=model: fb.clip_latents_(model))
    before = models[0][2].weight.detach().clone()
    for step in range(100):
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, range(step, step + 1))
        assert same(*models), step
    assert not torch.equal(hard(before), hard(models[0][2].weight))


@pytest.mark.parametrize(("grad_at", "step_from"), SWITCHES)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_a_resumed_run_goes_on_bit_for_bit(grad_at, step_from, make):
    options = {"lr": 0.02, "weight_decay": 0.01} | ({"momentum": 0.9} if make is torch.optim.SGD else {})

    def start() -> tuple[nn.Module, ProxConnect, fb.Anneal, torch.optim.lr_scheduler.LRScheduler]:
        model = network("prox_linear")
        optimizer = ProxConnect(model, make, grad_at=grad_at, step_from=step_from, **options)
        progression = fb.Anneal(model, 16, start=1, end=2, tail=4).attach(optimizer)
        return model, optimizer, progression, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16)

    def go(parts: tuple, steps: range) -> None:
        for step in steps:
            train(*parts[:2], range(step, step + 1))
            parts[3].step()

    whole, resumed = start(), start()
    go(whole, range(14))
    go(resumed, range(5))
    saved = pickle.loads(pickle.dumps([part.state_dict() for part in resumed]))
    again = start()
    for part, state in zip(again, saved, strict=True):
        part.load_state_dict(state)
    hardness = again[1].quantizers["2.weight"].hardness
    assert hardness == resumed[1].quantizers["2.weight"].hardness != 1
    go(again, range(5, 14))
    assert same(whole[0], again[0])
    assert again[1].quantizers["2.weight"].finished
    assert again[1].param_groups is again[1].inner.param_groups
    assert again[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"]


def test_hardness_comes_back_without_a_progression():
    first, second = (ProxConnect(network("parq"), torch.optim.SGD, lr=0.1) for _ in range(2))
    for quantizer in first.quantizers.values():
        quantizer.hardness.fill_(7.0)
        quantizer.finished = True
    second.load_state_dict(first.state_dict())
    assert all(q.hardness == 7 and q.finished for q in second.quantizers.values())


def test_another_optimizer_s_state_is_refused():
    optimizer = ProxConnect(network("parq"), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="grad_at='quantized', the saved state None"):
        optimizer.load_state_dict(torch.optim.SGD(network("parq").parameters(), lr=0.1).state_dict())
    other = ProxConnect(network("parq"), torch.optim.SGD, lr=0.1, step_from="quantized")
    with pytest.raises(ValueError, match="step_from='latent', the saved state 'quantized'"):
        optimizer.load_state_dict(other.state_dict())
    single_layer = ProxConnect(single("parq"), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match=r"same binary weights: see '0\.weight'"):
        optimizer.load_state_dict(single_layer.state_dict())


def test_groups_have_their_own_rates_and_can_be_added():
    model = network("prox_linear")
    binary = [p for _, p in fb.binary_parameters(model)]
    rest = [p for p in model.parameters() if not any(p is q for q in binary)]
    optimizer = ProxConnect(
        model, torch.optim.SGD, params=[{"params": binary[:1], "lr": 0.0}, {"params": rest}], lr=0.1,
        step_from="quantized",
    )  # fmt: skip
    assert list(optimizer.quantizers) == ["2.weight"]
    optimizer.add_param_group({"params": binary[1:], "lr": 0.5})
    assert list(optimizer.quantizers) == ["2.weight", "4.weight"]
    assert [group["lr"] for group in optimizer.inner.param_groups] == [0.0, 0.1, 0.5]
    model[2].weight.data.mul_(3)
    value = model[2].weight_quantizer.value(model[2].weight.detach())
    train(model, optimizer, 1)
    torch.testing.assert_close(model[2].weight.detach(), value)  # a rate of 0 leaves P(w*)
    for scheduler in (torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1),):
        train(model, optimizer, 1)
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0, 0.01, 0.05])


def test_weight_decay_and_clipping_act_on_the_latent():
    model = single("ste_identity")
    start = model[0].weight.detach().clone()
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.5, weight_decay=0.2, step_from="quantized")
    loss_of(model(X)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    gradient = model[0].weight.grad.clone()
    assert gradient.norm() == pytest.approx(1e-3, rel=1e-4)
    optimizer.step()
    expected = hard(start) - 0.5 * (gradient + 0.2 * start)
    torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_amp_skips_moves_nothing(fused):
    model = single("prox_linear", torch.float32)
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.1, step_from="quantized", fused=fused)
    progression = fb.Anneal(model, 10, start=1, end=2).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, moves in ((1.0, True), (float("inf"), False), (1.0, True)):
        before, steps = model[0].weight.detach().clone(), progression.steps_taken
        optimizer.zero_grad()
        scaler.scale(loss_of(model(X.float())) * factor).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, model[0].weight) != moves
        assert progression.steps_taken == steps + moves


@pytest.mark.parametrize(("grad_at", "step_from"), SWITCHES)
def test_autocast_trains_with_float32_latents(grad_at, step_from):
    model = network("bnn++")
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.05, grad_at=grad_at, step_from=step_from)
    before = model[2].weight.detach().clone()
    for step in range(2):
        images, labels = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert model[2].weight.dtype == torch.float32
    assert model[2].weight.isfinite().all()
    assert not torch.equal(before, model[2].weight)


def test_gradients_at_the_latent_are_those_of_the_float_network():
    model, plain = network(STEEP), network(STEEP)
    ProxConnect(model, torch.optim.SGD, lr=0.1, grad_at="latent")
    for layer in (plain[2], plain[4]):
        layer.weight_quantizer = None
    images, labels = batch(0)
    for net in (model, plain):
        functional.cross_entropy(net(images), labels).backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_evaluation_sees_the_quantized_network():
    model, twin = network(STEEP), network(STEEP)
    ProxConnect(model, torch.optim.SGD, lr=0.1, grad_at="latent")
    images, _ = batch(0)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), twin.eval()(images))
        model.train()
        twin.train()
        assert not torch.equal(model(images), twin(images))
        with fb.hardened(model), fb.hardened(twin):
            assert torch.equal(model(images), twin(images))
    ProxConnect(model, torch.optim.SGD, lr=0.1)  # a later optimizer sets its own switch
    assert torch.equal(model(images), twin(images))


def tied() -> nn.Module:
    model = nn.Sequential(*(fb.nn.Linear(6, 6, bias=False, weight_quantizer="bnn++") for _ in range(3)))
    model[2].weight = model[0].weight
    return model


def test_layers_that_share_a_weight_follow_the_switches_alike():
    model = tied()
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.1, grad_at="latent")
    assert [layer.weight_quantizer.at_latent for layer in model] == [True] * 3
    assert len(list(optimizer.weights())) == 2
    model[2].weight_quantizer.hardness.fill_(9.0)
    again = tied()
    ProxConnect(again, torch.optim.SGD, lr=0.1, grad_at="latent").load_state_dict(optimizer.state_dict())
    assert again[2].weight_quantizer.hardness == 9.0


def test_a_group_that_is_added_follows_the_switches_too():
    model = tied()
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.1, grad_at="latent", params=[model[1].weight])
    assert not model[0].weight_quantizer.at_latent
    optimizer.add_param_group({"params": [model[0].weight], "lr": 0.2})
    assert model[0].weight_quantizer.at_latent
    assert optimizer.param_groups is optimizer.inner.param_groups
    model(torch.randn(4, 6)).sum().backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before - 0.2 * model[0].weight.grad)


def test_a_direct_weight_is_not_added():
    model = nn.Sequential(fb.nn.Linear(6, 6), fb.nn.Linear(6, 6, weight_quantizer="direct"))
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.1, params=[model[0].weight])
    with pytest.raises(ValueError, match="direct"):
        optimizer.add_param_group({"params": [model[1].weight]})
    assert len(optimizer.param_groups) == 1
