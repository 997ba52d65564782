"""Other people's models in miniature, to convert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """torchvision's basic block: one in-place ReLU, called twice."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """torchvision's layout in miniature: strided stem, max pooling, two stages, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Attention(nn.Module):
    """timm's attention: one fused linear layer for q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class ViT(nn.Module):
    """timm's vision transformer in miniature."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "attn": Attention(width, 2),
                    "norm2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        for block in self.blocks:
            x = x + block["attn"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(self.norm(x)[:, 0])


class Functional(nn.Module):
    def __init__(self, name: str = "relu") -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = {"relu": functional.relu, "relu6": functional.relu6, "method": Tensor.relu}[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.relu(self.bn(self.conv1(x)))))


class Shared(nn.Module):
    """One layer called twice between two that are called once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.other(self.twice(self.twice(self.first(x)))))


class Branching(nn.Module):
    """Cannot be traced symbolically; takes two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        y = self.middle(self.first(x))
        return self.last(y * scale if y.sum() > 0 else y)


def chain(*between: nn.Module) -> nn.Sequential:
    """Four linear layers, with ``between`` before the third."""
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), *between, nn.Linear(8, 8), nn.Linear(8, 8))


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.GELU(), batch_first=True)


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


def fingerprint(model: nn.Module) -> list[Any]:
    """Return all that makes a model what it is: classes, attributes, hooks, objects, their order."""
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        plain = {
            key: value
            for key, value in module.__dict__.items()
            if key not in ("_modules", "_parameters", "_buffers") and not key.endswith("_hooks")
        }
        hooks = {key: dict(value) for key, value in module.__dict__.items() if key.endswith("_hooks") and value}
        members = [
            [(key, id(value)) for key, value in module.__dict__[kind].items()]
            for kind in ("_modules", "_parameters", "_buffers")
        ]
        found.append((path, id(module), type(module), plain, hooks, members))
    return [found, {key: value.clone() for key, value in model.state_dict().items()}]


def assert_untouched(model: nn.Module, before: list[Any]) -> None:
    after = fingerprint(model)
    assert after[0] == before[0]
    assert all(torch.equal(value, before[1][key]) for key, value in after[1].items())
