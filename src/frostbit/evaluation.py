"""The network as it will ship: fully binary for the time of an evaluation, with statistics that fit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostbit.errors import UsageError
from frostbit.nn import Binarizer, BinaryLayer
from frostbit.quantizers import Quantizer


@contextmanager
def hardened(model: nn.Module) -> Iterator[nn.Module]:
    """Make every quantizer of ``model`` the sign for the time of a ``with`` block, whatever its progress.

    For evaluation only: nothing carries a gradient. Statistics, training mode, masks and random state are not
    touched; inputs that have no quantizer stay real. The former state is restored even after an exception.

    Args:
        model: a converted model; a float one is left as it is.

    Yields:
        The model.
    """
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    before = [quantizer._hardened for quantizer in quantizers]
    try:
        for quantizer in quantizers:
            quantizer._hardened = True
        yield model
    finally:
        for quantizer, was in zip(quantizers, before, strict=True):
            quantizer._hardened = was


def is_hard(model: nn.Module) -> bool:
    """Whether `hardened` changes nothing: the model's forward is fully binary already, or has nothing binary in it."""
    return all(quantizer.frozen_share == 1.0 for module in model.modules() for quantizer in _own_quantizers(module))


def _own_quantizers(module: nn.Module) -> Iterator[Quantizer]:
    if isinstance(module, (BinaryLayer, Binarizer)) and module.input_quantizer is not None:
        yield module.input_quantizer
    if isinstance(module, BinaryLayer):
        yield from (quantizer for _, _, quantizer in module.latents())
    for chain in getattr(module, "parametrizations", {}).values():  # plain layers under a ProxConnect
        yield from (each for each in chain if isinstance(each, Quantizer))


@torch.no_grad()
def hardening_distance(model: nn.Module, inputs: Tensor) -> float:
    """Return how far a network is from the binary one that it will be: ``‖z_hard − z‖ / ‖z‖`` over a batch's logits.

    Args:
        model: maps ``inputs`` to logits; evaluated in ``eval`` mode, its mode is restored.
        inputs: a batch; use the same one each time.

    Returns:
        0 for a network that is binary already, about 1.4 where the two have nothing in common.
    """
    if is_hard(model):
        return 0.0
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        soft: Tensor = model(inputs)
        with hardened(model):
            hard: Tensor = model(inputs)
    finally:
        for module, training in modes:
            module.training = training
    return float((hard.float() - soft.float()).norm() / soft.float().norm())


def recalibrate_(model: nn.Module, batches: Iterable[Any]) -> int:
    """Recompute batch-norm statistics on the hardened network, in place.

    While units are soft, batch norm sees other distributions than the binary network has. The new statistics are
    the plain average over the batches given; dropout and the like stay in evaluation mode, no gradient flows. A model
    without batch norm stays as it is, and no batch is taken.

    Args:
        model: the model.
        batches: inputs, or ``(inputs, labels)`` pairs as a loader yields them; inputs are a tensor, or a mapping of
            keyword arguments as tokenizers give it. They are taken as they come.

    Returns:
        The number of batches seen.

    Raises:
        UsageError: no batch was given, or one tensor, whose samples are no batches. The statistics are then as they
            were, as after any other error.
    """
    if isinstance(batches, Tensor):
        raise UsageError(f"recalibrate_ takes several batches, found one tensor of shape {tuple(batches.shape)}")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    count = 0
    try:
        model.eval()
        with torch.no_grad(), hardened(model):
            for batch in batches:
                if count == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # torch's word for a cumulative average
                        norm.train()
                inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
                if isinstance(inputs, Mapping):
                    model(**{name: value.to(device) for name, value in inputs.items() if isinstance(value, Tensor)})
                else:
                    model(inputs.to(device))
                count += 1
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if count == 0:
        raise UsageError("recalibrate_ needs at least one batch, found none")
    return count


def clip_latents_(model: nn.Module) -> None:
    """Clamp latent weights to ``[−c, c]`` where a layer has ``latent_clip=c``; call it after an optimizer step.

    ``optimizer.register_step_post_hook(lambda *_: clip_latents_(model))`` does so after every step.

    Args:
        model: a converted model.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BinaryLayer) and module.latent_clip is not None:
                for _, parameter, _ in module.latents():
                    parameter.clamp_(-module.latent_clip, module.latent_clip)
