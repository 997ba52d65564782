"""Keep rules: which layers stay real. A rule is a function (module, name) -> bool, True to keep."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from frostbit.errors import UsageError
from frostbit.registry import nearest

Rule = Callable[[nn.Module, str], bool]
#: what `binarize_` accepts: a rule, a name or glob, several of these, or None for nothing
Spec = Rule | str | Iterable[str] | None

_SHORTCUT_NAMES = {"downsample", "shortcut", "skip"}


def none(module: nn.Module, name: str) -> bool:
    """Keep nothing: every convertible layer becomes binary."""
    return False


def downsample(module: nn.Module, name: str) -> bool:
    """Keep 1×1 convolutions on a shortcut: strided ones, and those under ``downsample``, ``shortcut``, ``skip``."""
    kernel = getattr(module, "kernel_size", None)
    if not isinstance(kernel, tuple) or any(k != 1 for k in kernel):
        return False
    stride = getattr(module, "stride", ())
    return any(s > 1 for s in stride) or bool(_SHORTCUT_NAMES & set(name.split(".")))


def depthwise(module: nn.Module, name: str) -> bool:
    """Keep depthwise convolutions: those that give each input channel filters of its own."""
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == getattr(module, "in_channels", 0)


class FirstLast:
    """Keep the first and the last weight layer in order of execution, and whatever ``also`` keeps.

    Embeddings look the input up, so all of them count as first. Such a rule depends on the network's order, so
    `binarize_` asks `for_layers` for the rule of one network.

    Args:
        also: a further rule.
    """

    def __init__(self, also: Rule = none) -> None:
        self.also = also

    def for_layers(self, ordered: Sequence[tuple[str, nn.Module]]) -> Rule:
        """Return the rule for a network whose weight layers run in the order given."""
        ends = {ordered[0][0], ordered[-1][0]} if ordered else set()
        return lambda module, name: name in ends or isinstance(module, nn.Embedding) or self.also(module, name)

    def __call__(self, module: nn.Module, name: str) -> bool:
        """Say what is known of one layer alone: only whether ``also`` keeps it."""
        return self.also(module, name)


first_last = FirstLast()
#: the papers' usual choice
first_last_downsample = FirstLast(downsample)
#: the usual choice, and depthwise convolutions real as well
first_last_depthwise = FirstLast(lambda module, name: downsample(module, name) or depthwise(module, name))
#: the model's own rule where it brings one (see `binarize_`), else `first_last_downsample`
default = FirstLast(downsample)


def resolve(spec: Spec, ordered: Sequence[tuple[str, nn.Module]]) -> Rule:
    """Turn what a user may write into a rule for one network.

    Args:
        spec: a rule, one of ``"none"``, ``"first_last"``, ``"first_last_downsample"``, ``"first_last_depthwise"``, a
            layer name or glob, an iterable of names or globs, or ``None`` for nothing.
        ordered: (name, layer) of the convertible layers in order of execution.

    Returns:
        The rule.

    Raises:
        UsageError: a name or glob matches no layer; the message holds the nearest valid name.
    """
    named: dict[str, Rule] = {
        "none": none,
        "first_last": first_last,
        "first_last_downsample": first_last_downsample,
        "first_last_depthwise": first_last_depthwise,
    }
    if isinstance(spec, str) and spec in named:
        spec = named[spec]
    if spec is None:
        return none
    if isinstance(spec, FirstLast):
        return spec.for_layers(ordered)
    if callable(spec):
        return spec
    patterns = [spec] if isinstance(spec, str) else list(spec) if isinstance(spec, Iterable) else [spec]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"keep must be a rule (module, name) -> bool, or names or globs of layers, found {spec!r}")
    names = [name for name, _ in ordered]
    for pattern in patterns:
        check_matches("keep", pattern, names, also=named)
    return lambda module, name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_matches(what: str, pattern: str, names: Sequence[str], also: Iterable[str] = ()) -> None:
    """Raise if a name or glob matches none of ``names``: a typo here would silently change the network."""
    if not fnmatch.filter(names, pattern):
        raise UsageError(f"{what}: {pattern!r} matches no convertible layer, {nearest(pattern, [*names, *also])}")
