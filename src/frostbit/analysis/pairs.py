"""The figure of a quantizer's pair: what it does, what passes back, and what the criterion says."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frostbit.analysis.figures import COLORS, blank, tidy
from frostbit.quantizers import Decomposition, Quantizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pair_figure(quantizer: Quantizer, verdict: Decomposition, *, name: str, limit: float = 2.0) -> Figure:
    """Draw F, B, P and T of a quantizer, with the verdict on top.

    Args:
        quantizer: in its present state.
        verdict: from `frostbit.quantizers.decompose`.
        name: for the title.
        limit: draws ``|w| ≤ limit``.

    Returns:
        A figure of four panels; the place of a P or T that does not exist stays empty.
    """
    figure = blank(11.0, 3.5)
    panels = figure.subplots(1, 4)
    w = torch.linspace(-limit, limit, 4001, dtype=torch.float64)
    with torch.no_grad():
        _draw(panels[0], w, quantizer.value(w), "F, the forward", "w", 0)
        _draw(panels[1], w, quantizer.B(w, quantizer.hardness), "B, the factor on the gradient", "w", 1)
        _draw(panels[2], w, None if verdict.P is None else verdict.P(w), "P = ∫dF/B", "w", 2)
        p = verdict.P(w) if verdict.P is not None and verdict.T is not None else None
        if p is not None and verdict.T is not None:
            # a value on both sides of a jump of P belongs to T too, so its whole range is drawn
            p = torch.linspace(float(p.min()), float(p.max()), 4001, dtype=torch.float64)
            _draw(panels[3], p, verdict.T(p), "T, with F = T∘P", "p", 3)
        else:
            _draw(panels[3], w, None, "T, with F = T∘P", "p", 3)
    hardness = "" if quantizer.hardness is None else f", hardness {quantizer.hardness.item():g}"
    figure.suptitle("\n".join(textwrap.wrap(f"{name}{hardness}: {verdict}", 130)), x=0.01, ha="left", fontsize=10.5)
    return figure


def _draw(axes: Axes, x: Tensor, y: Tensor | None, title: str, label: str, color: int) -> None:
    if y is None:
        axes.text(0.5, 0.5, "does not exist", ha="center", va="center", transform=axes.transAxes, fontsize=9.5)
    else:
        span = float(y.max() - y.min())
        y = y.clone()
        steep = y.diff().abs() > 0.05 * span  # a line across a jump would claim values that are not taken
        y[1:][steep & (span > 0)] = float("nan")
        axes.plot(x.numpy(), y.numpy(), color=COLORS[color], linewidth=1.6)
    tidy(axes, title, label, "")
