"""Conversion: signs that say nothing are found, turns are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import frostbit as fb
from frostbit.errors import UsageError
from tests.nn.zoo import IMAGES, ResNet


class Joined(nn.Module):
    """Branches of a convolution each, joined before another one."""

    def __init__(self, *ends: nn.Module, join: Any = lambda parts: torch.cat(parts, 1), out: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branches = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), end) for end in ends)
        self.joined, self.last = nn.Conv2d(out, 4, 3), nn.Conv2d(4, 2, 3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.joined(self.join([branch(x) for branch in self.branches])))


JOINS = {
    "cat": lambda parts: torch.cat(parts, 1),
    "nested": lambda parts: torch.cat([torch.cat(parts[:1], dim=1), functional.avg_pool2d(parts[1], 3, 1, 1)], 1),
    "stack": lambda parts: torch.stack(parts, 2).flatten(1, 2),
    "chunk": lambda parts: torch.cat([part.chunk(2, 1)[half] for part in parts for half in (0, 1)], 1),
    "split": lambda parts: torch.cat([torch.split(part, 1, 1)[n] for part in parts for n in range(4)], 1),
    "slice": lambda parts: torch.cat([parts[0][:, 2:], parts[1][:, :2], parts[0][:, :2], parts[1][:, 2:]], 1),
    "shuffle": lambda parts: torch.cat(parts, 1).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
}


@pytest.mark.parametrize("example", [IMAGES, None], ids=["watched", "symbolic"])
@pytest.mark.parametrize("join", JOINS)
def test_every_relu_that_reaches_a_sign_becomes_the_identity(join: str, example: Tensor | None) -> None:
    model = Joined(nn.ReLU(), nn.ReLU6(), join=JOINS[join])
    report = fb.binarize_(model, example_input=example, min_binary_macs=0)
    assert set(report.activations) == {"branches.0.2", "branches.1.2"}
    assert not any(isinstance(module, (nn.ReLU, nn.ReLU6)) for module in model.modules())
    assert report.one_sided == {}


def test_functions_that_reach_a_sign_through_a_join_are_refused() -> None:
    model = Joined(nn.ReLU(), nn.Identity(), join=lambda parts: torch.cat([parts[0], parts[1].relu()], 1))
    with pytest.raises(UsageError, match="input of 'joined' comes from the function 'relu'"):
        fb.binarize_(model, example_input=IMAGES, min_binary_macs=0)
    assert isinstance(model.branches[0][2], nn.ReLU)


def test_the_share_of_channels_with_one_sign_is_reported_and_most_is_refused() -> None:
    model = Joined(nn.ReLU(), nn.Sigmoid())
    images = torch.randn(4, 3, 16, 16)
    report = fb.binarize_(model, example_input=images, min_binary_macs=0)
    assert report.one_sided == {"joined": 0.5}
    assert "joined  50.0% of its input's channels are never negative" in str(report)
    for few in (images, images[:3]):
        worse = Joined(nn.ReLU(), nn.Sigmoid(), nn.Softplus(), out=12)
        if few is images:
            with pytest.raises(
                UsageError, match=r"66\.7% of the channels that 'joined' takes the sign of are never neg"
            ):
                fb.binarize_(worse, example_input=few, min_binary_macs=0)
            assert type(worse.joined) is nn.Conv2d
        else:
            assert fb.binarize_(worse, example_input=few, min_binary_macs=0).one_sided["joined"] == pytest.approx(2 / 3)


def test_few_or_equal_samples_prove_nothing() -> None:
    """By chance, all signs of a channel agree: as often +1 as -1."""
    torch.manual_seed(0)
    rows = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    assert fb.binarize_(rows, example_input=torch.randn(2, 8), min_binary_macs=0).one_sided == {}
    tokens = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    report = fb.binarize_(tokens, example_input=torch.randn(1, 1, 8).expand(1, 32, 8), min_binary_macs=0)
    assert all(share < 0.5 for share in report.one_sided.values())


class Cross(nn.Module):
    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.query, self.memory, self.end = nn.Linear(8, 8), nn.Linear(8, 8), end
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.end(self.memory(x))
        return self.last(self.attention(self.query(x), memory, value=memory)[0])


def test_all_that_attention_reads_is_looked_at() -> None:
    model, tokens = Cross(nn.ReLU()), torch.randn(2, 3, 8)
    fb.binarize_(model, example_input=tokens, min_binary_macs=0)
    assert isinstance(model.end, nn.Identity)
    with pytest.raises(UsageError, match="binarized input of 'attention' is constant"):
        fb.binarize_(Cross(nn.Sigmoid()), example_input=tokens, min_binary_macs=0)


class Checkpointed(ResNet):
    """Each block is recomputed in the backward pass."""

    reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for block in (*self.layer1, *self.layer2):
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.fc(torch.flatten(self.avgpool(x), 1))


@pytest.mark.parametrize("placement", ["input", "activation"])
def test_blocks_that_are_recomputed_take_their_turns_again(placement: Any) -> None:
    torch.manual_seed(0)
    model = Checkpointed()
    fb.binarize_(model, placement=placement, example_input=IMAGES)
    progression = fb.StoMPP(model, 14, ste="ste_clip", order="global")
    for _ in range(10):
        progression.step()
    gradients = []
    for model.reentrant in (None, True, False):
        for _ in range(2):
            model.zero_grad()
            model(IMAGES).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))
