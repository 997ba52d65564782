"""Which value is not finite: asked when a run has to stop, and at each evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def first_not_finite_state(net: nn.Module) -> str | None:
    """Return the first parameter or statistic that holds a NaN or an infinity, in words, or ``None``.

    One wait for the device in the good case.
    """
    named = [
        (name, value.to_local() if hasattr(value, "to_local") else value)  # of a sharded one, this process's part
        for name, value in net.state_dict(keep_vars=True).items()
        if value.is_floating_point()
    ]
    if not named or bool(torch.stack([value.detach().isfinite().all() for _, value in named]).all()):
        return None
    return repr(next(name for name, value in named if not value.isfinite().all()))


@torch.no_grad()
def first_not_finite(net: nn.Module, inputs: Tensor | None) -> str | None:
    """Return where a value that is not finite first appears, in words, or ``None`` if nowhere.

    Args:
        net: the network after the bad step.
        inputs: the batch whose loss was bad; ``None`` looks at parameters and statistics only.
    """
    culprit = first_not_finite_state(net)
    if culprit or inputs is None:
        return culprit
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and not found and not output.isfinite().all():
                found.append(f"the output of {name!r}")

        return hook

    handles = [
        module.register_forward_hook(look(name))
        for name, module in net.named_modules()
        if name and not any(module.children())
    ]
    was_training = net.training
    try:
        net.eval()  # the statistics of a network that has to stop stay as they are
        net(inputs)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return found[0] if found else None
