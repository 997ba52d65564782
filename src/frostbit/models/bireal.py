"""Bi-Real-18 and 34: one binary convolution to a shortcut, and the shortcut stays real.

Liu et al., *Bi-Real Net* (arXiv 1808.00278), in the form of Suarez-Ramirez et al. (arXiv 2104.05124).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from frostbit.models.factory import MODELS
from frostbit.models.resnet import ResNet
from frostbit.registry import check_choice


class BiRealUnit(nn.Module):
    """``y = bn(conv(x)) + shortcut(x)``; made binary, the convolution reads the sign of x and the shortcut x itself.

    Where the shape changes, the shortcut is average pooling, a real 1x1 convolution and batch norm.

    Args:
        in_channels: channels of the input ``[N, in_channels, H, W]``.
        width: channels of the output ``[N, width, ⌈H/stride⌉, ⌈W/stride⌉]``.
        stride: 1 or 2, of the 3x3 convolution.
    """

    expansion = 1
    #: what stands before the 3x3 convolution of a float network, see `BiRealNet`
    activation: type[nn.Module] = nn.Identity

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.act = self.activation()
        self.conv = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or in_channels != width:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(in_channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, width, ⌈H/stride⌉, ⌈W/stride⌉]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.bn(self.conv(self.act(x))) + shortcut
        return out


class ClippedBiRealUnit(BiRealUnit):
    """The same with clip(x, -1, 1) before the convolution."""

    activation = nn.Hardtanh


class BiRealNet(ResNet):
    """A ResNet of `BiRealUnit` without ReLUs; arguments and stems are those of `frostbit.models.resnet.ResNet`.

    It is a network to be made binary: its only nonlinearities are the quantizers that `binarize_` puts in front of
    the 3x3 convolutions, and the pooling of the ImageNet stem. Left to its defaults, `binarize_` gives it
    ``approx_sign`` inputs and keeps the stem, the 1x1 convolutions of shortcuts and the linear layer real. Batch norms
    have momentum 0.2 and an epsilon of 1e-3; weights are drawn by Glorot's normal rule.

    As a float network it is next to linear. ``activation="hardtanh"`` puts clip(x, -1, 1) in the quantizers' places,
    which is what Liu et al. train before they make it binary. Either form loads the other's parameters.
    """

    #: read by `binarize_`
    binarize_defaults: ClassVar[dict[str, Any]] = {"keep": "first_last_downsample", "input": "approx_sign"}

    def __init__(self, name: str, depths: tuple[int, ...], activation: str, **options: Any) -> None:
        check_choice("activation", activation, _UNITS)
        super().__init__(name, _UNITS[activation], depths, **options)
        self.relu = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum, module.eps = 0.2, 1e-3


_UNITS: dict[str, type[BiRealUnit]] = {"identity": BiRealUnit, "hardtanh": ClippedBiRealUnit}


def _register(name: str, depths: tuple[int, ...]) -> None:
    @MODELS.register(name)
    def build(
        *,
        num_classes: int = 10,
        input_size: int = 32,
        in_channels: int = 3,
        width: int | None = None,
        stem: str | None = None,
        init: str = "glorot_normal",
        activation: Literal["identity", "hardtanh"] = "identity",
    ) -> BiRealNet:
        return BiRealNet(
            name,
            depths,
            activation,
            width=64 if width is None else width,
            num_classes=num_classes,
            input_size=input_size,
            in_channels=in_channels,
            stem=stem,
            init=init,
        )


_register("bireal18", (4, 4, 4, 4))
_register("bireal34", (6, 8, 12, 6))
