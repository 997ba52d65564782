"""Flip optimizers: a filter over gradients, a statistic of it, a threshold beyond which a ±1 weight changes sign.

A rule says these three things in elementwise operations and nothing else. How they are run is decided here: over
cache-sized parts of one tensor after another on a CPU, over all tensors of a group at once elsewhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostbit.optim.checks import closest

#: what the operations of a rule act on: one tensor, or a list of tensors
Some = Any
Group = Mapping[str, Any]


class Ops(NamedTuple):
    """The operations that rules are written in, named as in torch; the in-place ones are used as statements."""

    mul: Callable[..., Some]
    sqrt: Callable[..., Some]
    addcmul: Callable[..., Some]
    add_: Callable[..., Any]
    lerp_: Callable[..., Any]
    addcmul_: Callable[..., Any]
    gt_: Callable[..., Any]
    lt_: Callable[..., Any]
    count: Callable[[Some], Any]  # of ones among zeros and ones


def _count(mask: Tensor) -> int:
    # A sum is exact, and eighty times faster, as long as float32 holds every whole number up to it.
    return int(mask.sum() if mask.numel() <= 2**24 else torch.count_nonzero(mask))


def _one_by_one(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Make a foreach operation where torch has none; a list of what ``operation`` returns."""
    return lambda tensors, *rest: [operation(tensor, *rest) for tensor in tensors]


_NAMES = ("mul", "sqrt", "addcmul", "add_", "lerp_", "addcmul_")
SINGLE = Ops(**{name: getattr(Tensor, name) for name in (*_NAMES, "gt_", "lt_")}, count=_count)
FOREACH = Ops(
    **{name: getattr(torch, f"_foreach_{name}") for name in _NAMES},
    **{name: _one_by_one(getattr(Tensor, name)) for name in ("gt_", "lt_")},
    count=_one_by_one(torch.count_nonzero),  # stays on the device: nobody waits for it
)

_CHUNK = 65_536  # entries: five float32 chunks fit a core's second-level cache

Range = tuple[str, Callable[[float], bool]]
FRACTION: Range = ("above 0 and at most 1", lambda x: 0 < x <= 1)
POSITIVE: Range = ("positive and finite", lambda x: 0 < x < float("inf"))
NOT_NEGATIVE: Range = ("at least 0 and finite", lambda x: 0 <= x < float("inf"))


class FlipOptimizer(Optimizer, ABC):
    """Moves weights that are ±1 by flipping them; the base of `Bop`, `Bop2ndOrder`, `CEMA` and `SGDAT`.

    A rule of one's own brings ``moments``, ``ranges``, `filter_` and `flips_where`. Hyper-parameters live in
    ``param_groups`` under their own names, where `HyperSchedule` drives them. Moments are float32 whatever the
    weight's dtype, start at 0 and are not reset by a flip. There is no weight decay. Every group has an ``lr``,
    because torch's schedulers and monitors expect one; unless a rule says otherwise it is 0 and nothing reads it.

    Args:
        params: as every torch optimizer takes them: parameters, ``(name, parameter)`` pairs such as
            `frostbit.binary_parameters` yields, or groups. Each entry must be exactly ±1 (``weight="direct"``).
        defaults: hyper-parameters of groups that do not set their own.

    Raises:
        ValueError: a hyper-parameter outside its range or misspelt; at the first step, and at one before which
            somebody else has written the parameter, other values than ±1.
    """

    #: names of the float32 tensors kept for each parameter
    moments: ClassVar[tuple[str, ...]] = ()
    #: {hyper-parameter: (range in words, test)}
    ranges: ClassVar[dict[str, Range]] = {}

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        #: parameter → torch's count of the writes to it, when this optimizer had last written it
        self._written: dict[Tensor, int] = {}
        super().__init__(params, {"lr": 0.0, **defaults})

    @abstractmethod
    def filter_(self, op: Ops, g: Some, moments: Sequence[Some], group: Group) -> None:
        """Update the moments in place with the gradients ``g``."""

    @abstractmethod
    def flips_where(self, op: Ops, w: Some, moments: Sequence[Some], group: Group, step: int) -> Some:
        """Return new float32 tensors: 1 where the statistic is strictly beyond the threshold, else 0."""

    def flipped_(self, op: Ops, mask: Some, moments: Sequence[Some]) -> None:
        """Take note of which weights flip; most rules do not."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch, after a look at its hyper-parameters."""
        if param_group.get("weight_decay"):
            raise ValueError(f"{type(self).__name__} moves weights of size 1, which cannot decay, found weight_decay")
        for name in param_group:
            close = closest(name, self.defaults, cutoff=0.7)
            if name not in self.defaults and close:
                raise ValueError(f"{type(self).__name__} has no hyper-parameter {name!r}: did you mean {close!r}?")
        self._check_ranges(self.defaults | param_group, self.ranges)
        super().add_param_group(param_group)

    def _check_ranges(self, group: Group, names: Iterable[str]) -> None:
        for name in names:
            words, fits = self.ranges[name]
            value = group[name]
            if not isinstance(value, Real) or not fits(float(value)):
                raise ValueError(f"{type(self).__name__} needs {name} to be {words}, found {value!r}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step over all parameters that have a gradient.

        Args:
            closure: evaluates the model again and returns the loss, as in torch.

        Returns:
            What the closure returned, else ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # a schedule may have moved them; warming up from a learning rate of 0 is torch's own schedulers' right
            self._check_ranges(group, self.ranges.keys() - {"lr"})
            elsewhere: dict[tuple[torch.device, int], list[tuple[dict[str, Any], list[Tensor]]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state_of(parameter, group)
                state["step"] += 1
                tensors = [_local(t) for t in (parameter, parameter.grad, *(state[name] for name in self.moments))]
                if parameter.device.type == "cpu":
                    for part in _chunks(tensors):
                        state["flips"] += self._update(SINGLE, *part, group=group, step=state["step"])
                else:
                    elsewhere.setdefault((parameter.device, state["step"]), []).append((state, tensors))
            for (_, step), rows in elsewhere.items():
                lists = [list(column) for column in zip(*(tensors for _, tensors in rows), strict=True)]
                counts = self._update(FOREACH, *lists, group=group, step=step)
                for (state, _), count in zip(rows, counts, strict=True):
                    state["flips"] = state["flips"] + count
            self._written |= {p: _local(p)._version for p in group["params"] if p.grad is not None}
        return loss

    def _update(self, op: Ops, w: Some, g: Some, *moments: Some, group: Group, step: int) -> Any:
        """Run the rule; return the number of flips of a tensor, or of each tensor of a list."""
        real, g = _float32(w), _float32(g)
        self.filter_(op, g, moments, group)
        mask = self.flips_where(op, real, moments, group, step)
        self.flipped_(op, mask, moments)
        count = op.count(mask)
        if count:  # on a CPU, a part without a flip need not be written back
            op.addcmul_(real, real, mask, value=-2)
            if real is not w:
                _copy_back(w, real)
        return count

    def _state_of(self, parameter: Tensor, group: Group) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if self._written.get(parameter) != _local(parameter)._version:  # somebody else has, since the last step
            self._check(parameter, group)
        if not state:
            state["step"] = 0
            state["flips"] = 0
            for name in self.moments:
                state[name] = torch.zeros_like(parameter, dtype=torch.float32)
        return state

    def _check(self, parameter: Tensor, group: Group) -> None:
        what = f"a parameter of shape {tuple(parameter.shape)}"
        if "param_names" in group:
            index = next(i for i, p in enumerate(group["params"]) if p is parameter)
            what = repr(group["param_names"][index])
        rule = type(self).__name__
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise ValueError(f"{rule} needs dense gradients, found a sparse one of {what}")
        odd = _local(parameter.detach()).abs() != 1
        if odd.any():
            value = _local(parameter.detach())[odd][0].item()
            raise ValueError(
                f"{rule} moves weights that are exactly -1 or +1, found {value:.6g} in {what}: "
                'binarize with weight="direct", or train a latent weight with Adam or SGD'
            )

    def flips(self, parameter: Tensor) -> int:
        """Return how many entries of ``parameter`` have flipped since the first step; of a shard, where sharded."""
        return int(self.state[parameter]["flips"]) if parameter in self.state else 0

    @torch.no_grad()
    def undecided(self, parameter: Tensor) -> float:
        """Return the share of entries that would stay whichever sign they had; of a shard, where sharded.

        For Bop and Bop2ndOrder these are the weights with ``|s| ≤ τ``, whose sign is an accident of the start or of
        the past: a share near 1 says that the threshold decides, near 0 that it hardly acts. Costs two passes over
        the moments. A rule whose ``flips_where`` looks at more than them cannot be asked.
        """
        state = self.state.get(parameter)
        if not state:
            return 1.0
        group = next(group for group in self.param_groups if any(p is parameter for p in group["params"]))
        tensors = [_local(state[name]) for name in self.moments]
        decided = 0
        for moments in _chunks(tensors) if parameter.device.type == "cpu" else [tensors]:
            w = torch.ones_like(moments[0])
            for sign in (w, -w):
                decided += SINGLE.count(self.flips_where(SINGLE, sign, moments, group, state["step"]))
        return 1 - decided / max(1, tensors[0].numel())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Look at the weights again after a copy, a pickle or a loaded state."""
        super().__setstate__(state)
        self._written = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit where ``state_dict`` was saved.

        Raises:
            ValueError: it is that of another rule.
        """
        wanted = {"step", "flips", *self.moments}
        for saved in state_dict["state"].values():
            if set(saved) != wanted:
                found = ", ".join(sorted(saved))
                raise ValueError(f"{type(self).__name__} keeps {', '.join(sorted(wanted))}, the saved state {found}")
        super().load_state_dict(state_dict)
        restore_moments(self, state_dict, self.moments)
        for state in self.state.values():
            state["flips"] = int(state["flips"])


def restore_moments(optimizer: Optimizer, state_dict: dict[str, Any], moments: Iterable[str]) -> None:
    """Take float32 moments as they were saved: torch's own loading has cast them to the parameters' dtype."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    numbers = (number for group in state_dict["param_groups"] for number in group["params"])
    for parameter, number in zip(parameters, numbers, strict=True):
        for name in moments if number in state_dict["state"] else ():
            saved = state_dict["state"][number][name]
            optimizer.state[parameter][name] = torch.zeros_like(parameter, dtype=torch.float32).copy_(saved)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, and any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    part: Tensor = tensor if to_local is None else to_local()
    return part


def _float32(some: Some) -> Some:
    return some.float() if isinstance(some, Tensor) else [tensor.float() for tensor in some]


def _copy_back(some: Some, new: Some) -> None:
    pairs = [(some, new)] if isinstance(some, Tensor) else zip(some, new, strict=True)
    for old, tensor in pairs:
        old.copy_(tensor)


def _chunks(tensors: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into flat parts that fit the cache; leave odd layouts in one piece."""
    shape, stride, entries = tensors[0].shape, tensors[0].stride(), tensors[0].numel()
    span = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if entries <= _CHUNK or span != entries or any(t.stride() != stride for t in tensors):
        yield tuple(tensors)
        return
    yield from zip(*(t.as_strided((entries,), (1,)).split(_CHUNK) for t in tensors), strict=True)
