"""BinaryNet: six convolutions and three linear layers, all of them made to be binary."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from frostbit.models.factory import MODELS, check_at_least
from frostbit.models.initialize import initialize_
from frostbit.registry import check_choice

NORMS = ("batch", "layer")
_EPS = 1e-3


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``[N, C]`` or of each position of ``[N, C, H, W]``, with scale and shift."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; same shape."""
        y = F.layer_norm(input.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1)


def _norm(name: str, batch_norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d], channels: int) -> nn.Module:
    if name == "layer":
        return ChannelNorm(channels, eps=_EPS)
    norm = batch_norm(channels, eps=_EPS, momentum=0.01)
    norm.register_parameter("weight", None)  # no scale
    return norm


@MODELS.register("binarynet")
class BinaryNet(nn.Sequential):
    """Convolutions of w, w, 2w, 2w, 4w, 4w channels (w = 128), then linear layers of 8w, 8w and ``num_classes``.

    Each layer is followed by a pooling (the second, fourth and sixth), a norm and, but for the last one, a ReLU that
    `binarize_` turns into the next layer's input quantizer. Convolutions are 3x3; the first has no padding, all
    others pad with zeros: 32x32 images shrink to 30, 15, 7 and 3. No layer has a bias.

    Left to its defaults `binarize_` makes every layer binary, the first and the last included; the first reads real
    images.

    Args:
        num_classes: size of the output ``[N, num_classes]``, >= 1.
        input_size: height and width of the images, >= 10.
        in_channels: channels of the images, >= 1.
        width: w, >= 1.
        norm: ``"batch"`` for batch norm with a shift but no scale, momentum 0.01, or ``"layer"`` for layer norm over
            channels, as Keras defines it; both with an epsilon of 1e-3.
        init: how weights are drawn, see `frostbit.models.initialize.initialize_`.

    Raises:
        UsageError: a value below its bound, or an unknown ``norm`` or ``init``.

    Source: Hubara et al., Binarized Neural Networks (arXiv 1602.02830), in the form of Suarez-Ramirez et al.
    (arXiv 2104.05124).
    """

    #: read by `binarize_`
    binarize_defaults: ClassVar[dict[str, Any]] = {"keep": None, "overrides": {"conv1": {"input": None}}}

    def __init__(
        self,
        *,
        num_classes: int = 10,
        input_size: int = 32,
        in_channels: int = 3,
        width: int | None = None,
        norm: Literal["batch", "layer"] = "batch",
        init: str = "fan_in_normal",
    ) -> None:
        super().__init__()
        width = 128 if width is None else width
        check_at_least("binarynet", "num_classes", num_classes, 1)
        check_at_least("binarynet", "in_channels", in_channels, 1)
        check_at_least("binarynet", "width", width, 1)
        check_at_least("binarynet", "input_size", input_size, 10, "the three poolings must leave a pixel")
        check_choice("norm", norm, NORMS)
        self.input_shape = (in_channels, input_size, input_size)
        channels = in_channels
        for index, factor in enumerate((1, 1, 2, 2, 4, 4), start=1):
            out = factor * width
            self.add_module(f"conv{index}", nn.Conv2d(channels, out, 3, padding=min(index - 1, 1), bias=False))
            if index % 2 == 0:
                self.add_module(f"pool{index}", nn.MaxPool2d(2))
            self.add_module(f"norm{index}", _norm(norm, nn.BatchNorm2d, out))
            self.add_module(f"relu{index}", nn.ReLU())
            channels = out
        self.flatten = nn.Flatten()
        features = channels * ((input_size - 2) // 8) ** 2
        for index, out in enumerate((8 * width, 8 * width, num_classes), start=7):
            self.add_module(f"fc{index}", nn.Linear(features, out, bias=False))
            self.add_module(f"norm{index}", _norm(norm, nn.BatchNorm1d, out))
            if index < 9:
                self.add_module(f"relu{index}", nn.ReLU())
            features = out
        initialize_(self, init)
