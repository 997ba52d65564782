"""From a trained model to one whose binary weights are bits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from frostbit import nn as fnn
from frostbit.deploy import packed
from frostbit.errors import UsageError
from frostbit.evaluation import hardened
from frostbit.nn import Binarizer, BinaryLayer
from frostbit.quantizers import Quantizer

_PACKED: dict[type[BinaryLayer], Callable[[Any], nn.Module]] = {
    fnn.Linear: packed.linear,
    **dict.fromkeys((fnn.Conv1d, fnn.Conv2d, fnn.Conv3d), packed.PackedConv),
    **dict.fromkeys((fnn.ConvTranspose1d, fnn.ConvTranspose2d, fnn.ConvTranspose3d), packed.PackedConvTranspose),
    fnn.Embedding: packed.PackedEmbedding,
    fnn.MultiheadAttention: packed.PackedAttention.of,
}


def convert(model: nn.Module) -> nn.Module:
    """Return a copy of ``model``, hardened, whose binary layers hold bits and run as custom operators.

    The operators (``frostbit::binary_conv``, ``binary_conv_transpose``, ``binary_linear``, ``sign``, ``unpack``) are
    registered with torch, so the copy compiles and exports. Layers with a binary weight but a real input unpack it
    and run as torch's own. Biases, scales and everything that is not binary stay as they are.

    Args:
        model: a converted model (see `frostbit.binarize_`), at whatever progress; it is left as it is.

    Returns:
        The packed copy, in evaluation mode and without gradients.

    Raises:
        UsageError: a binary layer that cannot be packed, or a latent weight with NaN.
    """
    warn_if_soft(model)
    return pack(model)


def pack(model: nn.Module) -> nn.Module:
    """Do what `convert` does, without a word about units that are not binary yet."""
    for path, module in model.named_modules():
        if isinstance(module, Quantizer) and not module.binary:
            kind = type(getattr(module, "frozen", None) or module).__name__
            raise UsageError(f"{path!r} has three values ({kind}), which one bit cannot hold: only ±1 can be packed")
    result = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad(), hardened(result):
        result.__dict__.pop("_frostbit_units", None)
        # an attention module comes before its own output projection, and every layer before its quantizers
        for path, module in list(result.named_modules()):
            if isinstance(module, BinaryLayer) and any(True for _ in module.latents()):
                result = _replace(result, module, _pack(path, module))
        quantizers = {path: module for path, module in result.named_modules() if isinstance(module, Quantizer)}
        for path, module in quantizers.items():
            if not any(path.startswith(f"{outer}.") for outer in quantizers):  # parts of one vanish with the whole
                result = _replace(result, module, packed.PackedSign())
    return result


def warn_if_soft(model: nn.Module) -> None:
    """Warn if some quantizer of the model is not fully binary yet: what is packed is then another network."""
    shares: dict[str, float] = {}
    for path, module in model.named_modules():
        quantizers: list[Quantizer | None] = []
        if isinstance(module, BinaryLayer):
            quantizers += [quantizer for _, _, quantizer in module.latents()]
        if isinstance(module, (BinaryLayer, Binarizer)):
            quantizers.append(module.input_quantizer)
        for quantizer in quantizers:
            if quantizer is not None:
                shares[path] = min(shares.get(path, 1.0), quantizer.frozen_share)
    soft = {path: share for path, share in shares.items() if share < 1}
    if soft:
        least = min(soft, key=lambda path: soft[path])
        warnings.warn(
            f"{len(soft)} of {len(shares)} binary modules are not fully binary yet (least: {least!r}, "
            f"{soft[least]:.0%} frozen): what is packed is the hardened network",
            stacklevel=3,
        )


def _pack(path: str, layer: BinaryLayer) -> nn.Module:
    kind = next((kind for kind in _PACKED if type(layer) is kind), None)
    if kind is None:  # a subclass that adds nothing to the computation is as good
        kind = next((k for k in _PACKED if isinstance(layer, k) and type(layer).forward is k.forward), None)
    if kind is None:
        raise UsageError(
            f"layer {path!r} is a {type(layer).__name__} with a forward of its own, which cannot be packed: "
            f"expected one of {', '.join(k.__name__ for k in _PACKED)}"
        )
    for name, parameter, _ in layer.latents():
        if parameter.isnan().any():
            raise UsageError(f"latent weight {name!r} of layer {path!r} holds NaN, which has no sign")
    return _PACKED[kind](layer)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever ``old`` is; return the root, which may be ``old`` itself."""
    if old is root:
        return new
    for place, module in list(root.named_modules(remove_duplicate=False)):
        if module is old:
            root.set_submodule(place, new)
    return root
