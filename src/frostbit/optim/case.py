"""One optimizer made of several: each parameter goes to the rule that its case names."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostbit.optim.base import FlipOptimizer
from frostbit.optim.checks import check_maker, check_model, closest
from frostbit.optim.pairing import binary_weights, check_pairing

#: (module that owns the parameter, the parameter's full name, the parameter) -> whether the case claims it
Predicate = Callable[[nn.Module, str, nn.Parameter], bool]
#: an optimizer class, or whatever makes an optimizer from parameters, and its keyword arguments
Rule = tuple[Callable[..., Optimizer], Mapping[str, Any]]


class CaseOptimizer(Optimizer):
    """Routes each trainable parameter of a model to one of several optimizers, and is one optimizer itself.

    ::

        CaseOptimizer(model, {"binary": (Bop2ndOrder, dict(gamma=1e-5))}, default=(torch.optim.Adam, dict(lr=1e-2)))

    ``param_groups`` are the groups of the optimizers inside, so schedulers drive them; the default's come first.
    There is one ``state_dict``. A closure is evaluated once for all.

    Args:
        model: the model; its parameters must not be replaced afterwards.
        cases: case → (optimizer class, keyword arguments). A case is ``"binary"`` (the binary weights of
            `frostbit.nn` layers), a parameter's full name or a glob of names, or a function
            ``(module, name, parameter) -> bool``.
        default: the same for all parameters that no case claims; ``None`` if there must be none.

    Attributes:
        optimizers: case, or ``"default"`` → the optimizer inside.

    Raises:
        ValueError: a parameter that no case claims, or two; a case that claims none; a flip optimizer on a latent
            weight, or another one on a direct weight; a rule that is no (class, arguments), or an argument that the
            class does not take. The message names the parameter or the case.
    """

    def __init__(self, model: nn.Module, cases: Mapping[str | Predicate, Rule], default: Rule | None = None) -> None:
        check_model("CaseOptimizer", model)
        if "default" in cases:
            raise ValueError("a case cannot be called 'default': give what all other parameters get as default=")
        rules: dict[str | Predicate, Rule] = {**({} if default is None else {"default": default}), **cases}
        for case, rule in rules.items():
            if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[1], Mapping)):
                raise ValueError(f"{_say(case)} needs (optimizer class, keyword arguments), found {rule!r}")
            check_maker(_say(case), *rule)
        claimed = _claims(model, cases, default is not None)
        self.optimizers: dict[str | Predicate, Optimizer] = {}
        for case, (make, arguments) in rules.items():
            if claimed[case]:  # with every parameter claimed, nothing is left for the default
                self.optimizers[case] = make(claimed[case], **arguments)
                if type(self.optimizers[case]).step is torch.optim.LBFGS.step:
                    raise ValueError(f"{_say(case)}: LBFGS evaluates the model inside its step, so it must be alone")
                check_pairing(model, self.optimizers[case])
        self._whole = False
        super().__init__([dict(group) for inner in self.optimizers.values() for group in inner.param_groups], {})
        self._whole = True
        self._link()

    def _link(self) -> None:
        """Hold the groups and the state of the optimizers inside, the very same objects."""
        self.param_groups = [group for inner in self.optimizers.values() for group in inner.param_groups]
        shared: defaultdict[Tensor, Any] = defaultdict(dict)
        for inner in self.optimizers.values():
            shared.update(inner.state)
        for inner in self.optimizers.values():
            inner.state = shared
        self.state = shared

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: the parameters are those of the model."""
        if self._whole:
            raise RuntimeError("CaseOptimizer holds the model's parameters: make a new one after adding to the model")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with every optimizer inside; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self.optimizers.values():
            inner.step()
        return loss

    def flips(self, parameter: Tensor) -> int:
        """Return how many entries of a parameter have flipped since the first step; see `FlipOptimizer.flips`.

        Raises:
            ValueError: no flip optimizer holds the parameter.
        """
        return self.rule_of(parameter).flips(parameter)

    def undecided(self, parameter: Tensor) -> float:
        """Return the share of a parameter's entries that would stay whichever sign they had.

        See `FlipOptimizer.undecided`.

        Raises:
            ValueError: no flip optimizer holds the parameter.
        """
        return self.rule_of(parameter).undecided(parameter)

    def rule_of(self, parameter: Tensor) -> FlipOptimizer:
        """Return the flip optimizer that holds a parameter.

        Raises:
            ValueError: there is none.
        """
        for inner in self.optimizers.values():
            held = (p for group in inner.param_groups for p in group["params"])
            if isinstance(inner, FlipOptimizer) and any(p is parameter for p in held):
                return inner
        raise ValueError(f"no flip optimizer holds this parameter of shape {tuple(parameter.shape)}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit where ``state_dict`` was saved.

        Raises:
            ValueError: it has another number of groups, or groups of other sizes.
        """
        groups = list(state_dict["param_groups"])
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"this optimizer has {len(self.param_groups)} parameter groups, the saved one {len(groups)}"
            )
        for inner in self.optimizers.values():
            mine = [groups.pop(0) for _ in inner.param_groups]
            numbers = {number for group in mine for number in group["params"]}
            state = {number: value for number, value in state_dict["state"].items() if number in numbers}
            inner.load_state_dict({"state": state, "param_groups": mine})
        self._link()

    def __getstate__(self) -> dict[str, Any]:
        """Keep the optimizers inside in copies and pickles."""
        return {**super().__getstate__(), "optimizers": self.optimizers, "_whole": True}


def _claims(
    model: nn.Module, cases: Mapping[str | Predicate, Rule], has_default: bool
) -> dict[str | Predicate, list[tuple[str, nn.Parameter]]]:
    """Give each trainable parameter to its one case, or to "default"."""
    binary = {id(parameter) for _, parameter, _ in binary_weights(model)}
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}  # tied weights have several
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                places.setdefault(parameter, []).append((module, f"{path}.{name}" if path else name))

    def claims(case: str | Predicate, parameter: nn.Parameter) -> bool:
        if case == "binary":
            return id(parameter) in binary
        if isinstance(case, str):
            return any(fnmatch.fnmatchcase(name, case) for _, name in places[parameter])
        return any(case(module, name, parameter) for module, name in places[parameter])

    claimed: dict[str | Predicate, list[tuple[str, nn.Parameter]]] = {case: [] for case in (*cases, "default")}
    for parameter, ((_, name), *_) in places.items():
        takers = [case for case in cases if claims(case, parameter)]
        if len(takers) > 1:
            raise ValueError(f"parameter {name!r} is claimed by {_say(takers[0])} and by {_say(takers[1])}")
        if not takers and not has_default:
            raise ValueError(f"parameter {name!r} is claimed by no case: add one, or give default=")
        claimed[takers[0] if takers else "default"].append((name, parameter))
    for case in cases:
        if not claimed[case]:
            names = [name for rows in claimed.values() for name, _ in rows]
            close = closest(case, [*names, "binary"]) if isinstance(case, str) else None
            tail = f", did you mean {close!r}?" if close else ""
            raise ValueError(f"{_say(case)} claims no trainable parameter of {type(model).__name__}{tail}")
    return claimed


def _say(case: str | Predicate) -> str:
    if case == "default":
        return "default="
    return f"case {case!r}" if isinstance(case, str) else f"the case {getattr(case, '__name__', case)!r}"
