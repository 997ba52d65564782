"""ProxConnect over other layers, optimizers and copies, and what is refused."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import frostbit as fb
from frostbit.optim import CaseOptimizer, ProxConnect
from frostbit.quantizers import create, hard

from .latents import STEEP, SWITCHES, X, batch, loss_of, network, same, single, train


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
