"""Residual networks of four stages: ResNet-10, 18, 34 and 50.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition* (arXiv 1512.03385), with the projection
shortcut (option B) and, in bottlenecks, the stride on the 3x3 convolution. Parameter names and shapes are
torchvision's, so its checkpoints load strictly into a model with the ImageNet stem. Every ReLU is a module of
its own, called once, so that each can become a binarizer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from frostbit.models.factory import MODELS, check_at_least
from frostbit.models.initialize import initialize_
from frostbit.registry import check_choice

STEMS = ("cifar", "imagenet")
IMAGENET_STEM_FROM = 128


class Block(Protocol):
    """A class of residual blocks; the output of one has ``expansion * width`` channels."""

    expansion: int

    def __call__(self, in_channels: int, width: int, stride: int) -> nn.Module:
        """Make a block."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, ``y = relu2(bn2(conv2(relu1(bn1(conv1(x))))) + shortcut(x))``.

    Args:
        in_channels: channels of the input ``[N, in_channels, H, W]``.
        width: channels of both convolutions and of the output ``[N, width, H/stride, W/stride]``.
        stride: stride of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, width, ⌈H/stride⌉, ⌈W/stride⌉]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu2(y + shortcut)
        return out


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution; the last widens fourfold, the 3x3 carries the stride.

    Args:
        in_channels: channels of the input ``[N, in_channels, H, W]``.
        width: channels of the 3x3 convolution; the output has ``4 * width``.
        stride: stride of the 3x3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, 4 * width, ⌈H/stride⌉, ⌈W/stride⌉]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu3(y + shortcut)
        return out


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return the projection of a block that changes shape, ``None`` (identity) for one that does not."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """A stem, stages ``layer1 … layerK`` of widths ``width · 2^(k-1)``, average pooling, one linear layer.

    Args:
        name: the model's public name, for messages.
        block: `BasicBlock`, `Bottleneck`, or another such class.
        depths: blocks per stage; every stage but the first halves height and width.
        width: channels of the stem and base width of the first stage, >= 1.
        num_classes: size of the output ``[N, num_classes]``, >= 1.
        input_size: height and width of the images, at least the product of all strides.
        in_channels: channels of the images, >= 1.
        stem: ``"cifar"`` (3x3 convolution, stride 1) or ``"imagenet"`` (7x7 convolution, stride 2, then
            3x3 max pooling, stride 2); ``None`` takes ``"imagenet"`` for images of 128 pixels and more.
        init: how weights are drawn, see `frostbit.models.initialize.initialize_`.

    Raises:
        UsageError: a value below its bound, or an unknown ``stem`` or ``init``.
    """

    def __init__(
        self,
        name: str,
        block: Block,
        depths: Sequence[int],
        *,
        width: int,
        num_classes: int,
        input_size: int,
        in_channels: int,
        stem: str | None,
        init: str,
    ) -> None:
        super().__init__()
        check_at_least(name, "num_classes", num_classes, 1)
        check_at_least(name, "in_channels", in_channels, 1)
        check_at_least(name, "width", width, 1)
        check_at_least(name, "input_size", input_size, 1)
        if stem is None:
            stem = "imagenet" if input_size >= IMAGENET_STEM_FROM else "cifar"
        check_choice("stem", stem, STEMS)
        total_stride = (4 if stem == "imagenet" else 1) * 2 ** (len(depths) - 1)
        check_at_least(name, "input_size", input_size, total_stride, f"the {stem!r} stem's total stride")
        self.input_shape = (in_channels, input_size, input_size)

        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu: nn.Module = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()

        self.stage_names = [f"layer{k}" for k in range(1, len(depths) + 1)]
        channels = width
        for stage, depth in enumerate(depths):
            stage_width = width * 2**stage
            blocks = nn.Sequential()
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, stage_width, stride))
                channels = stage_width * block.expansion
            self.add_module(self.stage_names[stage], blocks)

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        initialize_(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``; any H and W."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stage_names:
            x = getattr(self, stage)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def register(name: str, make: Callable[..., ResNet], own_width: int) -> None:
    """File a residual network, and the arguments that all of them have, under a name.

    Args:
        name: the public name.
        make: ``(name, **arguments of ResNet) -> ResNet``.
        own_width: the width of the publication.
    """

    @MODELS.register(name)
    def build(
        *,
        num_classes: int = 10,
        input_size: int = 32,
        in_channels: int = 3,
        width: int | None = None,
        stem: str | None = None,
        init: str = "fan_in_normal",
    ) -> ResNet:
        return make(
            name,
            width=own_width if width is None else width,
            num_classes=num_classes,
            input_size=input_size,
            in_channels=in_channels,
            stem=stem,
            init=init,
        )


for _name, _block, _depths in (
    ("resnet10", BasicBlock, (1, 1, 1, 1)),
    ("resnet18", BasicBlock, (2, 2, 2, 2)),
    ("resnet34", BasicBlock, (3, 4, 6, 3)),
    ("resnet50", Bottleneck, (3, 4, 6, 3)),
):
    register(_name, partial(ResNet, block=_block, depths=_depths), own_width=64)
