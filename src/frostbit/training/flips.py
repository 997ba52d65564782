"""What a flip rule does to each layer: columns of the record, and warnings that name what to change."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from frostbit.optim import CaseOptimizer, FlipOptimizer
from frostbit.training.record import Record
from frostbit.units import binary_parameters

#: share of a layer's weights flipping in the mean step from which on it is noise: where gradients are random and the
#: last one decides, half of the weights that have a gradient flip at each step
RESTLESS = 0.4

# hyper-parameter of a rule → (field of a recipe, direction in which weights flip more)
_FIELDS = {"threshold": ("optimizer.threshold", -1), "gamma": ("optimizer.gamma", 1), "lr": ("optimizer.flip_lr", 1)}


class FlipWatch:
    """Follows the weights of each layer that a flip rule moves.

    Args:
        rules: ``{layer: (rule, its weights)}``.
        record: of the run; what has to survive a resume lives there.
    """

    def __init__(self, rules: Mapping[str, tuple[FlipOptimizer, Tensor]], record: Record) -> None:
        self.rules = rules
        self.record = record

    @classmethod
    def over(cls, net: nn.Module, optimizer: torch.optim.Optimizer, record: Record) -> Self | None:
        """Return a watch over the direct weights of ``net``, ``None`` where no flip rule moves any."""
        if not isinstance(optimizer, CaseOptimizer):
            return None
        if not any(isinstance(rule, FlipOptimizer) for rule in optimizer.optimizers.values()):
            return None
        named = {name.removesuffix(".weight"): parameter for name, parameter in binary_parameters(net)}
        return cls({name: (optimizer.rule_of(parameter), parameter) for name, parameter in named.items()}, record)

    def row(self) -> dict[str, float]:
        """Return the columns of one row.

        ``flips/LAYER`` is the share of the layer's weights that flipped in the mean step since the last row,
        ``undecided/LAYER`` the share that would stay whichever sign they had (`FlipOptimizer.undecided`), and
        ``memory/gamma`` the number of steps 1/γ that the gradient's average remembers.
        """
        ratios = self._ratios("row")
        columns = {f"flips/{layer}": ratio or 0.0 for layer, ratio in ratios.items()}
        for layer, (rule, parameter) in self.rules.items():
            columns[f"undecided/{layer}"] = rule.undecided(parameter)
        gamma = self._value("gamma")
        if gamma is not None:
            columns["memory/gamma"] = 1 / gamma
        return {name: float(f"{value:.5g}") for name, value in columns.items()}

    def check_memory(self, total_steps: int, gamma_end: float | None, *, tell: bool) -> None:
        """Warn if the average of gradients remembers more steps than the run has.

        Args:
            total_steps: optimizer steps of the whole run.
            gamma_end: where γ is going, ``None`` if it stays.
            tell: say it; other ranks than the first only take note.
        """
        gamma = self._value("gamma")
        if gamma is None or any(row["about"] == "memory" for row in self.record.warnings):
            return
        gamma = max(gamma, gamma_end or 0.0)
        if gamma * total_steps < 1:
            self._warn(
                "memory",
                self.rules,
                f"optimizer.gamma {gamma:g} remembers about {1 / gamma:,.0f} steps and the run has {total_steps:,}, so "
                f"the average is still filling up at its end: raise optimizer.gamma to {1 / total_steps:.2g} or more",
                tell,
            )

    def check_epoch(self, epoch: int, *, tell: bool) -> None:
        """Warn once of each layer in which nothing flipped for an epoch, or nearly everything that can at each step.

        Args:
            epoch: number of the epoch that ends, from 1.
            tell: say it; other ranks than the first only take note.
        """
        found: dict[tuple[str, str], list[str]] = {}
        for layer, ratio in self._ratios("epoch").items():
            about = "still" if ratio == 0 else "restless" if ratio is not None and ratio >= RESTLESS else None
            known = (row for row in self.record.warnings if row["about"] == about)
            if about is not None and not any(layer in row["layers"] for row in known):
                found.setdefault((about, self._advice(layer, about)), []).append(layer)
        for (about, advice), layers in found.items():
            some = ", ".join(map(repr, layers[:4])) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
            what = "no weight" if about == "still" else f"{RESTLESS:.0%} or more of the weights"
            when = "" if about == "still" else "the mean step of "
            self._warn(about, layers, f"{what} of {some} flipped in {when}epoch {epoch}{advice}", tell)

    def _ratios(self, moment: str) -> dict[str, float | None]:
        """Return each layer's share of flips in the mean step since the last such moment; ``None`` without a step."""
        before = self.record.flip_counts[moment]
        now = {
            layer: (rule.flips(parameter), int(rule.state.get(parameter, {}).get("step", 0)))
            for layer, (rule, parameter) in self.rules.items()
        }
        self.record.flip_counts[moment] = now
        ratios: dict[str, float | None] = {}
        for layer, (flips, steps) in now.items():
            flips_before, steps_before = before.get(layer, (0, 0))
            taken = (steps - steps_before) * self.rules[layer][1].numel()
            ratios[layer] = (flips - flips_before) / taken if taken else None
        return ratios

    def _advice(self, layer: str, about: str) -> str:
        rule, parameter = self.rules[layer]
        if about == "restless":
            return ": " + self._change(rule, rule.ranges, -1)
        if not any(bool(rule.state[parameter][name].any()) for name in rule.moments):
            return ": no gradient reaches it"
        if rule.undecided(parameter) > 0.5:
            # divided by γ, the average grows as γ shrinks
            grows = "gamma" if rule.param_groups[0].get("bias_correction") == "paper" else ""
            names = [name for name in rule.ranges if name != grows]
            return ", and most of them are undecided: " + self._change(rule, names, 1)
        averages = [name for name in rule.ranges if name != "threshold"]
        return ", and the average agrees with most of them: " + self._change(rule, averages or rule.ranges, 1)

    def _change(self, rule: FlipOptimizer, names: Iterable[str], more: int) -> str:
        """Say in which direction to move hyper-parameters for more (1) or fewer (-1) flips."""
        parts = []
        for name in names:
            if name in _FIELDS:
                field, direction = _FIELDS[name]
                parts.append(
                    f"{'raise' if direction == more else 'lower'} {field} (now {rule.param_groups[0][name]:g})"
                )
        return " or ".join(parts)

    def _value(self, name: str) -> Any:
        groups = (group for rule, _ in self.rules.values() for group in rule.param_groups)
        return next((group[name] for group in groups if name in group), None)

    def _warn(self, about: str, layers: Iterable[str], text: str, tell: bool) -> None:
        self.record.warnings.append({"about": about, "layers": [*layers], "text": text})
        if tell:
            warnings.warn(text, stacklevel=3)
