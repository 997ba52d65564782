"""Small networks that look trained, for the deploy tests."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostbit as fb
from frostbit.models.factory import MODELS
from tests.texts import VOCABULARY, write_checkpoint

#: odd sizes where the network allows
SIZES = {"binarynet": 19, "mlp": 5, "resnet8": 9, "resnet10": 13, "xnornet": 57, "vit_tiny": 12}


def tiny(name: str) -> nn.Module:
    """One of `frostbit.models`, as small as it comes."""
    known = inspect.signature(MODELS.get(name)).parameters
    width = 16 if "depth" in known else 4
    wanted = {"width": width, "depth": 2, "heads": 2, "input_size": SIZES.get(name, 32), "hidden": [24, 24, 24]}
    return fb.models.create(name, **{key: value for key, value in wanted.items() if key in known})


def look_trained(model: nn.Module, batch: Tensor) -> nn.Module:
    """Give norms statistics of the binary network and scales and shifts of all kinds: negative, zero, large."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for p in (module.weight, module.bias):
                if p is not None:
                    nn.init.normal_(p)
                    p.data[::5] = 0
    fb.recalibrate_(model, [batch])
    return model


def batch_for(model: nn.Module, count: int = 5) -> Tensor:
    """A reproducible batch; a few of its numbers are −0.0."""
    x = torch.randn(count, *model.input_shape, generator=torch.Generator().manual_seed(1))
    x.flatten()[::17] = -0.0
    return x


@functools.cache
def ready(name: str, placement: str = "input", **options: Any) -> tuple[nn.Module, Tensor]:
    """A tiny model of that name, binary and looking trained, with a batch. Not to be changed."""
    torch.manual_seed(0)
    model = tiny(name)
    x = batch_for(model)
    fb.binarize_(model, placement=placement, example_input=x, min_binary_macs=0, **options)
    return look_trained(model, x).eval(), x


def encoder(folder: Path, kind: str, padding: int) -> tuple[nn.Module, Tensor]:
    """A tiny binary `bert` of some family, with padded texts."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = fb.models.create("bert", checkpoint=str(write_checkpoint(folder, kind)), num_classes=3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    ids = torch.randint(5, len(VOCABULARY), (5, 9))
    ids[1, 6:] = ids[3, 2:] = padding
    fb.binarize_(model, example_input=ids, min_binary_macs=0, weight_scale="mean_abs")
    return model.eval(), ids


class Functional(nn.Module):
    """What users write: functional calls, odd geometry, shape games, norms of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
        self.norm2 = nn.BatchNorm2d(16)
        self.mirrored = nn.Conv2d(16, 16, (3, 1), padding=(2, 0), dilation=(2, 1), padding_mode="reflect")
        self.up = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.wrapped = nn.Conv2d(8, 8, 3, padding=(1, 2), padding_mode="circular")
        self.bend = nn.PReLU(8)
        self.norm3 = nn.GroupNorm(2, 8)
        self.uneven = nn.Conv2d(8, 8, 4, padding="same")
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardtanh(self.norm1(self.stem(x)))
        y = F.max_pool2d(self.norm2(self.grouped(y)), 2)
        y = self.up(self.mirrored(F.pad(y, (1, 0, 0, 1))))
        y = self.norm3(self.bend(self.wrapped(y) * 0.5 + 0.1))
        first, second = y.chunk(2, 1)
        y = torch.cat([second, first], 1) + torch.ones(8, 1, 1) * 0.3
        y = F.leaky_relu(self.uneven(y) / 3 - 0.1, 0.2)
        y = F.hardswish(F.silu(y) + torch.sigmoid(y) * torch.tanh(y))
        y = F.avg_pool2d(y, 2, ceil_mode=True)
        return self.fc(self.drop(y.mean((2, 3))))


class Attention(nn.Module):
    """Tokens, positions, a class token, attention, a GELU: a transformer of one block, any length up to 12."""

    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.positions = nn.Parameter(torch.randn(1, 12, 16))
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.up, self.down, self.fc = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)
        self.need_weights = need_weights

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.tokens(tokens) + self.positions[:, : tokens.shape[1]]
        y = torch.cat([self.cls.expand(y.shape[0], -1, -1), y], 1)
        y = y + self.attention(y, y, y, need_weights=self.need_weights)[0]
        y = y + self.down(F.gelu(self.up(self.norm(y))) - 0.1)
        return self.fc(y[:, 0])
