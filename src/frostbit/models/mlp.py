"""A multilayer perceptron, small enough for the embedded digits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frostbit.errors import UsageError
from frostbit.models.factory import MODELS, check_at_least
from frostbit.models.initialize import initialize_


@MODELS.register("mlp")
class MLP(nn.Module):
    """Flatten, then ``Linear → BatchNorm1d → ReLU`` per hidden layer, then one linear layer.

    Args:
        num_classes: size of the output ``[N, num_classes]``, >= 1.
        input_size: height and width of the images, >= 1.
        in_channels: channels of the images, >= 1.
        hidden: width of each hidden layer, each >= 1, at least one.
        init: how weights are drawn, see `frostbit.models.initialize.initialize_`.

    Raises:
        UsageError: a value below its bound, no hidden layer, or an unknown ``init``.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        input_size: int = 8,
        in_channels: int = 1,
        hidden: Sequence[int] = (256, 256, 256),
        init: str = "fan_in_normal",
    ) -> None:
        super().__init__()
        check_at_least("mlp", "num_classes", num_classes, 1)
        check_at_least("mlp", "input_size", input_size, 1)
        check_at_least("mlp", "in_channels", in_channels, 1)
        if not isinstance(hidden, Sequence) or isinstance(hidden, str) or not hidden:
            raise UsageError(f"model 'mlp' needs hidden to be a list of widths such as [256, 256], found {hidden!r}")
        self.input_shape = (in_channels, input_size, input_size)
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential()
        features = in_channels * input_size**2
        for index, width in enumerate(hidden, start=1):
            check_at_least("mlp", "every width in hidden", width, 1)
            self.layers.add_module(f"linear{index}", nn.Linear(features, width, bias=False))
            self.layers.add_module(f"bn{index}", nn.BatchNorm1d(width))
            self.layers.add_module(f"relu{index}", nn.ReLU())
            features = width
        self.fc = nn.Linear(features, num_classes)
        initialize_(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, in_channels, input_size, input_size]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.fc(self.layers(self.flatten(x)))
        return logits
