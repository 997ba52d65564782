"""How the weights of a new model are drawn."""

from __future__ import annotations

from torch import nn

from frostbit.registry import check_choice

INITS = ("fan_in_normal", "glorot_normal", "kaiming_normal", "vit", "torch")


def initialize_(model: nn.Module, how: str) -> None:
    """Draw the weights of all convolutions and linear layers anew, in place, from torch's global generator.

    * ``"fan_in_normal"``: weights ~ N(0, 1/fan_in), biases 0; a standard deviation √3 times torch's default.
    * ``"glorot_normal"``: weights ~ N(0, 2/(fan_in + fan_out)), biases 0; Bi-Real nets.
    * ``"kaiming_normal"``: convolutions ~ N(0, 2/fan_out), linear layers as torch leaves them; torchvision's
      ResNets.
    * ``"vit"``: linear layers ~ N(0, 0.02²), biases 0, convolutions as torch leaves them; the usual choice for
      vision transformers.
    * ``"torch"``: nothing is touched, each layer keeps torch's own default.

    Args:
        model: the model to initialize.
        how: one of the names above.

    Raises:
        UsageError: unknown name.
    """
    check_choice("init", how, INITS)
    for module in model.modules():
        if how in ("fan_in_normal", "glorot_normal") and isinstance(module, nn.Conv2d | nn.Linear):
            if how == "fan_in_normal":
                # gain 1 and mode fan_in give exactly the standard deviation fan_in ** -0.5
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            else:
                nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif how == "kaiming_normal" and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif how == "vit" and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
