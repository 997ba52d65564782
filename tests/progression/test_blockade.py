"""A blockade of the gradient, and the optimizer's moments of weights that freeze."""

import copy

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.progression import step_sizes

from .test_windows import network


def gradients(model, x):
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), [p.grad is not None and bool(p.grad.any()) for _, p in fb.binary_parameters(model)]


@pytest.mark.parametrize("method", ["stompp", "plain"])
def test_a_blockade_stops_gradients_and_changes_no_value(method):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    free, blocked = network(4), network(4)
    names = [unit.name for unit in fb.units(free)]
    progressions = [fb.StoMPP(m, 40, ste="ste_clip") if method == "stompp" else None for m in (free, blocked)]
    blockade = fb.Blockade(blocked, names[2], 2, 4)
    for step in range(6):
        (y, open_), (z, reached) = gradients(free, x), gradients(blocked, x)
        assert torch.equal(y, z)
        assert all(open_)
        assert reached == ([False, False, True, True] if 2 <= step < 4 else [True] * 4)
        assert blockade.active == (2 <= step < 4)
        blockade.step()
        for progression in progressions:
            if progression is not None:
                progression.step()


def test_a_blockade_follows_an_optimizer_and_its_state_goes_on():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    unit = fb.units(model)[1].name
    blockade = fb.Blockade(model, unit, 1, 3).attach(optimizer)
    optimizer.step()
    assert blockade.active
    other = network()
    again = fb.Blockade(other, unit, 1, 3)
    again.load_state_dict(blockade.state_dict())
    assert fb.units(other)[1].input_quantizer.shut
    with pytest.raises(fb.UsageError, match="the saved one"):
        fb.Blockade(other, unit, 1, 4).load_state_dict(blockade.state_dict())
    with pytest.raises(RuntimeError, match="this blockade is attached"):
        blockade.step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("2x", 0, 3), "a unit with an input quantizer, found '2x'"), (("2", 3, 3), "0 <= start < stop")],
)
def test_blockades_that_cannot_be(arguments, message):
    with pytest.raises(fb.UsageError, match=message):
        fb.Blockade(network(), *arguments)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0),
}


def train(model, progression, optimizer, steps, first=0):
    for step in range(first, steps):
        data = torch.Generator().manual_seed(step)
        loss = nn.functional.cross_entropy(
            model(torch.randn(16, 6, generator=data)), torch.randint(3, (16,), generator=data)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def start(name, action=None, at="start"):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    progression = fb.StoMPP(model, 12, ste="ste_clip", refresh=3).attach(optimizer)
    moments = None if action is None else fb.Moments(progression, optimizer, action, at)
    return model, progression, optimizer, moments


@pytest.mark.parametrize(("at", "hit"), [("start", [4]), ("end", [8]), ("both", [4, 8])])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_forgets_a_unit_at_its_window_and_nothing_else(name, at, hit):
    model, progression, optimizer, _ = start(name, "reset", at)
    latents = [p for _, p in fb.binary_parameters(model)]
    for step in range(1, 11):
        train(model, progression, optimizer, step, step - 1)
        assert (latents[1] not in optimizer.state) == (step in hit), step
        assert model[0].weight in optimizer.state


def test_after_a_reset_adam_takes_its_first_step_again():
    model, progression, optimizer, _ = start("adam", "reset")
    train(model, progression, optimizer, 4)
    latent = [p for _, p in fb.binary_parameters(model)][1]
    before = latent.detach().clone()
    train(model, progression, optimizer, 5, 4)
    moved = (latent - before).abs()
    assert torch.allclose(moved[latent.grad.abs() > 1e-4], torch.tensor(0.01), rtol=1e-2)


def test_rescale_brings_second_moments_to_the_gradient_and_keeps_the_step():
    kept, changed = start("adam"), start("adam", "rescale")
    for model, progression, optimizer, _ in (kept, changed):
        train(model, progression, optimizer, 4)
    states = [
        run[2].state[latent] | {"grad": latent.grad}
        for run in (kept, changed)
        for latent in [[p for _, p in fb.binary_parameters(run[0])][1]]
    ]
    old, new = states
    corrected = new["exp_avg_sq"].mean() / (1 - 0.999**4)
    assert corrected.item() == pytest.approx(new["grad"].square().mean().item(), rel=1e-4)
    assert not torch.allclose(old["exp_avg_sq"], new["exp_avg_sq"])
    ratio = [s["exp_avg"] / s["exp_avg_sq"].sqrt() for s in states]
    assert torch.allclose(*ratio, rtol=1e-3)


def test_keep_changes_nothing():
    runs = [start("adam"), start("adam", "keep")]
    for model, progression, optimizer, _ in runs:
        train(model, progression, optimizer, 12)
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_sizes_are_those_that_the_optimizer_took(name):
    model, progression, optimizer, _ = start(name)
    assert step_sizes(progression, optimizer) == {}
    latent = [p for _, p in fb.binary_parameters(model)][1]
    for step in range(1, 7):
        before = latent.detach().clone()
        train(model, progression, optimizer, step, step - 1)
    sizes = step_sizes(progression, optimizer)  # of unit 1, in the middle of its window
    mask = fb.units(model)[1].layers[0].weight_quantizer.mask
    moved = (latent.detach() - before).abs()
    assert sizes["update/frozen"] == pytest.approx(moved[mask].mean().item(), rel=1e-3)
    assert sizes["update/open"] == pytest.approx(moved[~mask].mean().item(), rel=1e-3)
    if name in ("sgd", "nesterov"):
        assert sizes["rate/open"] == pytest.approx(0.05)


def test_what_moments_refuse():
    model = network()
    sgd = OPTIMIZERS["sgd"](model.parameters())
    progression = fb.StoMPP(model, 12)
    with pytest.raises(fb.UsageError, match="attach the progression"):
        fb.Moments(progression, sgd)
    progression.attach(sgd)
    with pytest.raises(fb.UsageError, match="SGD has no second moment"):
        fb.Moments(progression, sgd, "rescale")
    with pytest.raises(fb.UsageError, match="found RMSprop"):
        fb.Moments(progression, torch.optim.RMSprop(model.parameters()))
    with pytest.raises(fb.UsageError, match="did you mean 'reset'"):
        fb.Moments(progression, sgd, "resett")


def test_a_copied_progression_carries_no_moments():
    _model, progression, _, _ = start("adam", "reset")
    assert not copy.deepcopy(progression).attached
    assert progression.attached


def test_a_blockade_that_is_taken_off_lets_gradients_pass():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    blockade = fb.Blockade(model, fb.units(model)[1].name, 0, 9).attach(optimizer)
    assert gradients(model, torch.randn(4, 6))[1] == [False, True, True]
    blockade.detach()
    assert gradients(model, torch.randn(4, 6))[1] == [True] * 3


def test_a_wrapped_optimizer_drives_the_clock():
    """As accelerate and Lightning hand it out: an object with the real one inside."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

        @property
        def param_groups(self):
            return self.optimizer.param_groups

        def step(self):
            self.optimizer.step()

    model = network()
    wrapper = Wrapper(torch.optim.SGD(model.parameters(), 0.1))
    progression = fb.StoMPP(model, 12).attach(wrapper)
    gradients(model, torch.randn(4, 6))
    wrapper.step()
    assert progression.steps_taken == 1
