"""XNOR-Net: AlexNet between two real layers, its two large linear layers written as convolutions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from frostbit.models.factory import MODELS, check_at_least
from frostbit.models.initialize import initialize_

_WIDTH = 96
#: of the binary convolutions: channels, kernel (None: as large as what is left of the map), whether a pooling follows
_BINARY = (
    *((256, 5, True), (384, 3, False), (384, 3, False), (256, 3, True)),
    *((4096, None, False), (4096, 1, False)),
)


@MODELS.register("xnornet")
class XNORNet(nn.Sequential):
    """A real 11x11 convolution, six binary ones of 256, 384, 384, 256, 4096 and 4096 channels, a real linear layer.

    A binary layer is convolution → (pool) → norm; the norm's output is what the next layer binarizes. There are ReLUs
    behind the first and the last norm only, so the network is one to be made binary: without quantizers it is all but
    linear. Convolutions pad to a size of ⌈n/stride⌉ ("same"), the poolings (3x3, stride 2) do not pad: 224 → 56 → 27
    → 13 → 6. The fifth binary kernel covers the whole map that is left, 6x6 at 224 pixels. No layer has a bias.

    `binarize_` keeps the first and the last layer real.

    Args:
        num_classes: size of the output ``[N, num_classes]``, >= 1.
        input_size: height and width of the images, >= 57; the network runs at this size only.
        in_channels: channels of the images, >= 1.
        width: channels of the first convolution, >= 1, 96 in the paper; all others shrink in proportion.
        init: how weights are drawn, see `frostbit.models.initialize.initialize_`.

    Raises:
        UsageError: a value below its bound, or an unknown ``init``.

    Source: Rastegari et al., XNOR-Net (arXiv 1603.05279), without its scaling factors, in the form of Suarez-Ramirez
    et al. (arXiv 2104.05124). An odd row of padding goes to the top left, as torch does it, not to the bottom right.
    """

    #: read by `binarize_`
    binarize_defaults: ClassVar[dict[str, Any]] = {"keep": "first_last"}

    def __init__(
        self,
        *,
        num_classes: int = 10,
        input_size: int = 224,
        in_channels: int = 3,
        width: int | None = None,
        init: str = "fan_in_normal",
    ) -> None:
        super().__init__()
        width = _WIDTH if width is None else width
        check_at_least("xnornet", "num_classes", num_classes, 1)
        check_at_least("xnornet", "in_channels", in_channels, 1)
        check_at_least("xnornet", "width", width, 1)
        check_at_least("xnornet", "input_size", input_size, 57, "the three poolings must leave a pixel")
        self.input_shape = (in_channels, input_size, input_size)
        size = -(-input_size // 4)
        padding = (4 * size + 8 - input_size) // 2  # half of what makes ⌈n/4⌉ positions of 11 pixels, rounded up
        self.conv1 = nn.Conv2d(in_channels, width, 11, stride=4, padding=padding, bias=False)
        self.norm1 = nn.BatchNorm2d(width, eps=1e-5)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.pooled_norm1 = nn.BatchNorm2d(width, eps=1e-4)
        size = _pooled(size)
        channels = width
        for index, (wide, kernel, pools) in enumerate(_BINARY, start=2):
            out = max(1, round(wide * width / _WIDTH))
            kernel, padding = (kernel, kernel // 2) if kernel else (size, 0)
            self.add_module(f"conv{index}", nn.Conv2d(channels, out, kernel, padding=padding, bias=False))
            if pools:
                self.add_module(f"pool{index}", nn.MaxPool2d(3, stride=2))
                size = _pooled(size)
            self.add_module(f"norm{index}", nn.BatchNorm2d(out, eps=1e-3 if index == 7 else 1e-4))
            channels = out
        self.relu7 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc8 = nn.Linear(channels, num_classes, bias=False)
        initialize_(self, init)


def _pooled(size: int) -> int:
    return (size - 3) // 2 + 1
