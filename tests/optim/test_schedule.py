"""Schedules of hyper-parameters: curves, what shows in the groups, torch's own schedulers beside them, resume."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from frostbit.optim import (
    CEMA,
    Bop,
    Bop2ndOrder,
    CaseOptimizer,
    Curve,
    HyperSchedule,
    cosine,
    exponential,
    linear,
    staircase,
)


def weights(n: int = 4) -> nn.Parameter:
    return nn.Parameter(torch.ones(n))


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        (linear(1.0, 0.0, 4), {0: 1.0, 1: 0.75, 3: 0.25, 4: 0.0, 99: 0.0}),
        (linear(1e-7, 1e-2, 2), {1: (1e-7 + 1e-2) / 2}),
        (exponential(1e-2, 1e-6, 4), {0: 1e-2, 1: 1e-3, 2: 1e-4, 4: 1e-6, 9: 1e-6}),
        (cosine(3.0, 1.0, 4), {0: 3.0, 1: 2 + 0.5**0.5, 2: 2.0, 4: 1.0, 5: 1.0}),
        (staircase(1e-4, 0.1, 100), {0: 1e-4, 99: 1e-4, 100: 1e-5, 250: 1e-6}),
    ],
)
def test_curves_by_hand(curve: Curve, values: dict[int, float]) -> None:
    for t, value in values.items():
        assert curve(t) == pytest.approx(value, rel=1e-12), t
        assert pickle.loads(pickle.dumps(curve))(t) == curve(t)


def test_what_is_scheduled_shows_in_the_groups_that_have_it() -> None:
    a, b, c = weights(), weights(), weights()
    opt = Bop2ndOrder([{"params": [a]}, {"params": [b], "sigma": 0.5}], threshold=0.1)
    schedule = HyperSchedule(opt, gamma=linear(0.5, 0.1, 4), threshold=lambda t: 1.0 / (t + 1))
    for t in range(6):
        assert [g["gamma"] for g in opt.param_groups] == [pytest.approx(max(0.1, 0.5 - 0.1 * t))] * 2
        assert [g["threshold"] for g in opt.param_groups] == [1 / (t + 1)] * 2
        assert [g["sigma"] for g in opt.param_groups] == [1e-3, 0.5]
        a.grad = b.grad = torch.ones(4)
        opt.step()
        schedule.step()
    model = nn.ParameterDict({"flip": a, "real": c})
    case = CaseOptimizer(model, {"flip": (Bop, {})}, default=(torch.optim.Adam, {"lr": 0.1}))
    HyperSchedule(case, gamma=lambda t: 0.25, betas=lambda t: (0.5, 0.5))
    assert [g.get("gamma") for g in case.param_groups] == [None, 0.25]
    assert case.optimizers["default"].param_groups[0]["betas"] == (0.5, 0.5)


def test_the_rule_uses_the_scheduled_value() -> None:
    w = weights(1)
    opt = Bop([w], threshold=0.0, gamma=1.0)
    schedule = HyperSchedule(opt, gamma=lambda t: (1.0, 0.5)[t])
    for gradient, m in ((-4.0, -4.0), (-2.0, -3.0)):
        w.grad = torch.tensor([gradient])
        opt.step()
        assert opt.state[w]["m"].item() == m
        if gradient == -4.0:
            schedule.step()


def test_torchs_schedulers_drive_learning_rates_beside_it() -> None:
    w, real = weights(), weights()
    model = nn.ParameterDict({"flip": w, "real": real})
    opt = CaseOptimizer(model, {"flip": (CEMA, {"lr": 0.5})}, default=(torch.optim.SGD, {"lr": 0.1}))
    hyper = HyperSchedule(opt, gamma=linear(0.2, 0.1, 10))
    rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.5**t)
    for t in range(3):
        assert [g["lr"] for g in opt.param_groups] == pytest.approx([0.1 * 0.5**t, 0.5 * 0.5**t])  # α follows
        w.grad = real.grad = torch.ones(4)
        opt.step()
        hyper.step()
        rate.step()
    assert hyper.get_last_lr() == pytest.approx([0.1 * 0.25, 0.5 * 0.25])
    bop = Bop([weights()])
    torch.optim.lr_scheduler.CosineAnnealingLR(bop, 10)
    assert bop.param_groups[0]["lr"] == 0.0  # a place to write to, read by nobody


def test_resume() -> None:
    def make() -> tuple[Bop, HyperSchedule]:
        opt = Bop([weights()])
        return opt, HyperSchedule(opt, gamma=exponential(1e-1, 1e-3, 10))

    opt, schedule = make()
    for _ in range(4):
        opt.step()
        schedule.step()
    file = io.BytesIO()
    torch.save((opt.state_dict(), schedule.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)  # no code in it
    other, again = make()
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert other.param_groups[0]["gamma"] == opt.param_groups[0]["gamma"]
    for each in (opt, schedule, other, again):
        each.step()
    assert other.param_groups[0]["gamma"] == opt.param_groups[0]["gamma"] == pytest.approx(1e-2)
    assert copy.deepcopy(again.state_dict()) == schedule.state_dict()


def test_wrong_names_and_ends() -> None:
    with pytest.raises(ValueError, match="no parameter group has a hyper-parameter 'gama': did you mean 'gamma'"):
        HyperSchedule(Bop([weights()]), gama=linear(1, 0, 3))
    with pytest.raises(ValueError, match="hyper-parameter 'sigma'"):
        HyperSchedule(Bop([weights()]), sigma=linear(1, 0, 3))
    with pytest.raises(ValueError, match="needs positive ends, found 0"):
        exponential(0.0, 1.0, 3)
    for make in (linear, exponential, cosine):
        with pytest.raises(ValueError, match="at least one step, found 0"):
            make(1.0, 2.0, 0)
    with pytest.raises(ValueError, match="at least one step"):
        staircase(1.0, 0.1, 0)


def test_a_number_is_no_curve() -> None:
    with pytest.raises(ValueError, match=r"gamma needs a curve such as linear\(start, end, steps\), found 0.1"):
        HyperSchedule(Bop([weights()]), gamma=0.1)


@pytest.mark.parametrize(
    ("make", "curves", "message"),
    [
        (Bop, {"gamma": lambda t: 0.5 - t}, "Bop needs gamma to be above 0 and at most 1, found -0.5"),
        (Bop, {"threshold": lambda t: -t}, "Bop needs threshold to be at least 0 and finite, found -1"),
        (
            lambda params: Bop2ndOrder(params, bias_correction="paper"),
            {"gamma": linear(0.1, 0.0, 1)},
            "Bop2ndOrder needs gamma to be above 0 and at most 1, found 0.0",
        ),
    ],
)
def test_a_value_that_the_rule_cannot_have_is_refused_where_it_is_used(make, curves, message) -> None:
    w = weights()
    opt = make([w])
    schedule = HyperSchedule(opt, **curves)
    w.grad = torch.ones(4)
    opt.step()
    schedule.step()  # the last value of a run is never used
    with pytest.raises(ValueError, match=message):
        opt.step()


def test_learning_rates_may_warm_up_from_nothing() -> None:
    w = weights()
    opt = CEMA([w], lr=0.5)
    rate = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: float(t))
    w.grad = torch.ones(4)
    for _ in range(2):
        opt.step()
        rate.step()
    assert opt.state[w]["z"].max() > 0


def test_a_loaded_schedule_sets_the_values_of_its_step() -> None:
    optimizer = Bop([weights()])
    schedule = HyperSchedule(optimizer, gamma=linear(1e-2, 0.5e-2, 10))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    again = Bop([weights()])
    again.load_state_dict(optimizer.state_dict())
    HyperSchedule(again, gamma=linear(1e-2, 0.5e-2, 10)).load_state_dict(schedule.state_dict())
    assert again.param_groups[0]["gamma"] == optimizer.param_groups[0]["gamma"] == pytest.approx(0.75e-2)
