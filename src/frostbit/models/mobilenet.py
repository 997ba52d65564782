"""MobileNetV2: inverted residual blocks with linear bottlenecks.

Sandler, Howard, Zhu, Zhmoginov, Chen, *MobileNetV2: Inverted Residuals and Linear Bottlenecks* (arXiv 1801.04381),
table 2. Parameter names and shapes are torchvision's, so its checkpoints load strictly into the ImageNet form. Every
ReLU6 is a module of its own, called once, so that each can become a binarizer of its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from frostbit.errors import UsageError
from frostbit.models.factory import MODELS, check_at_least
from frostbit.models.initialize import initialize_
from frostbit.models.resnet import IMAGENET_STEM_FROM, STEMS
from frostbit.registry import check_choice

# expansion, channels at width 32, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM_WIDTH, _LAST_WIDTH = 32, 1280


def _activated(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution, its norm and its ReLU6; the image shrinks by the stride alone."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by a 3x3 one, narrow by a 1x1 one without activation.

    Args:
        in_channels: channels of the input ``[N, in_channels, H, W]``.
        out_channels: channels of the output.
        stride: stride of the depthwise convolution.
        expansion: how many times wider the inside is; 1 leaves the widening out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = in_channels * expansion
        self.conv = nn.Sequential(
            *([_activated(in_channels, inside, 1)] if expansion > 1 else []),
            _activated(inside, inside, 3, stride, groups=inside),
            nn.Conv2d(inside, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]``, a sum without activation."""
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


@MODELS.register("mobilenetv2")
class MobileNetV2(nn.Module):
    """A stem, seven stages of `InvertedResidual` blocks, a 1x1 convolution, average pooling, one linear layer.

    Args:
        num_classes: size of the output ``[N, num_classes]``, >= 1.
        input_size: height and width of the images, at least the product of all strides.
        in_channels: channels of the images, >= 1.
        width: channels of the stem, a multiple of 8; the paper's width multiplier is ``width / 32``. All other widths
            follow it, rounded to multiples of 8 as published; the last convolution keeps its 1280 below multiplier 1.
        stem: ``"imagenet"`` (all strides as published, 32 together) or ``"cifar"`` (those of the stem and of the
            second stage are 1, 8 together); ``None`` takes ``"imagenet"`` for images of 128 pixels and more.
        dropout: before the linear layer, in [0, 1); ``None`` for 0.2 in the ImageNet form, 0 in the CIFAR form.
        init: how weights are drawn, see `frostbit.models.initialize.initialize_`.

    Raises:
        UsageError: a value outside its bounds, or an unknown ``stem`` or ``init``.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        input_size: int = 32,
        in_channels: int = 3,
        width: int | None = None,
        stem: str | None = None,
        dropout: float | None = None,
        init: str = "fan_in_normal",
    ) -> None:
        super().__init__()
        width = _STEM_WIDTH if width is None else width
        check_at_least("mobilenetv2", "num_classes", num_classes, 1)
        check_at_least("mobilenetv2", "in_channels", in_channels, 1)
        check_at_least("mobilenetv2", "width", width, 8)
        if width % 8:
            raise UsageError(f"model 'mobilenetv2' needs width to be a multiple of 8, found {width}")
        check_at_least("mobilenetv2", "input_size", input_size, 1)
        if stem is None:
            stem = "imagenet" if input_size >= IMAGENET_STEM_FROM else "cifar"
        check_choice("stem", stem, STEMS)
        full = stem == "imagenet"
        check_at_least("mobilenetv2", "input_size", input_size, 32 if full else 8, f"the {stem!r} stem's total stride")
        dropout = (0.2 if full else 0.0) if dropout is None else dropout
        if not 0 <= dropout < 1:
            raise UsageError(f"model 'mobilenetv2' needs dropout to lie in [0, 1), found {dropout!r}")
        self.input_shape = (in_channels, input_size, input_size)

        self.features = nn.Sequential(_activated(in_channels, width, 3, 2 if full else 1))
        channels = width
        for number, (expansion, published, blocks, stride) in enumerate(STAGES):
            out = _round(published * width / _STEM_WIDTH)
            if number == 1 and not full:
                stride = 1
            for index in range(blocks):
                self.features.append(InvertedResidual(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        last = _round(_LAST_WIDTH * max(1.0, width / _STEM_WIDTH))
        self.features.append(_activated(channels, last, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialize_(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``; any H and W."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def _round(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8, that is not more than a tenth below ``channels``."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
