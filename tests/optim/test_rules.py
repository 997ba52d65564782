"""The flip rules: hand-computed cases, groups, state, and what is refused."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostbit.optim import CEMA, SGDAT, Bop, Bop2ndOrder, FlipOptimizer, base

from .flips import RULES, signs, take

torch.set_num_threads(1)

HALF_ULP = 2.0**-24

# ---- by hand


def test_undecided_weights_by_hand() -> None:
    def share(optimizer: FlipOptimizer, w: nn.Parameter, gradient: list[float]) -> float:
        before = take(optimizer, w, gradient), copy.deepcopy(optimizer.state_dict())
        found = optimizer.undecided(w)
        assert before[0][0] == w.tolist()
        after = optimizer.state_dict()["state"][0]
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[k])) for k, v in before[1]["state"][0].items())
        return found

    # |m| = 0.25, 0.75, 0.75, 0: at the threshold itself a weight is undecided, whatever its sign
    assert share(Bop([w := signs(4)], threshold=0.25, gamma=0.5), w, [0.5, 1.5, -1.5, 0.0]) == 0.5
    assert share(Bop([w := signs(4)], threshold=0.0, gamma=0.5), w, [0.5, 1.5, -1.5, 0.0]) == 0.25
    # |s| = γ/√σ = 0.5 in the first step, 1 divided by them, whatever the gradient
    for threshold, correction, undecided in ((0.4, "none", 0.5), (0.6, "none", 1.0), (0.6, "paper", 0.5)):
        opt = Bop2ndOrder([w := signs(2)], threshold, gamma=0.25, sigma=0.25, bias_correction=correction)
        assert share(opt, w, [1e-3, 0.0]) == undecided
    assert share(CEMA([w := signs(2)]), w, [1.0, 0.0]) == 0.5
    # both entries have flipped once: |m| = 1 is beyond τ, 0.1 is not
    sgdat = SGDAT([w := nn.Parameter(torch.ones(2))], lr=1.0, threshold=0.5)
    assert share(sgdat, w, [1.0, 0.1]) == 0.5
    assert w.tolist() == [-1, -1]
    assert Bop([w := signs(3)]).undecided(w) == 1.0  # before the first step


def test_undecided_counts_over_parts_of_a_large_tensor() -> None:
    w = signs(3, base._CHUNK)
    w.grad = torch.linspace(-1, 1, w.numel()).view_as(w)
    bop = Bop([w], threshold=0.25, gamma=0.5)
    bop.step()
    assert bop.undecided(w) == pytest.approx(0.5, abs=1e-5)


def test_bop_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    bop = Bop([w], threshold=0.25, gamma=0.5)
    # w·m = 0.25, 0.75, 0.75, -1: a weight flips if the average asks for it; 0.25 is the threshold itself and stays
    assert take(bop, w, [0.5, 1.5, -1.5, 2.0]) == [[1, -1, 1, -1]]
    assert bop.state[w]["m"].tolist() == [0.25, 0.75, -0.75, 1.0]
    assert bop.flips(w) == 2
    # w·m = 0.375, -0.375, 0, 0: a flip has reset nothing
    assert take(bop, w, [0.5, 0.0, 0.75, -1.0]) == [[-1, -1, 1, -1]]
    assert bop.flips(w) == 3


def test_bop2ndorder_by_hand() -> None:
    # one step from zero moments: m = γg, v = σg², so s is ±γ/√σ = 0.25/0.5 whatever the gradient's size
    for size in (1e-6, 1.0, 1e6):
        for threshold, flips in ((0.49, True), (0.51, False)):
            w = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, -1.0]))
            opt = Bop2ndOrder([w], threshold=threshold, gamma=0.25, sigma=0.25)
            sign = -1 if flips else 1
            assert take(opt, w, [size, -size, -size, size]) == [[sign, -sign, 1, -1]]
            assert opt.flips(w) == 2 * flips
    # "paper": (m/γ)/√(v/σ) = ±1 after the first step; "adam": m̂ = g, v̂ = g², ±1 again
    for correction in ("paper", "adam"):
        for threshold, flips in ((0.99, True), (1.01, False)):
            w = nn.Parameter(torch.tensor([1.0]))
            opt = Bop2ndOrder([w], threshold=threshold, gamma=1e-4, sigma=1e-2, bias_correction=correction)
            assert take(opt, w, [3.0]) == [[-1 if flips else 1]]
    # a second step tells the two apart: m/γ = g₂ + (1−γ)g₁ grows, m̂ does not
    for correction, flips in (("paper", True), ("adam", False)):
        w = nn.Parameter(torch.tensor([-1.0]))
        opt = Bop2ndOrder([w], threshold=1.2, gamma=1e-4, sigma=1e-2, bias_correction=correction)
        assert take(opt, w, [-1.0], [-1.0]) == [[-1], [1 if flips else -1]]


def test_cema_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0, -1.0, 1.0]))
    cema = CEMA([w], lr=0.25, gamma=0.5)
    # mu = 1, 1, 0; z = 0.25, 0.25, 0: a zero is a tie
    assert take(cema, w, [2.0, 2.0, 0.0]) == [[-1, -1, 1]]
    # mu = 0, -1, 0.5; z = 0.1875, -0.0625, 0.125: z decides, not mu, and not the gradient
    assert take(cema, w, [-1.0, -3.0, 1.0]) == [[-1, 1, -1]]
    assert cema.state[w]["z"].tolist() == [0.1875, -0.0625, 0.125]


def test_sgdat_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0, -1.0]))
    opt = SGDAT([w], lr=0.5, threshold=1.0)
    # m = -0.5, -0.5; n = 0, so any sum decides; a flip costs the first weight one threshold
    assert take(opt, w, [1.0, 1.0]) == [[-1, -1]]
    assert opt.state[w]["n"].tolist() == [1, 0]
    # m = 0.5, 0.5: enough for the second (n = 0), not for the first, which needs more than τ·1
    assert take(opt, w, [-2.0, -2.0]) == [[-1, 1]]
    # m = 1, 1: |m| = τ·n is a tie; m = 1.25 is beyond
    assert take(opt, w, [-1.0, -1.0], [-0.5, -0.5]) == [[-1, 1], [1, 1]]
    assert opt.state[w]["n"].tolist() == [2, 1]


@pytest.mark.parametrize("rule", RULES)
def test_zero_gradients_flip_nothing(rule: str) -> None:
    for thresholds in ({}, {"threshold": 0.0}):
        if rule == "cema" and thresholds:
            continue
        w = signs(50)
        before = w.detach().clone()
        opt = RULES[rule]([w], **thresholds)
        for _ in range(3):
            w.grad = torch.zeros(50)
            opt.step()
        assert torch.equal(w, before)
        assert opt.flips(w) == 0


@pytest.mark.parametrize("correction", ["none", "paper", "adam"])
def test_the_threshold_itself_keeps_the_weight(correction: str) -> None:
    """s = τ exactly, in powers of two: m = 1/4, √v = 1/2, ε far below an ulp."""
    tau = {"none": 0.5, "paper": 1.0, "adam": 1.0}[correction]
    for threshold, flips in ((tau, 0), (tau * (1 - 8 * HALF_ULP), 2), (tau * (1 + 8 * HALF_ULP), 0)):
        w = nn.Parameter(torch.tensor([1.0, -1.0]))
        opt = Bop2ndOrder([w], threshold=threshold, gamma=0.25, sigma=0.25, bias_correction=correction, eps=1e-30)
        take(opt, w, [1.0, -1.0])
        assert opt.flips(w) == flips


# ---- groups, closures, missing gradients, state


def test_groups_have_their_own_hyper_parameters() -> None:
    a, b = signs(4), signs(4)
    opt = Bop([{"params": [a], "threshold": 10.0}, {"params": [b], "gamma": 1.0}], threshold=0.0, gamma=0.5)
    a.grad, b.grad = a.detach().clone(), b.detach().clone()
    opt.step()
    assert (opt.flips(a), opt.flips(b)) == (0, 4)
    assert opt.state[b]["m"].abs().tolist() == [1.0] * 4
    opt.param_groups[0]["threshold"] = 0.0  # what is changed there holds
    opt.step()
    assert opt.flips(a) == 4


def test_named_parameters_closures_and_missing_gradients() -> None:
    a, b = signs(3), signs(3)
    opt = Bop([("a", a), ("b", b)], threshold=0.0)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = a.sum()
        loss.backward()
        return loss

    assert opt.step(closure) == a.sum().new_tensor(signs(3).sum().item())
    assert opt.flips(b) == 0
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["a", "b"]
    assert "m" not in opt.state[b]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rule", RULES)
def test_resume_is_exact_in_every_dtype(rule: str, dtype: torch.dtype) -> None:
    def steps(opt: FlipOptimizer, p: nn.Parameter, begin: int, end: int) -> None:
        for i in range(begin, end):
            p.grad = torch.randn(300, generator=torch.Generator().manual_seed(i)).to(dtype)
            opt.step()

    w = signs(300, dtype=dtype)
    opt = RULES[rule]([w])
    steps(opt, w, 0, 20)
    saved, at = copy.deepcopy(opt.state_dict()), w.detach().clone()
    steps(opt, w, 20, 40)
    again = nn.Parameter(at)
    other = RULES[rule]([again])
    other.load_state_dict(saved)
    steps(other, again, 20, 40)
    assert torch.equal(again, w)
    assert set(again.detach().abs().tolist()) == {1.0}
    assert other.flips(again) == opt.flips(w)
    for name in opt.moments:
        assert other.state[again][name].dtype == torch.float32
        assert torch.equal(other.state[again][name], opt.state[w][name])


def test_state_is_no_larger_than_adams() -> None:
    def size(opt: torch.optim.Optimizer) -> int:
        return sum(t.nbytes for s in opt.state.values() for t in s.values() if isinstance(t, Tensor))

    w = [signs(5), signs(3, 4)]
    for p in w:
        p.grad = torch.randn(p.shape)
    adam, opt = torch.optim.Adam([nn.Parameter(p.detach().clone()) for p in w]), Bop2ndOrder(w)
    for p, q in zip(adam.param_groups[0]["params"], w, strict=True):
        p.grad = q.grad
    adam.step()
    opt.step()
    assert 0 < size(opt) <= size(adam)


# ---- what is refused


def test_a_latent_is_refused_at_the_first_step() -> None:
    latent = nn.Parameter(torch.tensor([[1.0, -1.0], [0.25, 1.0]]))
    latent.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"Bop moves weights that are exactly -1 or \+1, found 0.25 in .*\(2, 2\)"):
        Bop([latent]).step()
    with pytest.raises(ValueError, match=r"CEMA .* found 0.25 in 'fc.weight': binarize with weight=\"direct\""):
        CEMA([("fc.weight", latent)]).step()
    for odd in (math.nan, 0.0):
        with torch.no_grad():
            latent[1, 0] = odd
        with pytest.raises(ValueError, match="exactly -1"):
            SGDAT([latent]).step()


def test_sparse_gradients_are_refused() -> None:
    w = signs(3, 2)
    w.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(ValueError, match="dense gradients, found a sparse one of 'table'"):
        Bop([("table", w)]).step()


REFUSALS: dict[str, tuple[Callable[[nn.Parameter], Any], str]] = {
    "gamma": (lambda w: Bop([w], gamma=0.0), "Bop needs gamma to be above 0 and at most 1, found 0.0"),
    "threshold": (lambda w: Bop([w], threshold=-1e-3), "Bop needs threshold to be at least 0 and finite"),
    "nan": (lambda w: Bop2ndOrder([w], threshold=math.nan), "threshold to be at least 0 and finite, found nan"),
    "sigma": (lambda w: Bop2ndOrder([w], sigma=1.5), "Bop2ndOrder needs sigma to be above 0 and at most 1"),
    "text": (lambda w: Bop2ndOrder([w], gamma="1e-3"), "found '1e-3'"),
    "eps": (lambda w: Bop2ndOrder([w], eps=0.0), "eps to be positive"),
    "correction": (
        lambda w: Bop2ndOrder([w], bias_correction="papr"),
        "unknown bias_correction 'papr': did you mean 'paper'",
    ),
    "alpha": (lambda w: CEMA([w], lr=2.0), "CEMA needs lr to be above 0 and at most 1"),
    "rate": (lambda w: SGDAT([w], lr=0.0), "SGDAT needs lr to be positive"),
    "group": (
        lambda w: Bop([{"params": [w], "gama": 0.1}]),
        "Bop has no hyper-parameter 'gama': did you mean 'gamma'",
    ),
    "decay": (
        lambda w: Bop([{"params": [w], "weight_decay": 1e-4}]),
        "Bop moves weights of size 1, which cannot decay",
    ),
    "group value": (lambda w: Bop([{"params": [w], "gamma": 3.0}]), "found 3.0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_hyper_parameters_get_one_sentence(case: str) -> None:
    make, said = REFUSALS[case]
    with pytest.raises(ValueError, match=said.replace("+", r"\+")) as caught:
        make(signs(2))
    assert "\n" not in str(caught.value)
