"""StoMPP: layerwise progressive freezing by stochastic masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from frostbit.errors import UsageError
from frostbit.progression.anneal import geometric, linear
from frostbit.progression.base import Progression
from frostbit.progression.fields import Field, RefreshRule
from frostbit.progression.schedules import Schedule
from frostbit.progression.schedules import resolve as resolve_schedule
from frostbit.progression.windows import Order, Window
from frostbit.quantizers import Masked, Quantizer, Spec, resolve
from frostbit.registry import check_choice, nearest
from frostbit.units import Unit

Target = Literal["weight", "input"]
MaskShape = Literal["element", "channel"]
Span = Literal["window", "run"]


class StoMPP(Progression):
    """Freezes entries to ±1 one unit after another: ``x' = M ⊙ sign(x) + (1 − M) ⊙ soft(x)``, ``P(M = 1) = p``.

    In a unit's window of T steps the forward of local step j uses ``p((j + 1) / T)``; before it p = 0, after it 1.
    The unit's input quantizer and its weights share p and have masks of their own. Constructing it puts `Masked`
    quantizers into the model's layers.

    Args:
        model: a converted model.
        total_steps: optimizer steps of the run.
        schedule: name of p(x) (``cubic``, ``linear``, ``quadratic``, ``cosine``, ``flipped_quadratic``) or a function.
        order: see `Progression`.
        refresh: steps in which a mask is drawn anew once on average (soft refresh); ``None`` for never.
        refresh_rule: ``"uniform"`` keeps the density at p; ``"resample"`` redraws the mask itself and lags.
        soft: the smooth member, as `frostbit.quantizers.resolve` takes it.
        ste: surrogate on frozen entries: ``None`` (STE-free), a quantizer for all, or ``{"weight": …, "input": …}``
            (``{"input": …}`` alone keeps the way of the gradient open through STE-free layers).
        ste_strength: (start, end) of a factor on the surrogate's gradient, moved linearly; where it is 0, frozen
            entries are STE-free. 1 if left out.
        ste_span: over what it moves: each unit's own ``"window"``, keeping ``end`` afterwards, or the ``"run"``.
        targets: what is masked. ``("weight",)`` for weights-only networks; a target left out keeps the quantizer
            that `binarize_` gave it (StoMPP activations with STE weights, or the reverse).
        mask: activation masks have one entry per feature element, or per ``"channel"`` (needed where the spatial
            size varies). Samples and tokens share them.
        soft_hardness: (start, end), raised geometrically inside each window, for smooth members with a hardness.
        steps_per_unit: see `Progression`.
        pace: see `Progression`.
        tail: see `Progression`.
        seed: masks depend on (seed, unit, role, draw) alone, so two orders with one seed see the same draws.
        drop_frozen: whether fully frozen STE-free units leave the backward pass. ``False`` keeps masks for the whole
            run and one graph, so that `torch.compile` compiles once.

    Source: Smith & Islam (arXiv 2601.22660).
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        schedule: str | Schedule = "cubic",
        order: Order = "forward",
        refresh: float | None = 100,
        refresh_rule: RefreshRule = "uniform",
        soft: Spec = "clip",
        ste: Spec = None,
        ste_strength: tuple[float, float] | None = None,
        ste_span: Span = "window",
        targets: Target | Sequence[Target] = ("weight", "input"),
        mask: MaskShape = "element",
        soft_hardness: tuple[float, float] | None = None,
        steps_per_unit: Sequence[int] | None = None,
        pace: str = "equal",
        tail: float = 0,
        seed: int = 0,
        drop_frozen: bool = True,
    ) -> None:
        super().__init__(
            model, total_steps, order=order, steps_per_unit=steps_per_unit, pace=pace, tail=tail, seed=seed
        )
        self.schedule = resolve_schedule(schedule)
        check_choice("refresh_rule", refresh_rule, ["uniform", "resample"])
        check_choice("mask", mask, ["element", "channel"])
        if refresh is not None and not refresh >= 1:
            raise UsageError(f"refresh must be at least 1 step or None, found {refresh}")
        targets = (targets,) if isinstance(targets, str) else targets
        self.targets = tuple(check_choice("target", target, ["weight", "input"]) for target in targets)
        if not self.targets:
            raise UsageError("targets is empty: expected 'weight', 'input' or both")
        self.refresh = None if refresh is None else float(refresh)
        self.refresh_rule, self.mask_shape = refresh_rule, mask
        self.soft_hardness = _check_hardness(soft_hardness, soft)
        self.ste_strength = _check_strength(ste_strength, ste)
        self.ste_span = check_choice("ste_span", ste_span, ["window", "run"])
        self.drop_frozen = drop_frozen
        self._fields: dict[tuple[int, str], Field] = {}
        self._masked: list[dict[str, Masked]] = []
        if "input" in self.targets:  # say what is missing before anything is changed
            for unit in self.units:
                if unit.input_quantizer is not None:
                    self._shape(unit, "input")
        plan = [list(self._plan(unit, soft, ste)) for unit in self.units]
        if not any(plan):
            raise UsageError(f"nothing to freeze: no unit of the model has a quantizer for targets={self.targets}")
        for unit, changes in zip(self.units, plan, strict=True):
            self._masked.append({role: new for role, _, new in changes})
            for role, old, new in changes:
                self._install(unit, role, old, new)
        self._apply_all()

    def _plan(self, unit: Unit, soft: Spec, ste: Spec) -> Iterator[tuple[str, Quantizer, Masked]]:
        """Yield a unit's quantizers by role, each with the masked one for its place; the model stays as it is."""
        found: list[tuple[str, Quantizer]] = []
        if "input" in self.targets and unit.input_quantizer is not None:
            found.append(("input", unit.input_quantizer))
        if "weight" in self.targets:
            found += [(role, quantizer) for role, _, quantizer in unit.weight_quantizers()]
        for role, old in found:
            if old.direct:
                raise UsageError(f"unit {unit.name!r} has a direct weight, always ±1: StoMPP needs targets=('input',)")
            frozen = None if old.binary else resolve(old)  # a copy: `old` leaves the model
            new = Masked(_smooth(soft), resolve(_surrogate(ste, role)), self.drop_frozen, frozen)
            yield role, old, new.train(old.training)

    def _install(self, unit: Unit, role: str, old: Quantizer, new: Masked) -> None:
        for module in self.model.modules():
            module._modules.update({name: new for name, child in module._modules.items() if child is old})
        if role == "input":
            unit.input_quantizer = new

    def _shape(self, unit: Unit, role: str) -> tuple[int, ...]:
        if role != "input":
            return next(tuple(parameter.shape) for name, parameter, _ in unit.weight_quantizers() if name == role)
        features = unit.feature_shape
        for layer in unit.layers:
            if isinstance(layer, nn.MultiheadAttention) and not layer._qkv_same_embed_dim:
                raise UsageError(
                    f"unit {unit.name!r} reads tensors of widths {layer.embed_dim}, {layer.kdim}, {layer.vdim} through "
                    "one quantizer, which no mask fits: StoMPP needs targets=('weight',)"
                )
        if features is None:
            raise UsageError(
                f"the feature shape of unit {unit.name!r} is unknown: call frostbit.units(model, example_input=batch) "
                "before the progression is made"
            )
        return (features[0], *(1,) * (len(features) - 1)) if self.mask_shape == "channel" else features

    def _device(self, unit: Unit) -> torch.device:
        for _, parameter, _ in unit.weight_quantizers():
            return parameter.device
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _apply(self, index: int, progress: float) -> None:
        unit = self.units[index]
        window = self.windows[index]
        over = self.steps_taken >= window.stop
        for role, quantizer in self._masked[index].items():
            if self.soft_hardness is not None and quantizer.soft.hardness is not None:
                start, end = self.soft_hardness
                quantizer.soft.hardness.fill_(geometric(start, end, progress))
            if (progress == 0.0 or over) and self.drop_frozen:
                self._fields.pop((index, role), None)
                quantizer.mask = None
                quantizer.stage = "hard" if over else "soft"
                continue
            field = self._field(index, role)
            if over:
                field.mask.fill_(True)
            elif progress > 0:
                field.to(self._device(unit))
                field.advance(self.schedule(progress))
            quantizer.mask = field.mask
            at_end = progress == 1.0 and self.drop_frozen and self.refresh_rule == "uniform"
            quantizer.stage = "hard" if at_end else "mixed"

    def _apply_all(self) -> None:
        self._weaken_surrogates()
        super()._apply_all()

    def _advance(self) -> None:
        super()._advance()
        self._weaken_surrogates()

    def _weaken_surrogates(self) -> None:
        """Set the strength of all surrogates for the present step."""
        if self.ste_strength is None:
            return
        run = Window("", 0, self.total_steps)
        for window, masked in zip(self.windows, self._masked, strict=True):
            done = (run if self.ste_span == "run" else window).progress(self.steps_taken)
            for quantizer in masked.values():
                quantizer.set_strength(linear(*self.ste_strength, done))

    def _field(self, index: int, role: str) -> Field:
        unit = self.units[index]
        if (index, role) not in self._fields:
            key = (self.seed, unit.name, role)
            self._fields[index, role] = Field(
                key, self._shape(unit, role), self.refresh, self.refresh_rule, self._device(unit)
            )
        return self._fields[index, role]

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {
            "refresh": self.refresh,
            "refresh_rule": self.refresh_rule,
            "targets": self.targets,
            "mask": self.mask_shape,
            "schedule": [round(float(self.schedule(eighth / 8)), 6) for eighth in range(9)],
            "soft_hardness": self.soft_hardness,
            "ste_strength": (self.ste_strength, self.ste_span),
            "drop_frozen": self.drop_frozen,
            "members": sorted(
                {f"{type(q.soft).__name__}, {type(q.ste).__name__}" for masked in self._masked for q in masked.values()}
            ),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and the fields of the units in transition."""
        fields = {f"{self.units[i].name}/{role}": field.state_dict() for (i, role), field in self._fields.items()}
        return super().state_dict() | {"fields": fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bit for bit where ``state`` was saved; see `Progression.load_state_dict`."""
        self._check(state)  # before anything is lost
        self._fields.clear()
        super().load_state_dict(state)
        for (index, role), field in self._fields.items():
            field.load_state_dict(state["fields"][f"{self.units[index].name}/{role}"])


def _smooth(spec: Spec) -> Quantizer:
    soft = resolve(spec)
    if soft is None or not soft.smooth:
        raise UsageError(f"soft must be a smooth quantizer such as 'clip', found {spec!r}")
    return soft


def _check_hardness(ends: tuple[float, float] | None, soft: Spec) -> tuple[float, float] | None:
    """Return the two ends of a window's hardness if there can be such, ``None`` if none are given."""
    member = _smooth(soft)
    if ends is None:
        return None
    if len(ends) != 2 or not all(isinstance(end, (int, float)) and 0 < end < math.inf for end in ends):
        raise UsageError(f"soft_hardness must be two positive numbers, a window's first and last, found {ends!r}")
    if member.hardness is None:
        raise UsageError(f"soft_hardness {tuple(ends)} has nothing to act on: soft {soft!r} has no hardness")
    return float(ends[0]), float(ends[1])


def _check_strength(ends: tuple[float, float] | None, ste: Spec) -> tuple[float, float] | None:
    """Return the surrogate's first and last strength if there can be such, ``None`` if none are given."""
    if ends is None:
        return None
    if ste is None:
        raise UsageError(f"ste_strength {tuple(ends)} has nothing to act on: ste is None, no surrogate passes")
    if len(ends) != 2 or not all(isinstance(end, (int, float)) and 0 <= end < math.inf for end in ends):
        raise UsageError(f"ste_strength must be two numbers of at least 0, first and last, found {ends!r}")
    return float(ends[0]), float(ends[1])


def _surrogate(spec: Spec, role: str) -> Spec:
    """Return the surrogate for a role, from one for all or a ``{"weight": …, "input": …}`` table."""
    if isinstance(spec, Mapping) and "name" not in spec:
        if not set(spec) <= {"weight", "input"}:
            odd = next(key for key in spec if key not in ("weight", "input"))
            raise UsageError(f"ste has no side {odd!r}: {nearest(str(odd), ['weight', 'input'])}")
        return spec.get("input" if role == "input" else "weight")
    return spec
