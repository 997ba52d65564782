"""A STE training step of the same network here, in brevitas and in bitorch: `make bench-peers`.

ResNet-18 (CIFAR), the sixteen 3x3 convolutions binary in weight and input with a clipped straight-through
estimator, each library's layers in the same plain torch network; ReLUs before a quantizer are identities, as ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version

import torch
from harness import alternate, report, saved_bytes, training_step
from torch import nn

import frostbit as fb


def float_network() -> nn.Module:
    """Return the common starting point."""
    torch.manual_seed(0)
    return fb.models.create("resnet18", num_classes=10, input_size=32)


def ours() -> nn.Module:
    """Return the network made binary by this library."""
    model = float_network()
    fb.binarize_(model)
    return model


def with_layers(make: Callable[[nn.Conv2d], nn.Module]) -> nn.Module:
    """Return the network with each binary convolution of `ours` made by another library."""
    model, binary = float_network(), ours()
    for name, layer in binary.named_modules():
        if isinstance(layer, fb.nn.Conv2d):
            original = model.get_submodule(name)
            assert isinstance(original, nn.Conv2d)
            model.set_submodule(name, make(original))
        elif isinstance(layer, nn.Identity) and isinstance(model.get_submodule(name), nn.ReLU):
            model.set_submodule(name, nn.Identity())
    return model


def brevitas_layer(conv: nn.Conv2d) -> nn.Module:
    """Return brevitas' 1-bit convolution behind its 1-bit identity, ±1 levels."""
    import brevitas.nn as qnn
    from brevitas.quant import SignedBinaryActPerTensorConst, SignedBinaryWeightPerTensorConst

    layer = qnn.QuantConv2d(
        conv.in_channels, conv.out_channels, 3, conv.stride, padding=1, bias=False,
        weight_quant=SignedBinaryWeightPerTensorConst, weight_scaling_const=1.0,
    )  # fmt: skip
    act = qnn.QuantIdentity(act_quant=SignedBinaryActPerTensorConst, scaling_const=1.0)
    layer.weight.data.copy_(conv.weight.data)
    return nn.Sequential(act, layer)


def bitorch_layer(conv: nn.Conv2d) -> nn.Module:
    """Return bitorch's 1-bit convolution."""
    from bitorch.layers import QConv2d
    from bitorch.quantizations import Sign

    layer = QConv2d(
        conv.in_channels, conv.out_channels, 3, stride=conv.stride, padding=1, bias=False,
        weight_quantization=Sign(), input_quantization=Sign(), pad_value=0.0,
    )  # fmt: skip
    return layer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    models = {
        "float": float_network(),
        "frostbit": ours(),
        f"brevitas {version('brevitas')}": with_layers(brevitas_layer),
        f"bitorch {version('bitorch')}": with_layers(bitorch_layer),
    }
    seconds = alternate({n: training_step(m, images, labels) for n, m in models.items()}, options.rounds)
    memory = {
        name: saved_bytes(model, lambda model=model: nn.functional.cross_entropy(model(images), labels))
        for name, model in models.items()
    }
    report(
        "peers",
        [
            {
                "library": name,
                "ms": seconds[name] * 1e3,
                "x float": seconds[name] / seconds["float"],
                "saved MB": memory[name] / 1e6,
                "bytes x float": memory[name] / memory["float"],
            }
            for name in models
        ],
    )


if __name__ == "__main__":
    main()
