"""A small network with the geometry that the models of `frostbit` do not have, for `parity.py`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Odd(nn.Module):
    """Grouped, depthwise, dilated, even-sized and transposed convolutions; zero, mirrored, wrapped and copied borders.

    Args:
        channels: of the images.
        classes: number of outputs.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 24, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(24, 40, 3, padding=1, groups=2),
                nn.Conv2d(40, 40, (3, 1), padding=(2, 0), dilation=(2, 1), padding_mode="reflect"),
                nn.Conv2d(40, 40, 3, stride=2, padding=1, groups=40),
                nn.Conv2d(40, 36, 3, padding=1, padding_mode="circular"),
                nn.ConvTranspose2d(36, 20, 3, stride=2, padding=1, output_padding=1, groups=2),
                nn.Conv2d(20, 33, 5, padding=2, padding_mode="replicate"),
                nn.Conv2d(33, 33, 4, padding="same"),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (24, 40, 40, 40, 36, 20, 33, 33)])
        self.last = nn.Linear(33, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.norms[0](self.stem(x))
        for layer, norm in zip(self.layers, list(self.norms)[1:], strict=True):
            x = norm(layer(F.hardtanh(x)))
        return self.last(x.mean((2, 3)))
