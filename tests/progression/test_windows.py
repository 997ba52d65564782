"""Windows, orders and the clock."""

import copy
import functools
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import frostbit as fb
from frostbit.progression.anneal import SHAPES
from frostbit.progression.schedules import SCHEDULES, resolve


def network(layers: int = 3, **binary: object) -> nn.Sequential:
    torch.manual_seed(0)
    blocks: list[nn.Module] = [nn.Linear(6, 8)]
    for _ in range(layers):
        blocks += [nn.ReLU(), nn.Linear(8, 8, bias=False)]
    model = nn.Sequential(*blocks, nn.ReLU(), nn.Linear(8, 3))
    model.input_shape = (6,)
    fb.binarize_(model, min_binary_macs=0, **binary)
    return model


def spans(progression: fb.Progression) -> list[tuple[int, int]]:
    return [(w.start, w.stop) for w in progression.windows]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 4), (4, 8), (8, 12)]),
        ({"order": "reverse"}, [(8, 12), (4, 8), (0, 4)]),
        ({"order": "global"}, [(0, 12)] * 3),
        ({"order": [2, 0, 1]}, [(4, 8), (8, 12), (0, 4)]),
        ({"order": ["6", "2", "4"]}, [(4, 8), (8, 12), (0, 4)]),
        ({"steps_per_unit": [1, 2, 3]}, [(0, 1), (1, 3), (3, 6)]),
        ({"tail": 3}, [(0, 3), (3, 6), (6, 9)]),
        ({"tail": 0.25}, [(0, 3), (3, 6), (6, 9)]),
        ({"order": "global", "tail": 2}, [(0, 10)] * 3),
    ],
)
def test_windows_follow_order_lengths_and_tail(options, expected):
    assert spans(fb.StoMPP(network(), 12, **options)) == expected


@given(steps=st.integers(3, 500), layers=st.integers(1, 3), seed=st.integers(0, 5))
def test_equal_split_covers_every_step_once(steps, layers, seed):
    model = network(layers)
    order = torch.randperm(layers, generator=torch.Generator().manual_seed(seed)).tolist()
    windows = sorted(spans(fb.StoMPP(model, steps, order=order)))
    assert windows[0][0] == 0
    assert windows[-1][1] == steps
    assert all(a[1] == b[0] for a, b in itertools.pairwise(windows))
    lengths = [stop - start for start, stop in windows]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "foward"}, "did you mean 'forward'"),
        ({"order": [0, 0, 1]}, "each of the 3 units once"),
        ({"order": ["2", "4", "7"]}, "order names no unit '7'"),
        ({"steps_per_unit": [5, 5]}, "3 positive whole numbers"),
        ({"steps_per_unit": [5, 5, 5]}, "at most 12"),
        ({"steps_per_unit": [4, 4, 4], "order": "global"}, "one window"),
        ({"tail": 12}, "tail must leave steps"),
        ({"schedule": "cubik"}, "did you mean 'cubic'"),
        ({"refresh": 0.5}, "refresh must be at least 1"),
        ({"refresh_rule": "resampel"}, "did you mean 'resample'"),
        ({"soft": "ste_clip"}, "must be a smooth quantizer"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("weights",)}, "did you mean 'weight'"),
        ({"mask": "pixel"}, "unknown mask"),
        ({"order": [0.0, 1.0, 2.0]}, r"each of the 3 units once, found \[0.0, 1.0, 2.0\]"),
        ({"schedule": 3}, "schedule must be a name or a function, found 3"),
        ({"total_steps": "30"}, "total_steps must be a whole number of at least 1, found '30'"),
        ({"total_steps": 30.5}, "total_steps must be a whole number of at least 1, found 30.5"),
        ({"total_steps": 0}, "total_steps must be a whole number of at least 1, found 0"),
    ],
)
def test_impossible_requests_are_one_sentence(options, message):
    with pytest.raises(fb.UsageError, match=message) as caught:
        fb.StoMPP(network(), **{"total_steps": 12, **options})
    assert "\n" not in str(caught.value)


def test_too_few_steps_and_float_models_are_refused():
    with pytest.raises(fb.UsageError, match="too few for 3 units"):
        fb.StoMPP(network(), 2)
    with pytest.raises(fb.UsageError, match="has no binary layer"):
        fb.StoMPP(nn.Sequential(nn.Linear(2, 2)), 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail": 1.0}, "or a share of the run below 1, found 1.0"),
        ({"tail": 2.7}, "or a share of the run below 1, found 2.7"),
        ({"tail": 12}, "must leave steps to freeze in, found 12 of 12"),
        ({"seed": 0.5}, "seed must be a whole number, found 0.5"),
        ({"ste": {"weights": "ste_clip"}}, "did you mean 'weight'"),
    ],
)
def test_numbers_and_tables_that_mean_nothing_are_refused(options, message):
    with pytest.raises(fb.UsageError, match=message):
        fb.StoMPP(network(), 12, **options)


def test_a_seed_of_numpy_draws_what_the_same_number_draws():
    masks = []
    for seed in (3, np.int64(3)):
        model = network()
        progression = fb.StoMPP(model, 12, seed=seed)
        progression.step()
        masks.append(next(m.mask for m in model.modules() if getattr(m, "mask", None) is not None))
    assert torch.equal(*masks)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_from_0_to_1(name):
    values = [SCHEDULES[name](i / 100) for i in range(101)]
    assert values[0] == pytest.approx(0)
    assert values[-1] == pytest.approx(1)
    assert values == sorted(values)


def test_schedule_formulas_at_a_quarter():
    found = {name: schedule(0.25) for name, schedule in SCHEDULES.items()}
    expected = {"cubic": 1 / 64, "linear": 1 / 4, "quadratic": 1 / 16, "flipped_quadratic": 7 / 16}
    assert found == pytest.approx(expected | {"cosine": (1 - 2**-0.5) / 2})
    with pytest.raises(ValueError, match=r"p\(1\) = 1"):
        resolve(lambda x: x / 2)


def test_the_clock_is_manual_or_attached_never_both():
    model = network()
    progression = fb.StoMPP(model, 12)
    progression.step()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    progression.attach(optimizer)
    with pytest.raises(RuntimeError, match="do not call step"):
        progression.step()
    with pytest.raises(RuntimeError, match="already"):
        progression.attach(optimizer)
    optimizer.step()
    assert progression.steps_taken == 2
    progression.detach()
    optimizer.step()
    assert progression.steps_taken == 2


def test_an_optimizer_of_another_model_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(fb.UsageError, match="trains no parameter"):
        fb.StoMPP(copy.deepcopy(model), 12).attach(optimizer)
    part = torch.optim.SGD([next(model.parameters())], 0.1)
    fb.StoMPP(model, 12).attach(part)


def test_a_step_that_amp_skips_does_not_count():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    progression = fb.StoMPP(model, 12).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, counted in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 6)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert progression.steps_taken == counted


def test_fused_optimizers_report_an_overflow_themselves():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    progression = fb.StoMPP(model, 12).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, counted in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 6)).sum() * factor).backward()
        scaler.step(optimizer)  # calls optimizer.step even on an overflow
        scaler.update()
        assert progression.steps_taken == counted


def test_copies_carry_no_optimizer_hook():
    model = network()
    progression = fb.StoMPP(model, 12).attach(torch.optim.SGD(model.parameters(), 0.1))
    for copied in (copy.deepcopy(progression), pickle.loads(pickle.dumps(progression))):
        copied.step()
        assert copied.steps_taken == 1
    assert progression.steps_taken == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_anneal_raises_hardness_then_hardens(shape):
    model = network(weight="ede", input="ede")
    progression = fb.Anneal(model, 10, start=0.1, end=10.0, shape=shape, tail=2)
    quantizer = fb.units(model)[0].input_quantizer
    seen = []
    for _ in range(9):
        seen.append(quantizer.hardness.item())
        progression.step()
    assert seen == sorted(seen)
    assert seen[7] == pytest.approx(10.0)
    assert quantizer.finished
    assert SHAPES[shape](0.1, 10.0, 0.0) == pytest.approx(0.1)


def test_done_is_when_nothing_changes_any_more():
    for progression in (fb.StoMPP(network(), 6, refresh_rule="resample"), fb.Anneal(network(weight="ede"), 6, tail=2)):
        quantizers = [quantizer for unit in progression.units for quantizer in unit.quantizers()]
        seen = []
        for _ in range(8):
            seen.append((progression.done, [quantizer.moment for quantizer in quantizers]))
            progression.step()
        begin = [done for done, _ in seen].index(True)
        assert all(moment == seen[begin][1] for _, moment in seen[begin:])
        assert seen[begin - 1][1] != seen[begin][1]
        assert fb.is_hard(progression.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start and end must be positive numbers, found -1 and 500.0"),
        ({"end": "9"}, "start and end must be positive numbers, found 5.0 and '9'"),
        ({"end": float("nan")}, "found 5.0 and nan"),
    ],
)
def test_ends_of_a_path_that_cannot_be(options, message):
    with pytest.raises(fb.UsageError, match=message):
        fb.Anneal(network(weight="ede"), 10, **options)
    with pytest.raises(TypeError, match=r"Anneal.__init__\(\) got an unexpected keyword argument 'strat'"):
        fb.Anneal(network(weight="ede"), 10, strat=5)


def test_anneal_needs_a_hardness():
    with pytest.raises(fb.UsageError, match="nothing to anneal"):
        fb.Anneal(network(), 10)
    with pytest.raises(fb.UsageError, match="unknown quantity"):
        fb.Anneal(network(weight="ede"), 10, quantity="softness")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (fb.StoMPP, {"steps_per_unit": np.full(3, 4), "refresh": np.float64(10), "ste": "ste_clip"}),
        (fb.StoMPP, {"order": list(np.argsort([3, 1, 2])), "soft": "bnn++", "soft_hardness": (np.float64(5), 9)}),
        (fb.StoMPP, {"ste": "ste_clip", "ste_strength": (np.float64(1), 0)}),
        (fb.Anneal, {"start": np.float64(5), "end": np.float64(50)}),
    ],
)
def test_numbers_of_numpy_stay_out_of_the_state(make, options, tmp_path):
    model = network(weight="bnn++") if make is fb.Anneal else network()
    progression = make(model, 12, **options)
    torch.save(progression.state_dict(), tmp_path / "state.pt")
    progression.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


def test_a_schedule_is_known_by_its_values():
    def state(schedule):
        return fb.StoMPP(network(), 12, schedule=schedule).state_dict()

    fb.StoMPP(network(), 12, schedule=functools.partial(pow, exp=3)).load_state_dict(state("cubic"))
    with pytest.raises(fb.UsageError, match="schedule"):
        fb.StoMPP(network(), 12, schedule=lambda x: x**5).load_state_dict(state(lambda x: x**2))


def test_a_state_that_is_refused_costs_nothing():
    progression = fb.StoMPP(network(), 12)
    progression.step()
    before = copy.deepcopy(progression.state_dict()["fields"])
    for foreign in (fb.StoMPP(network(), 15).state_dict(), {"model": 1}):
        with pytest.raises(fb.UsageError):
            progression.load_state_dict(foreign)
    after = progression.state_dict()["fields"]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name]["mask"], after[name]["mask"]) for name in before)


def test_draws_do_not_depend_on_torchs_default_dtype():
    model = network()
    progression = fb.StoMPP(model, 300, order="global", refresh=3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        other = fb.StoMPP(copy.deepcopy(model), 300, order="global", refresh=3)
        for _ in range(5):
            progression.step(), other.step()
    finally:
        torch.set_default_dtype(torch.float32)
    fields, others = progression.state_dict()["fields"], other.state_dict()["fields"]
    assert all(torch.equal(fields[name]["uniform"], others[name]["uniform"]) for name in fields)
