"""Residual networks of three stages for small images: ResNet-8, 14, 20, 32, 44 and 56.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition* (arXiv 1512.03385), section 4.2: 6n+2
layers, n basic blocks per stage, widths w, 2w, 4w. Where the shape changes, the shortcut is a 1x1 convolution
with batch norm instead of the paper's zero-padded subsampling.
"""

from __future__ import annotations

from functools import partial

from frostbit.models.resnet import BasicBlock, ResNet, register

for _layers in (8, 14, 20, 32, 44, 56):
    register(f"resnet{_layers}", partial(ResNet, block=BasicBlock, depths=((_layers - 2) // 6,) * 3), own_width=16)
