"""Orders of freezing that are computed from the network and a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostbit.progression.stompp import StoMPP, Target
from frostbit.quantizers import Masked, Spec
from frostbit.registry import check_choice
from frostbit.units import Unit

#: what units can be ordered by
ORDERINGS = ("damage", "gradient")


def order_by(
    by: str,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    soft: Spec = "clip",
    targets: Target | Sequence[Target] = ("weight", "input"),
    descending: bool = False,
) -> list[str]:
    """Return the model's units, smallest value first, as `StoMPP` takes them for ``order``.

    Both values are of the soft network, in which no entry is frozen yet: ``"damage"`` is ``L(u hard) − L``, what
    hardening unit u alone does to the loss; ``"gradient"`` is ``‖∂L/∂w_u‖``, over the unit's latent weights. A unit
    without weights has a gradient of 0. Batch norm takes the statistics of the batch. Computed in float64 on a copy, so
    that the order does not depend on the device or the number of threads; the model stays as it is.

    Args:
        by: ``"damage"`` or ``"gradient"``.
        model: a converted model, before its progression is made.
        inputs: a batch.
        labels: its labels.
        loss: function of the model's output and the labels.
        soft: see `StoMPP`.
        targets: see `StoMPP`; ``"damage"`` hardens these.
        descending: largest value first.

    Returns:
        Names of the units.

    Raises:
        UsageError: an unknown value, or a model that `StoMPP` cannot freeze.
    """
    check_choice("ordering", by, ORDERINGS)
    probe = copy.deepcopy(model).double().train()
    units = StoMPP(probe, 10**9, soft=soft, targets=targets).units
    batch = inputs.double() if inputs.is_floating_point() else inputs

    def now() -> Tensor:
        with torch.random.fork_rng(devices=[]):  # dropout, if any, draws the same each time
            torch.manual_seed(0)
            return loss(probe(batch), labels)

    for unit in units:
        _set_stage(unit, hard=False)
    if by == "gradient":
        now().backward()
        values = [
            sum(float(p.grad.square().sum()) for _, p, _ in unit.weight_quantizers() if p.grad is not None)
            for unit in units
        ]
    else:
        values = []
        with torch.no_grad():
            for unit in units:
                _set_stage(unit, hard=True)
                values.append(now().item())  # L itself is the same for all
                _set_stage(unit, hard=False)
    return [units[i].name for i in sorted(range(len(units)), key=lambda i: values[i], reverse=descending)]


def _set_stage(unit: Unit, *, hard: bool) -> None:
    for quantizer in unit.quantizers():
        if isinstance(quantizer, Masked):
            quantizer.stage = "hard" if hard else "soft"
