"""Direct weights: the parameter itself is ±1, from conversion through loading, copying and evaluating."""

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.quantizers import hard

ODD = [0.0, -0.0, 1e-30, -1e-30, 0.7, -3.0]


def rows() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        model[2].weight[0] = torch.tensor(ODD)
    return model


def direct(model: nn.Module, **options: object) -> fb.Report:
    return fb.binarize_(model, weight="direct", example_input=torch.randn(5, 4), min_binary_macs=0, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_conversion_leaves_the_sign_of_what_was_there(dtype: torch.dtype) -> None:
    model = rows().to(dtype)
    before = model[2].weight.detach().clone()
    parameter = model[2].weight
    report = fb.binarize_(model, weight="direct", example_input=torch.randn(5, 4, dtype=dtype), min_binary_macs=0)
    assert "weight direct" in report.converted["2"]
    assert model[2].weight is parameter
    assert parameter[0].tolist() == [1, 1, 1, -1, 1, -1]
    assert torch.equal(parameter, hard(before))
    assert model[0].weight.abs().min() < 1  # kept layers stay real
    assert model[2].bias.abs().max() < 1


def test_a_failed_conversion_gives_the_values_back() -> None:
    model = rows()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fb.UsageError, match="multiply-accumulates became binary"):
        fb.binarize_(model, weight="direct", example_input=torch.randn(5, 4), min_binary_macs=0.99)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model[2]) is nn.Linear


def test_loading_takes_signs_again() -> None:
    model, source = rows(), rows()
    direct(model)
    model.load_state_dict(source.state_dict())
    assert torch.equal(model[2].weight, hard(source[2].weight))
    assert torch.equal(model[0].weight, source[0].weight)
    latent = rows()
    fb.binarize_(latent, example_input=torch.randn(5, 4), min_binary_macs=0)
    latent.load_state_dict(source.state_dict())
    assert torch.equal(latent[2].weight, source[2].weight)


def test_the_gradient_of_the_parameter_is_that_of_the_plain_layer() -> None:
    model = rows()
    direct(model, input=None)
    plain = rows()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(7, 4)
    for each in (model, plain):
        each(x).square().sum().backward()
    assert torch.equal(model[2].weight.grad, plain[2].weight.grad)


def test_copies_hardening_and_layers_of_ones_own() -> None:
    model = rows()
    direct(model)
    x = torch.randn(5, 4)
    y = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), y)
        assert twin[2].weight_quantizer.direct
        twin.load_state_dict(rows().state_dict())
        assert torch.equal(twin[2].weight.abs(), torch.ones(6, 6))
    with fb.hardened(model):
        assert torch.equal(model(x), y)
    assert fb.is_hard(model)
    assert fb.frozen_fraction(model) == {"2": 1.0}
    layer = fb.nn.Conv2d(2, 3, 3, weight_quantizer="direct")
    assert set(layer.weight.detach().flatten().tolist()) == {-1.0, 1.0}


def test_attention_projections_become_direct_too() -> None:
    for widths in ({}, {"kdim": 5, "vdim": 7}):
        layer = fb.nn.MultiheadAttention(8, 2, weight_quantizer="direct", **widths)
        latents = [p for m in layer.modules() if isinstance(m, fb.nn.BinaryLayer) for _, p, _ in m.latents()]
        assert len(latents) == (4 if widths else 2)
        assert all((p.abs() == 1).all() for p in latents)


def test_what_a_sign_cannot_have() -> None:
    for option in ({"weight_scale": "mean_abs"}, {"latent_clip": 1.0}):
        with pytest.raises(fb.UsageError, match=f"always -1 or .1: {next(iter(option))} has nothing to act on"):
            direct(rows(), **option)


def test_a_nan_is_no_sign() -> None:
    model = rows()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    direct(model)
    optimizer = fb.optim.Bop([model[2].weight])
    model[2].weight.grad = torch.ones(6, 6)
    with pytest.raises(ValueError, match="found nan"):
        optimizer.step()


@pytest.mark.parametrize("keep_vars", [False, True])
def test_loading_by_assignment_leaves_the_checkpoint_as_it_was(keep_vars: bool) -> None:
    model, source = rows(), rows()
    direct(model)
    state = source.state_dict(keep_vars=keep_vars)
    before = copy.deepcopy(state)
    model.load_state_dict(state, assign=True)
    assert torch.equal(model[2].weight, hard(before["2.weight"]))
    assert isinstance(model[2].weight, nn.Parameter)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_an_average_of_direct_weights_is_refused_where_it_is_evaluated() -> None:
    model, x = rows(), torch.randn(5, 4)
    direct(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    average.eval()
    average(x)
    model[2].weight.data.neg_()
    average.update_parameters(model)
    for context in (contextlib.nullcontext(), torch.no_grad(), torch.inference_mode(), fb.hardened(average)):
        with context, pytest.raises(fb.UsageError, match=r"always -1 or \+1, found 0 in .*\(6, 6\): an average"):
            average(x)
    model.load_state_dict(average.module.state_dict())  # its signs
    assert model.eval()(x).isfinite().all()


def test_another_optimizer_is_seen_at_the_first_evaluation() -> None:
    model, x = rows(), torch.randn(5, 4)
    direct(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(x).sum().backward()
    optimizer.step()
    model.eval()
    with pytest.raises(fb.UsageError, match="an optimizer that is no flip optimizer"):
        model(x)


def test_a_write_between_two_steps_is_seen_at_the_second() -> None:
    model, x = rows(), torch.randn(5, 4)
    direct(model)
    optimizer = fb.optim.Bop([("2.weight", model[2].weight)], threshold=0.0, gamma=0.5)
    for twin in (optimizer, pickle.loads(pickle.dumps(optimizer))):
        weight = twin.param_groups[0]["params"][0]
        weight.grad = torch.randn(6, 6)
        twin.step()
        twin.step()
        with torch.no_grad():
            weight.mul_(0.5)
        with pytest.raises(ValueError, match=r"exactly -1 or \+1, found -?0.5 in '2.weight'"):
            twin.step()
        with torch.no_grad():
            weight.mul_(2)
        twin.step()
    assert model(x).isfinite().all()


def test_an_activation_is_never_direct() -> None:
    with pytest.raises(fb.UsageError, match="'direct' is for weights"):
        direct(rows(), input="direct")
    with pytest.raises(fb.UsageError, match="'direct' is for weights"):
        fb.nn.Binarizer("direct")
