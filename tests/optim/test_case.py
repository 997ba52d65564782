"""CaseOptimizer: who claims what, pairing, one state, schedulers, progressions, AMP, Lightning."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import frostbit as fb
from frostbit.optim import SGDAT, Bop, Bop2ndOrder, CaseOptimizer, check_pairing

ADAM = (torch.optim.Adam, {"lr": 1e-2})
BOP2 = (Bop2ndOrder, {"gamma": 1e-2, "threshold": 1e-6})


def network(weight: Any = "direct", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = fb.models.create("mlp", hidden=(12, 12, 12), input_size=4)
    fb.binarize_(model, weight=weight, min_binary_macs=0)
    return model


def loss_of(model: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(16, 1, 4, 4, generator=generator)
    return nn.functional.cross_entropy(model(images), torch.randint(10, (16,), generator=generator))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, begin: int, end: int) -> None:
    for seed in range(begin, end):
        optimizer.zero_grad()
        loss_of(model, seed).backward()
        optimizer.step()


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


# ---- routing


def names(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def test_binary_weights_go_to_their_rule_and_the_rest_to_the_default() -> None:
    model = network()
    opt = CaseOptimizer(model, {"binary": BOP2}, default=ADAM)
    binary = [name for name, _ in fb.binary_parameters(model)]
    assert binary == ["layers.linear2.weight", "layers.linear3.weight"]
    assert names(opt.optimizers["binary"]) == binary
    rest = names(opt.optimizers["default"])
    assert sorted([*binary, *rest]) == sorted(name for name, _ in model.named_parameters())
    assert opt.param_groups == [*opt.optimizers["default"].param_groups, *opt.optimizers["binary"].param_groups]


def test_names_globs_and_predicates() -> None:
    model = network()

    def norms(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
        assert module is model.get_submodule(name.rpartition(".")[0])
        assert model.get_parameter(name) is parameter
        return isinstance(module, nn.BatchNorm1d)

    opt = CaseOptimizer(
        model,
        {
            "layers.linear2.weight": (Bop, {"gamma": 0.5}),
            "layers.linear3.*": (SGDAT, {}),
            norms: (torch.optim.SGD, {"lr": 0.5}),
            "fc.*": (torch.optim.AdamW, {}),
            "layers.linear1.*": (lambda params, lr: torch.optim.RMSprop(params, lr), {"lr": 0.1}),
        },
    )
    kinds = [type(inner).__name__ for inner in opt.optimizers.values()]
    assert kinds == ["Bop", "SGDAT", "SGD", "AdamW", "RMSprop"]
    assert len(names(opt.optimizers[norms])) == 6
    train(model, opt, 0, 2)


def test_parameters_without_gradient_and_tied_ones() -> None:
    model = network()
    model.fc.bias.requires_grad_(False)
    model.twin = nn.Linear(12, 12, bias=False)
    model.twin.weight = model.layers.linear3.weight
    with pytest.raises(ValueError, match=r"'layers.linear3.weight' is claimed by case 'binary' and by case 'twin.\*'"):
        CaseOptimizer(model, {"binary": BOP2, "twin.*": ADAM}, default=ADAM)
    opt = CaseOptimizer(model, {"binary": BOP2}, default=ADAM)
    assert "fc.bias" not in names(opt)
    assert names(opt).count("layers.linear3.weight") == 1


def test_unclaimed_doubly_claimed_and_empty_cases_are_refused_by_name() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"parameter 'layers.linear1.weight' is claimed by no case"):
        CaseOptimizer(model, {"binary": BOP2})
    with pytest.raises(
        ValueError, match=r"'layers.linear2.weight' is claimed by case 'binary' and by case '\*.weight'"
    ):
        CaseOptimizer(model, {"binary": BOP2, "*.weight": ADAM}, default=ADAM)
    with pytest.raises(
        ValueError, match=r"case 'layers.linear2.wieght' claims no .* did you mean 'layers.linear2.weig"
    ):
        CaseOptimizer(model, {"layers.linear2.wieght": BOP2}, default=ADAM)
    with pytest.raises(ValueError, match="case 'binary' claims no trainable parameter of MLP"):
        CaseOptimizer(fb.models.create("mlp"), {"binary": BOP2}, default=ADAM)
    with pytest.raises(RuntimeError, match="make a new one"):
        CaseOptimizer(model, {"binary": BOP2}, default=ADAM).add_param_group({"params": [torch.ones(1)]})


def test_every_parameter_claimed_leaves_no_default() -> None:
    assert list(CaseOptimizer(nn.Linear(2, 2), {"*": ADAM}, default=ADAM).optimizers) == ["*"]


# ---- pairing


def test_flip_rules_and_direct_weights_need_each_other() -> None:
    with pytest.raises(ValueError, match=r"Adam cannot move 'layers.linear2.weight': it is a direct weight"):
        CaseOptimizer(network(), {"*": ADAM})
    with pytest.raises(ValueError, match=r"Bop2ndOrder cannot move 'layers.linear2.weight': it is a latent weight"):
        CaseOptimizer(network("ste_clip"), {"binary": BOP2}, default=ADAM)
    with pytest.raises(ValueError, match=r"SGD cannot move 'layers.linear3.weight': it is a direct weight"):
        CaseOptimizer(network(), {"*linear2.weight": BOP2}, default=(torch.optim.SGD, {"lr": 0.1}))
    check_pairing(network("ste_clip"), torch.optim.SGD(network("ste_clip").parameters()))
    model = network()
    check_pairing(model, Bop(fb.binary_parameters(model)))
    with pytest.raises(ValueError, match="AdamW cannot move"):
        check_pairing(model, torch.optim.AdamW(model.parameters()))
    check_pairing(nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters()))


# ---- it is one optimizer


def test_a_step_is_the_steps_of_the_optimizers_inside() -> None:
    one, other = network(), network()
    opt = CaseOptimizer(one, {"binary": BOP2}, default=ADAM)
    binary = dict(fb.binary_parameters(other))
    bop = Bop2ndOrder(binary.values(), **BOP2[1])
    adam = torch.optim.Adam([p for name, p in other.named_parameters() if name not in binary], lr=1e-2)
    for seed in range(4):
        train(one, opt, seed, seed + 1)
        for each in (bop, adam):
            each.zero_grad()
        loss_of(other, seed).backward()
        bop.step()
        adam.step()
    assert equal(one.state_dict(), other.state_dict())
    for name, p in fb.binary_parameters(one):
        assert opt.flips(p) == bop.flips(binary[name]) > 0
    with pytest.raises(ValueError, match=r"no flip optimizer holds this parameter of shape \(10,\)"):
        opt.flips(one.fc.bias)


def test_a_closure_is_evaluated_once() -> None:
    model = network()
    opt = CaseOptimizer(model, {"binary": BOP2}, default=ADAM)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        opt.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert opt.step(closure).item() > 0
    assert len(calls) == 1


def test_accumulation_is_the_larger_batch_and_clipping_acts() -> None:
    one, other = network().eval(), network().eval()  # batch norm would see two batches
    opts = [CaseOptimizer(m, {"binary": (Bop, {"threshold": 0.0, "gamma": 0.5})}, default=ADAM) for m in (one, other)]
    for seed in (0, 1):
        (loss_of(one, seed) / 2).backward()
    ((loss_of(other, 0) + loss_of(other, 1)) / 2).backward()
    for opt in opts:
        opt.step()
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)
    nn.utils.clip_grad_norm_(one.parameters(), 1e-6)
    m = {name: opts[0].state[p]["m"].clone() for name, p in fb.binary_parameters(one)}
    opts[0].step()
    for name, p in fb.binary_parameters(one):
        torch.testing.assert_close(opts[0].state[p]["m"], m[name] / 2, atol=1e-6, rtol=0)


def test_resume_is_bit_exact_through_a_file() -> None:
    model = network()
    opt = CaseOptimizer(model, {"binary": BOP2}, default=ADAM)
    train(model, opt, 0, 5)
    file = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), file)
    train(model, opt, 5, 9)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = network(seed=1)
    other.load_state_dict(weights)
    again = CaseOptimizer(other, {"binary": BOP2}, default=ADAM)
    again.load_state_dict(state)
    train(other, again, 5, 9)
    assert equal(other.state_dict(), model.state_dict())
    assert equal(again.state_dict(), opt.state_dict())
    with pytest.raises(ValueError, match="has 2 parameter groups, the saved one 1"):
        again.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())


def test_copies_and_pickles_go_on_alike() -> None:
    model = network()
    opt = CaseOptimizer(model, {"binary": BOP2}, default=ADAM)
    train(model, opt, 0, 3)
    for twin, twins in (copy.deepcopy((model, opt)), pickle.loads(pickle.dumps((model, opt)))):
        train(twin, twins, 3, 6)
        assert twins.param_groups[0] is twins.optimizers["default"].param_groups[0]
        assert twins.state is twins.optimizers["binary"].state
    train(model, opt, 3, 6)
    assert equal(twin.state_dict(), model.state_dict())
    assert equal(twins.state_dict(), opt.state_dict())


def test_hooks_and_the_progressions_clock() -> None:
    model = network()
    opt = CaseOptimizer(model, {"binary": BOP2}, default=ADAM)
    progression = fb.StoMPP(model, total_steps=4, targets=("input",), ste="ste_clip").attach(opt)
    seen = []
    opt.register_step_post_hook(lambda *_: seen.append(progression.steps_taken))
    train(model, opt, 0, 4)
    assert seen == [1, 2, 3, 4]
    assert progression.done
    assert all((p.abs() == 1).all() for _, p in fb.binary_parameters(model))
    with pytest.raises(fb.UsageError, match=r"has a direct weight, always ±1: StoMPP needs targets=\('input',\)"):
        fb.StoMPP(network(), total_steps=4)


def test_a_step_that_amp_skips_changes_nothing() -> None:
    model = network()
    opt = CaseOptimizer(model, {"binary": BOP2}, default=ADAM)
    progression = fb.StoMPP(model, total_steps=20, targets=("input",), ste="ste_clip").attach(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(seed: int, overflow: bool = False) -> None:
        opt.zero_grad()
        scaler.scale(loss_of(model, seed)).backward()
        if overflow:
            model.layers.linear2.weight.grad[0, 0] = float("inf")
        scaler.step(opt)
        scaler.update()

    step(0)
    before = copy.deepcopy((dict(model.named_parameters()), opt.state_dict(), progression.state_dict()))
    step(1, overflow=True)
    assert scaler.get_scale() == 4.0
    assert equal((dict(model.named_parameters()), opt.state_dict(), progression.state_dict()), before)
    assert progression.steps_taken == 1
    step(2)
    assert progression.steps_taken == 2
    # scaling itself leaves no trace: powers of two, taken out before the step
    twin = network()
    plain = CaseOptimizer(twin, {"binary": BOP2}, default=ADAM)
    fb.StoMPP(twin, total_steps=20, targets=("input",), ste="ste_clip").attach(plain)
    for seed in (0, 2):
        train(twin, plain, seed, seed + 1)
    for (name, p), (_, q) in zip(fb.binary_parameters(model), fb.binary_parameters(twin), strict=True):
        assert torch.equal(p, q), name


def test_lightnings_automatic_optimization() -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def configure_optimizers(self) -> Any:
            self.opt = CaseOptimizer(self.net, {"binary": BOP2}, default=ADAM)
            self.clock = fb.StoMPP(self.net, total_steps=8, targets=("input",), ste="ste_clip").attach(self.opt)
            rate = torch.optim.lr_scheduler.StepLR(self.opt, 1, 0.5)
            hyper = fb.optim.HyperSchedule(self.opt, gamma=fb.optim.linear(1e-2, 1e-3, 8))
            return [self.opt], [{"scheduler": s, "interval": "step"} for s in (rate, hyper)]

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return loss_of(self.net, index)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(8, 1), batch_size=1))
    assert trainer.global_step == module.clock.steps_taken == 4
    assert module.opt.param_groups[0]["lr"] == pytest.approx(1e-2 / 16)
    assert module.opt.param_groups[1]["gamma"] == pytest.approx((1e-2 + 1e-3) / 2)
    assert all(module.opt.state[p]["step"] == 4 for _, p in fb.binary_parameters(module.net))


BAD_RULES = [
    ({"binary": BOP2, "default": ADAM}, ADAM, "a case cannot be called 'default': give .* as default="),
    ({"binary": Bop2ndOrder}, ADAM, r"case 'binary' needs \(optimizer class, keyword arguments\), found <class"),
    ({"binary": (Bop2ndOrder, 1e-2)}, ADAM, "case 'binary' needs"),
    ({"binary": ("bop", {})}, ADAM, "case 'binary' needs an optimizer class such as torch.optim.Adam, found str"),
    ({"binary": BOP2}, (torch.optim.Adam, {"lrr": 1e-2}), "default=: Adam has no argument 'lrr': did you mean 'lr'"),
    ({"binary": (Bop2ndOrder, {"treshold": 0})}, ADAM, "'binary': Bop2ndOrder has no argument 'treshold': did you"),
    ({"binary": (torch.optim.SGD([torch.ones(1)]), {})}, ADAM, "is made already: give its class, SGD"),
]


@pytest.mark.parametrize(("cases", "default", "message"), BAD_RULES, ids=[message for *_, message in BAD_RULES])
def test_a_rule_is_a_class_and_its_arguments(cases: Any, default: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        CaseOptimizer(network(), cases, default=default)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_must_be_alone_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"default=: LBFGS evaluates the model inside its step"):
        CaseOptimizer(model, {"binary": BOP2}, default=(torch.optim.LBFGS, {}))


def test_the_state_of_another_rule_is_refused() -> None:
    states = []
    for rule in (Bop, Bop2ndOrder):
        optimizer = rule([nn.Parameter(torch.ones(3))])
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
        optimizer.step()
        states.append(optimizer.state_dict())
    with pytest.raises(ValueError, match="Bop2ndOrder keeps flips, m, step, v, the saved state flips, m, step"):
        Bop2ndOrder([nn.Parameter(torch.ones(3))]).load_state_dict(states[0])
    with pytest.raises(ValueError, match="Bop keeps flips, m, step, the saved state flips, m, step, v"):
        Bop([nn.Parameter(torch.ones(3))]).load_state_dict(states[1])
