"""What a sweep varies: settings of a recipe, each over choices or a range."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from frostbit.errors import UsageError
from frostbit.training.recipe import Recipe
from frostbit.training.resolve import resolve
from frostbit.training.settings import SETTINGS, Flat, changed, nearest_setting, overlay

if TYPE_CHECKING:
    import optuna

# what has no meaning inside a run, and what would score trials on different samples
_FIXED = ("name", "seeds", "arms", "scales", "scale")
_SCORED = ("data.name", "data.path", "data.limit_train", "data.val_fraction")
# settings that decide which other settings mean anything
_DECIDING = ("method", "optimizer.name", "schedule.name", "progression.kind")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Dimension:
    """One setting and the values it may take: ``choices``, or all from ``low`` to ``high``.

    Args:
        name: dotted name of the setting.
        choices: its values; empty for a range.
        low: lower end of a range, included.
        high: upper end, included.
        log: whether the range is sampled uniformly in the logarithm.
        whole: whether only whole numbers are taken from it.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def values(self) -> tuple[Any, ...]:
        """All choices, or both ends of the range."""
        ends = (int(self.low), int(self.high)) if self.whole else (self.low, self.high)
        return self.choices or ends

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that ``trial`` is to use; numbers from a range have four significant digits."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        value = trial.suggest_float(self.name, self.low, self.high, log=self.log)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


def parse_dimension(text: str) -> Dimension:
    """Read one ``SETTING=VALUES``.

    Args:
        text: values are ``a,b,c`` (choices), ``low:high`` (a range) or ``log:low:high`` (a range, logarithmic).

    Returns:
        The dimension; whether its values suit the setting is for `check_space` to say.

    Raises:
        UsageError: an unknown setting (with the nearest valid name), one that a sweep cannot vary, or no such values.
    """
    import yaml

    name, equals, values = text.partition("=")
    if not equals or not values:
        raise UsageError(f"--over must be SETTING=VALUES such as optimizer.lr=log:1e-3:1, found {text!r}")
    if name in _FIXED or name.startswith("paper."):
        raise UsageError(f"--over cannot vary {name!r}: it is no setting of a single run")
    if name in _SCORED:
        raise UsageError(f"--over cannot vary {name!r}: trials would be scored on different samples")
    if name not in SETTINGS:
        raise UsageError(f"--over: no setting {name!r}: {nearest_setting(name)}")
    found = re.fullmatch(rf"(log:)?({_NUMBER}):({_NUMBER})", values)
    if found:
        low, high = float(found[2]), float(found[3])
        kinds = {*get_args(SETTINGS[name].kind), SETTINGS[name].kind}
        if not kinds & {int, float}:
            raise UsageError(f"--over: {name} is no number and takes no range: list its values, separated by commas")
        if not low < high or (found[1] and low <= 0):
            above = "0 < low < high" if found[1] else "low < high"
            raise UsageError(f"--over: the range of {name} must have {above}, found {values}")
        whole = float not in kinds
        if whole and (low % 1 or high % 1):
            raise UsageError(f"--over: {name} is a whole number, found the range {values}")
        return Dimension(name, low=low, high=high, log=bool(found[1]), whole=whole)
    if values.startswith("log:"):
        raise UsageError(f"--over: a logarithmic range is log:low:high with two numbers, found {values!r}")
    try:
        choices = tuple(yaml.safe_load(item) for item in values.split(","))
    except yaml.YAMLError:
        choices = ([],)
    # YAML 1.1 takes 1e-3 for a word
    choices = tuple(float(item) if isinstance(item, str) and re.fullmatch(_NUMBER, item) else item for item in choices)
    for item in choices:
        if not isinstance(item, bool | int | float | str | None):
            raise UsageError(f"--over: the choices of {name} must be plain values separated by commas, found {values}")
    return Dimension(name, choices)


def check_space(space: Sequence[Dimension], layers: Sequence[Flat], given: Flat) -> Recipe:
    """Check that every value can stand in the recipe and that every dimension changes something.

    Args:
        space: what is varied.
        layers: settings of the recipe and its arm, weakest first.
        given: the command line's settings.

    Returns:
        The recipe around which the sweep varies.

    Raises:
        UsageError: a dimension given twice, a value that its setting cannot have, or a setting that means nothing.
    """
    names = [dimension.name for dimension in space]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--over names {name} twice: give its values once")
        if name in given:
            raise UsageError(f"{name} is both fixed and varied: leave out --{name} or --over {name}=…")
    deciding = [[(d.name, value) for value in d.choices] for d in space if d.name in _DECIDING]
    combinations = [dict(combination) for combination in itertools.product(*deciding)]
    refused = []
    for decided in combinations:
        try:
            resolve(*layers, strict=overlay(given, decided))
        except UsageError as error:
            refused.append(error)
    if len(refused) == len(combinations):
        raise refused[0]
    base = resolve(*layers, given)
    for dimension in space:
        used, reasons = False, []
        for decided in combinations:
            settings = [overlay(given, decided, {dimension.name: value}) for value in dimension.values]
            try:
                recipes = [resolve(*layers, strict=setting) for setting in settings]
            except UsageError as error:
                reasons.append(error)
                continue
            used = used or len(recipes) == 1 or any(changed(recipes[0], recipe) for recipe in recipes[1:])
        if reasons and not used:
            raise reasons[0]
        if not used:
            raise UsageError(f"--over {dimension.name} changes nothing: no other setting here has a use for it")
    return base
