"""Accuracy of a network on a split: the one place where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostbit.evaluation import hardened as hardening
from frostbit.training.record import Sums


def _same(values: Tensor) -> Tensor:
    return values


@torch.no_grad()
def score(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    hardened: bool = False,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    reduce: Callable[[Tensor], Tensor] = _same,
) -> tuple[float, ...]:
    """Return mean cross-entropy, top-1 and top-5 accuracy.

    Args:
        net: maps inputs to logits ``[N, classes]``; evaluated in ``eval`` mode, its mode is restored.
        batches: pairs of inputs and integer labels ``[N]`` on the network's device.
        hardened: every unit fully binary, whatever its progress.
        context: entered around each forward, e.g. autocast.
        reduce: sums a tensor over the processes that hold parts of the split.

    Returns:
        ``(loss, top-1, top-5)``, accuracies in percent.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    sums = Sums()
    try:
        with hardening(net) if hardened else nullcontext():
            for inputs, labels in batches:
                with context():
                    logits = net(inputs)
                    loss = F.cross_entropy(logits, labels)
                best = logits.topk(min(5, logits.shape[1]), dim=1).indices
                among = (best == labels[:, None]).any(1)
                sums.add(loss, torch.stack([logits.argmax(1) == labels, among]).sum(1), len(labels))
    finally:
        for module, training in modes:
            module.training = training
    return sums.means(reduce)
