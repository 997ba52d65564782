"""Residual networks of three stages for small images: ResNet-8, 14, 20, 32, 44 and 56.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition* (arXiv 1512.03385), section 4.2: 6n+2
layers, n basic blocks per stage, widths w, 2w, 4w. Where the shape changes, the shortcut is a 1x1 convolution
with batch norm instead of the paper's zero-padded subsampling.
"""

from __future__ import annotations

from frostbit.models.factory import MODELS
from frostbit.models.resnet import BasicBlock, ResNet


def _register(layers: int) -> None:
    name = f"resnet{layers}"
    blocks_per_stage = (layers - 2) // 6

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
        return ResNet(
            name,
            BasicBlock,
            (blocks_per_stage,) * 3,
            width=16 if width is None else width,
            num_classes=num_classes,
            input_size=input_size,
            in_channels=in_channels,
            stem=stem,
            init=init,
        )


for _layers in (8, 14, 20, 32, 44, 56):
    _register(_layers)
