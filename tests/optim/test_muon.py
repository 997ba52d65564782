"""Muon: its step is orthogonal, torch's own on matrices, and the same for a kernel in any shape and memory format."""

import copy

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.optim.muon import orthogonalized

SHAPES = [(16, 16, 3, 3), (24, 1, 3, 3), (40, 8), (8, 40), (6, 3, 5)]


def stepped(weight, gradients, **options):
    parameter = nn.Parameter(weight.clone())
    optimizer = fb.optim.Muon([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_all_directions_of_a_kernel_move_alike(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    move = (stepped(weight, [torch.randn(shape)], lr=0.1) - weight).flatten(1)
    sizes = torch.linalg.svdvals(move) / (0.1 * max(move.shape) ** 0.5)
    assert sizes.min() > 0.5
    assert sizes.max() < 1.25
    assert 0.07 < move.square().mean().sqrt() < 0.125  # the learning rate is the size of an entry's step


def test_the_step_has_the_directions_of_the_averaged_gradient():
    torch.manual_seed(0)
    gradients = [torch.randn(8, 20, dtype=torch.double) for _ in range(4)]
    average = torch.zeros(8, 20, dtype=torch.double)
    for gradient in gradients:
        average = 0.8 * average + 0.2 * gradient
    weight = torch.zeros(8, 20, dtype=torch.double)
    before, after = (stepped(weight, gradients[:n], lr=0.1, momentum=0.8) for n in (3, 4))
    u, _, vh = torch.linalg.svd(0.2 * gradients[-1] + 0.8 * average, full_matrices=False)
    aligned = u.T @ ((before - after) / (0.1 * 20**0.5)) @ vh.T
    assert (aligned - aligned.diag().diag()).abs().max() < 1e-4
    assert aligned.diag().min() > 0.5


def test_on_matrices_it_is_torchs_muon():
    torch.manual_seed(0)
    weight, gradients = torch.randn(20, 30), [torch.randn(20, 30) for _ in range(5)]
    peer = nn.Parameter(weight.clone())
    optimizer = torch.optim.Muon([peer], lr=0.1, momentum=0.95, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        peer.grad = gradient.clone()
        optimizer.step()
    ours = stepped(weight, gradients, lr=0.02)  # their factor has 0.2 in front
    assert (ours - peer).norm() < 0.02 * (ours - weight).norm()  # they round to bfloat16


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_the_memory_format_does_not_matter(shape):
    torch.manual_seed(0)
    weight, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    last = torch.channels_last
    moved = stepped(weight.to(memory_format=last), [g.to(memory_format=last) for g in gradients])
    torch.testing.assert_close(moved, stepped(weight, gradients))
    torch.testing.assert_close(moved.flatten(1), stepped(weight.flatten(1), [g.flatten(1) for g in gradients]))


def test_no_gradient_is_no_step():
    weight = torch.randn(4, 5)
    assert torch.equal(stepped(weight, [torch.zeros(4, 5)] * 2), weight)
    parameter = nn.Parameter(weight.clone())
    fb.optim.Muon([parameter]).step()
    assert torch.equal(parameter, weight)
    assert orthogonalized(torch.full((2, 2), 1e-30)).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        ((5,), {}, r"kernels of two or more dimensions, found a parameter of shape \(5,\)"),
        ((5, 5), {"lr": -1}, "lr to be at least 0 and finite, found -1"),
        ((5, 5), {"momentum": 1.0}, r"momentum to be in \[0, 1\), found 1.0"),
    ],
)
def test_what_it_cannot_move_is_refused(shape, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fb.optim.Muon([nn.Parameter(torch.randn(shape))], **options)


def test_beside_adam_it_trains_a_binary_network_and_resumes_bit_for_bit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.Linear(32, 10))
    x, y = torch.randn(64, 8, 8), torch.arange(64) % 10
    fb.binarize_(net, weight="ste_identity", input="ste_clip", latent_clip=1.0, min_binary_macs=0)

    def make(model):
        cases = {"binary": (fb.optim.Muon, {"lr": 0.05})}
        return fb.optim.CaseOptimizer(model, cases, default=(torch.optim.Adam, {"lr": 0.01}))

    def steps(model, optimizer, count):
        losses = []
        for _ in range(count):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            fb.clip_latents_(model)
            losses.append(loss.item())
        return losses

    optimizer = make(net)
    losses = steps(net, optimizer, 30)
    assert losses[-1] < 0.5 * losses[0]
    twin = copy.deepcopy(net)
    other = make(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(net, optimizer, 3) == steps(twin, other, 3)


def test_direct_weights_are_none_of_its_business():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    fb.binarize_(net, weight="direct", min_binary_macs=0)
    with pytest.raises(ValueError, match=r"Muon cannot move '1\.weight': it is a direct weight"):
        fb.optim.CaseOptimizer(net, {"binary": (fb.optim.Muon, {})}, default=(torch.optim.Adam, {}))


def test_a_gradient_of_zeros_moves_nothing():
    """A frozen unit gives one where gradients are not set to None; every other optimizer's momentum dies out."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(8, 8))
    optimizer = fb.optim.Muon([parameter])
    for gradient in (torch.randn(8, 8), torch.zeros(8, 8), torch.zeros(8, 8)):
        before = parameter.detach().clone()
        parameter.grad = gradient
        optimizer.step()
        assert torch.equal(parameter, before) == (not gradient.any())


def test_momentum_is_float32_and_resumes_as_it_was():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(6, 6, dtype=torch.bfloat16)) for _ in range(2)]
    one, other = (fb.optim.Muon([parameter]) for parameter in parameters)

    def step(optimizer, parameter):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    for _ in range(100):
        step(one, parameters[0])
    assert one.state[parameters[0]]["momentum_buffer"].sub(1).abs().max() < 0.01
    with torch.no_grad():
        parameters[1].copy_(parameters[0])
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for optimizer, parameter in zip((one, other), parameters, strict=True):
        step(optimizer, parameter)
    assert torch.equal(*parameters)
    buffers = [optimizer.state[p]["momentum_buffer"] for optimizer, p in zip((one, other), parameters, strict=True)]
    assert buffers[1].dtype == torch.float32
    assert torch.equal(*buffers)
