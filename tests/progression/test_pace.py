"""Windows that decide their own length, computed orders, and a surrogate whose strength moves."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostbit as fb
from frostbit.progression import PACES
from frostbit.progression.pace import FlipPace, GradientPace, RecoveryPace, relative

from .test_windows import network, spans

MEASURED = [name for name, kind in PACES.items() if kind is not None]


def run(model, progression, optimizer, first, last, losses=None):
    """Train on random batches that depend on the step alone; return the masked shares of each forward."""
    shares = []
    for step in range(first, last):
        data = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 6, generator=data), torch.randint(3, (16,), generator=data)
        shares.append([quantizer.frozen_share for unit in progression.units for quantizer in unit.quantizers()])
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        progression.observe(loss if losses is None else torch.tensor(losses[step]))
        optimizer.step()
    return shares


def start(pace, steps=40, layers=4, **options):
    model = network(layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    progression = fb.StoMPP(model, steps, pace=pace, refresh=3, ste="ste_clip", **options).attach(optimizer)
    return model, progression, optimizer


@pytest.mark.parametrize("order", ["forward", "reverse", [2, 0, 3, 1]])
@pytest.mark.parametrize("pace", MEASURED)
def test_the_budget_is_kept_and_each_window_ends_fully_frozen(pace, order):
    model, progression, optimizer = start(pace, order=order, tail=3)
    shares = run(model, progression, optimizer, 0, 40)
    windows = sorted(spans(progression))
    assert windows[0][0] == 0
    assert windows[-1][1] == 37
    assert all(a[1] == b[0] and a[1] > a[0] for a, b in itertools.pairwise(windows))
    assert fb.is_hard(model)
    for index, (first, stop) in enumerate(spans(progression)):
        mine = slice(2 * index, 2 * index + 2)
        assert shares[stop - 1][mine] == [1.0, 1.0]
        assert stop - first < 2 or shares[stop - 2][2 * index + 1] < 1  # the weights; a mask of 8 features may be full
        assert first == 0 or shares[first - 1][mine] == [0.0, 0.0]


@pytest.mark.parametrize("pace", MEASURED)
def test_a_resumed_run_decides_the_same(pace):
    losses = [0.1 * step for step in range(40)]  # each window lies above the one before
    straight = start(pace)
    run(*straight, 0, 40, losses)
    for stopped in (7, 10, 23):  # within a window, at the end of one, later
        before = start(pace)
        run(*before, 0, stopped, losses)
        after = start(pace)
        for old, new in zip(before, after, strict=True):
            new.load_state_dict(copy.deepcopy(old.state_dict()))
        run(*after, stopped, 40, losses)
        assert after[1].windows == straight[1].windows
        assert all(torch.equal(a, b) for a, b in zip(after[0].parameters(), straight[0].parameters(), strict=True))


def test_another_pace_does_not_take_over():
    with pytest.raises(fb.UsageError, match="pace"):
        start("flips")[1].load_state_dict(start("gradient")[1].state_dict())


@given(
    units=st.integers(2, 5),
    spare=st.integers(0, 30),
    weights=st.lists(st.floats(0.5, 2), min_size=5, max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_any_weights_leave_every_unit_a_step(units, spare, weights):
    class Given(GradientPace):
        def measure(self, left, done):
            pass

        def weights(self, left):
            return [weights[0] * 100 if weights[1] > 1 else weights[0] / 100, *weights[1 : len(left)]]

    model = network(units)
    progression = fb.StoMPP(model, units + spare)
    progression._pace = Given(model, range(units))
    for _ in range(units + spare):
        progression.step()
    windows = spans(progression)
    assert windows[0][0] == 0
    assert windows[-1][1] == units + spare
    assert all(stop > first for first, stop in windows)
    assert progression.done


def test_a_window_gets_its_weight_of_what_is_left():
    class Twice(GradientPace):
        def weights(self, left):
            return [2.0, *[1.0] * (len(left) - 1)]

    model = network(4)
    progression = fb.StoMPP(model, 40)
    progression._pace = Twice(model, range(4))
    for _ in range(40):
        progression.step()
    assert spans(progression) == [(0, 10), (10, 25), (25, 35), (35, 40)]  # 30 · 2/4, then 15 · 2/3, then the rest


def test_gradient_and_flips_measure_what_they_say():
    model = network(3)
    pace = GradientPace(model, [0, 1, 2])
    latents = [next(unit.weight_quantizers())[1] for unit in pace.units]
    for latent, size in zip(latents, (9.0, 1.0, 3.0), strict=True):
        latent.grad = torch.zeros_like(latent)
        latent.grad[0, 0] = size
    for _ in range(5):
        pace.measure([1, 2], 0.0)
    assert pace.weights([1, 2]) == pytest.approx([0.5, 1.5])
    flips = FlipPace(model, [0, 1, 2])
    flips.measure([1, 2], 0.0)
    with torch.no_grad():
        latents[1][:2] *= -1  # a quarter of its signs
        latents[2][:6] *= -1  # three quarters
    assert flips.weights([1, 2]) == pytest.approx([0.5, 1.5])


@pytest.mark.parametrize(("above", "weight"), [(0, 0.5), (5, 1.0), (10, 2.0)])
def test_recovery_counts_the_parts_above_the_level_before(above, weight):
    pace = RecoveryPace(network(3), [0, 1, 2])
    for window in ([2.0] * 9 + [1.0], [1.5] * above + [0.5] * (10 - above)):
        for part, loss in enumerate(window):
            pace.observe(torch.tensor(loss))
            pace.measure([1, 2], part / 10)
        weights = pace.weights([1, 2])
        pace.restart()
    assert weights == pytest.approx([weight, 1.0])


def test_relative_weights_are_bounded_and_bear_gaps():
    assert relative([1, 1, 10]) == [0.5, 0.5, 2.0]
    assert relative([2, None, 4]) == pytest.approx([2 / 3, 1, 4 / 3])
    assert relative([0, 0]) == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pace": "gradients"}, "did you mean 'gradient'"),
        ({"pace": "flips", "order": "global"}, "one window: pace='flips' has nothing to decide"),
        ({"pace": "flips", "steps_per_unit": [4, 4, 4]}, "steps_per_unit does not apply"),
        ({"ste_strength": (1, 0)}, "nothing to act on: ste is None"),
        ({"ste_strength": (1, -1), "ste": "ste_clip"}, "two numbers of at least 0"),
        ({"ste_strength": (1, 0), "ste": "ste_clip", "ste_span": "runs"}, "did you mean 'run'"),
    ],
)
def test_what_cannot_be_is_one_sentence(options, message):
    with pytest.raises(fb.UsageError, match=message) as caught:
        fb.StoMPP(network(), 12, **options)
    assert "\n" not in str(caught.value)


def test_recovery_without_a_loss_says_what_to_call():
    model = network()
    progression = fb.StoMPP(model, 12, pace="recovery")
    with pytest.raises(RuntimeError, match=r"progression.observe\(loss\)"):
        progression.step()


@pytest.mark.parametrize("span", ["window", "run"])
def test_surrogates_weaken_over_a_window_or_the_run(span):
    torch.manual_seed(0)
    model = network(3)
    progression = fb.StoMPP(model, 12, ste="ste_identity", ste_strength=(1, 0), ste_span=span, refresh=None)
    unit = progression.units[0]
    x = torch.full((5, 8), 3.0)  # beyond clip's range, so that only the surrogate passes a gradient
    for step in range(12):
        y = x.clone().requires_grad_()
        out = unit.input_quantizer(y)
        share = min(1, (step + 1) / (4 if span == "window" else 12))
        frozen = unit.input_quantizer.frozen_share
        if share == 1:
            assert not out.requires_grad  # STE-free from here on, and out of the backward pass
        else:
            out.sum().backward()
            assert y.grad.sum().item() == pytest.approx((1 - share) * frozen * y.numel(), abs=1e-5)
        progression.step()


def test_orders_are_computed_by_damage_and_gradient():
    torch.manual_seed(0)
    model = network(3)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    before = copy.deepcopy(model.state_dict())
    orders = {by: fb.order_by(by, model, x, y) for by in ("damage", "gradient")}
    names = [unit.name for unit in fb.units(model)]
    for by, order in orders.items():
        assert sorted(order) == sorted(names)
        assert fb.order_by(by, model, x, y, descending=True) == order[::-1]
        fb.StoMPP(copy.deepcopy(model), 12, order=order)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    # latents that are signs already, read with signs already, suffer nothing from hardening
    with torch.no_grad():
        last = fb.units(model)[2].layers[0]
        last.weight.copy_(torch.where(last.weight >= 0, 1.0, -1.0))
    assert fb.order_by("damage", model, x, y, targets="weight")
    with pytest.raises(fb.UsageError, match="did you mean 'damage'"):
        fb.order_by("damages", model, x, y)


@pytest.mark.parametrize("steps", [12, 13, 17])
@pytest.mark.parametrize("ste", [None, "ste_clip"])
def test_two_orders_of_one_seed_see_the_same_draws(steps, ste):
    seen = []
    for order in ("forward", "reverse", [1, 3, 0, 2]):
        model = network(4)
        progression = fb.StoMPP(model, steps, order=order, refresh=3, seed=5, ste=ste)
        masks: dict = {}
        for step in range(steps):
            for unit, window in zip(progression.units, progression.windows, strict=True):
                if window.start <= step < window.stop:
                    local = (unit.name, step - window.start)
                    masks[local] = [quantizer.mask.clone() for quantizer in unit.quantizers()]
            progression.step()
        seen.append(masks)
    assert len(seen[0]) == steps
    for other in seen[1:]:
        assert other.keys() == seen[0].keys()
        assert all(torch.equal(a, b) for key in other for a, b in zip(other[key], seen[0][key], strict=True))


def test_a_gradient_that_overflows_does_not_end_the_run():
    model, progression, optimizer = start("gradient")
    for _ in range(12):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e30)
        optimizer.step()
    assert spans(progression)[1] == (10, 20)
