"""ProxConnect: every row of the paper's table against a loop by hand, and all that an optimizer has to bear."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import frostbit as fb
from frostbit.optim import CaseOptimizer, ProxConnect
from frostbit.quantizers import Quantizer, create, hard

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = (X[:, 0] - 0.4 * X[:, 1] + 0.3).sign()


def loss_of(scores: Tensor) -> Tensor:
    return functional.softplus(-Y.to(scores.dtype) * scores.squeeze(-1)).mean()


def single(weight: object, dtype: torch.dtype = torch.float64, **binary: object) -> nn.Sequential:
    """One binary layer, always from the same start."""
    layer = fb.nn.Linear(6, 1, bias=False, weight_quantizer=weight, input_quantizer=None, **binary)
    start = 0.5 * torch.randn(1, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(start)
    return nn.Sequential(layer).to(dtype)


def network(weight: object, **binary: object) -> nn.Sequential:
    """Two binary convolutions between real layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, bias=False),
        nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    model.input_shape = (1, 6, 6)
    fb.binarize_(model, weight=weight, input=None, min_binary_macs=0, **binary)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


STEEP = {"name": "parq", "hardness": 3.0}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int | range) -> None:
    for step in range(steps) if isinstance(steps, int) else steps:
        images, labels = batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


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


SWITCHES = [(a, b) for a in ("quantized", "latent") for b in ("quantized", "latent")]


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


@pytest.mark.parametrize("make", [lambda: fb.nn.Embedding(5, 4, weight_quantizer=STEEP), None])
def test_gradients_at_the_latent_reach_embeddings_and_attention(make: Callable[[], nn.Module] | None):
    torch.manual_seed(0)
    layer = make() if make else fb.nn.MultiheadAttention(4, 2, kdim=3, weight_quantizer=STEEP, input_quantizer=None)
    model = nn.ModuleList([layer])
    inputs = (torch.arange(5),) if make else (torch.randn(2, 1, 4), torch.randn(3, 1, 3), torch.randn(3, 1, 4))
    scaled = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.0, grad_at="latent", step_from="quantized")
    y = layer(*inputs)
    y = y if make else y[0]
    if make:
        assert torch.equal(y, layer.weight)
    y.square().sum().backward()
    optimizer.step()
    assert len(optimizer.quantizers) == (1 if make else 4)
    for name, quantizer in optimizer.quantizers.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), quantizer.value(scaled[name]))


@pytest.mark.parametrize("layer", ["linear", "attention"])
def test_a_step_from_the_quantized_weight_knows_its_scale(layer):
    if layer == "linear":
        model = single("ste_identity", torch.float32, weight_scale="mean_abs")
    else:
        model = nn.ModuleList(
            [fb.nn.MultiheadAttention(4, 2, weight_quantizer="ste_identity", weight_scale="mean_abs")]
        )
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.0, step_from="quantized")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name in optimizer.quantizers:
        expected = hard(before[name]) * before[name].abs().mean(1, keepdim=True)
        torch.testing.assert_close(model.get_parameter(name).detach(), expected)


def test_weights_without_a_gradient_stay():
    model = network(STEEP)
    before = model[4].weight.detach().clone()
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.1, step_from="quantized")
    model[4].weight.requires_grad_(False)
    train(model, optimizer, 1)
    assert torch.equal(before, model[4].weight)


def test_a_closure_is_evaluated_at_the_latents_with_gradients_on():
    model, other = single(STEEP), single(STEEP)
    for net, closed in ((model, True), (other, False)):
        optimizer = ProxConnect(net, torch.optim.SGD, lr=0.3, step_from="quantized")

        def closure(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(net(X))
            loss.backward()
            return loss

        for _ in range(3):
            if closed:
                assert optimizer.step(closure).item() > 0
            else:
                closure()
                assert optimizer.step() is None
    assert same(model, other)


def test_plain_layers_get_a_parametrization():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
    binary = copy.deepcopy(plain)
    fb.binarize_(binary, weight="prox_linear", input=None, keep=["0"], min_binary_macs=0, example_input=X)
    options = {"lr": 0.1, "step_from": "quantized"}
    optimizers = (
        ProxConnect(plain, torch.optim.SGD, quantizer=create("prox_linear"), keep=["0"], **options),
        ProxConnect(binary, torch.optim.SGD, **options),
    )
    assert list(optimizers[0].quantizers) == list(optimizers[1].quantizers) == ["2.weight", "4.weight"]
    for model, optimizer in zip((plain, binary), optimizers, strict=True):
        for quantizer in optimizer.quantizers.values():
            quantizer.hardness.fill_(1.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model(X)).backward()
            optimizer.step()
    latents = [dict(model.named_parameters()) for model in (plain, binary)]
    torch.testing.assert_close(latents[0]["2.parametrizations.weight.original"], latents[1]["2.weight"])
    torch.testing.assert_close(plain(X), binary(X))
    with fb.hardened(plain):
        assert set(plain[2].weight.unique().tolist()) == {-1.0, 1.0}


def test_copies_and_pickles_carry_on_alike():
    model = network(STEEP)
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.1, momentum=0.9, step_from="quantized")
    train(model, optimizer, 3)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        train(twin.model, twin, range(3, 6))
        assert not same(model, twin.model)
        reference = copy.deepcopy(optimizer)
        train(reference.model, reference, range(3, 6))
        assert same(reference.model, twin.model)


def test_a_quantizer_that_was_replaced_is_noticed():
    model = network("prox_linear")
    optimizer = ProxConnect(model, torch.optim.SGD, lr=0.1, grad_at="latent", step_from="quantized")
    fb.StoMPP(model, 10, targets=["weight"])
    with pytest.raises(RuntimeError, match=r"'2\.weight' was replaced .* make the progression first"):
        optimizer.step()
    ProxConnect(model, torch.optim.SGD, lr=0.1, grad_at="latent", step_from="quantized").step()


def test_other_optimizers_train_too():
    for grad_at, step_from in SWITCHES:
        model = network("binary_relax")
        optimizer = ProxConnect(
            model, torch.optim.Adam, lr=0.01, betas=(0.8, 0.9), grad_at=grad_at, step_from=step_from
        )
        images, labels = batch(0)
        losses = []
        for _ in range(25):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]


WRONG = [
    (lambda: ProxConnect(single("parq"), torch.optim.SGD, lr=1, grad_at="latnet"), "grad_at must be 'quantized' or"),
    (lambda: ProxConnect(single("parq"), torch.optim.SGD, lr=1, step_from="w"), "step_from must be 'quantized' or"),
    (lambda: ProxConnect(nn.Linear(2, 2), torch.optim.SGD, lr=1), "found no binary weight among the parameters of Li"),
    (lambda: ProxConnect(single("parq"), torch.optim.SGD, params=[nn.Parameter(X)], lr=1), "found no binary weight"),
    (lambda: ProxConnect(single("direct"), torch.optim.SGD, lr=1), "cannot move '0.weight': it is a direct weight"),
    (lambda: ProxConnect(single("parq"), torch.optim.SGD, lr=1, keep=["0"]), "keep= names plain layers"),
    (
        lambda: ProxConnect(network("parq"), torch.optim.SGD, lr=1, quantizer=create("parq"), keep=["9"]),
        "names no plain layer '9'",
    ),
]


@pytest.mark.parametrize(("attempt", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_be_is_one_sentence(attempt, message):
    with pytest.raises(ValueError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def plain_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


FAILING = [
    ({"lr": -1.0, "quantizer": create("parq")}, ValueError, "Invalid learning rate"),
    ({"lr": 0.1, "quantizer": create("parq"), "params": [nn.Parameter(torch.ones(2))]}, ValueError, "no binary weight"),
    ({"lr": 0.1, "quantizer": create("direct")}, ValueError, "direct"),
    ({"lr": 0.1, "momentun": 0.9, "quantizer": create("parq")}, ValueError, "SGD has no argument 'momentun': did you"),
    ({"lr": 0.1, "quantizer": "parq"}, ValueError, r"quantizer must be one of .*create\(name\), found 'parq'"),
]


@pytest.mark.parametrize(("options", "kind", "message"), FAILING, ids=[f[2] for f in FAILING])
def test_a_failed_construction_leaves_the_model_as_it_was(options, kind, message):
    model = plain_network()
    before = [(type(module), [*module.__dict__], [*module._parameters.items()]) for module in model.modules()]
    with pytest.raises(kind, match=message) as caught:
        ProxConnect(model, torch.optim.SGD, **options)
    assert "\n" not in str(caught.value)
    after = [(type(module), [*module.__dict__], [*module._parameters.items()]) for module in model.modules()]
    for (kind_before, names, parameters), (kind_after, new_names, new) in zip(before, after, strict=True):
        assert kind_before is kind_after
        assert names == new_names
        assert [name for name, _ in parameters] == [name for name, _ in new]
        assert all(p is q for (_, p), (_, q) in zip(parameters, new, strict=True))


def test_what_is_no_optimizer_class_is_refused():
    model = single("parq")
    with pytest.raises(ValueError, match=r"ProxConnect needs an optimizer class .* made already: give its class, SGD"):
        ProxConnect(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"needs an optimizer class such as torch.optim.Adam, found str"):
        ProxConnect(model, "sgd")


@pytest.mark.parametrize("make", [partial(ProxConnect, optimizer=torch.optim.SGD), partial(CaseOptimizer, cases={})])
def test_parameters_in_the_model_s_place_are_refused(make):
    with pytest.raises(ValueError, match=r"takes the model itself, a torch.nn.Module, found generator"):
        make(single("parq").parameters())
