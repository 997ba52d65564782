"""Small networks over latent weights, and what the tests of ProxConnect share."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import frostbit as fb

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


SWITCHES = [(a, b) for a in ("quantized", "latent") for b in ("quantized", "latent")]
