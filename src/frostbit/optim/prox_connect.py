"""ProxConnect: the update rules of binarization as two switches around any torch optimizer.

Nothing of the library's layers is imported here. A layer with binary weights is known by its method ``latents()``,
and a quantizer by its attribute ``at_latent``.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from frostbit.optim.checks import check_maker, check_model, nearest
from frostbit.optim.pairing import check_pairing

Place = Literal["quantized", "latent"]


class Weight(NamedTuple):
    """A binary weight of the model.

    Attributes:
        name: its full name, as without a parametrization.
        latent: the parameter.
        quantizer: holds F and B.
        scale: returns the factor on F, or ``None``.
    """

    name: str
    latent: nn.Parameter
    quantizer: Any
    scale: Callable[[], Tensor | None]

    def quantized(self) -> Tensor:
        """Return F of the latent, the weight that the network computes with."""
        value: Tensor = self.quantizer.value(self.latent.detach(), self.scale())
        return value


class ProxConnect(Optimizer):
    """Any torch optimizer on latent weights, with the update rules of ProxConnect++ as two switches.

    ======================  ====================  =============  ============  =================================
    rule                    layers                ``grad_at``    ``step_from``  update
    ======================  ====================  =============  ============  =================================
    BC                      ``ste_identity``      quantized      latent        ``w* ← w* − η ∇ℓ(sign w*)``
    PC                      ``prox_linear``, …    quantized      latent        ``w* ← w* − η ∇ℓ(P w*)``
    PC++                    ``bnn++``, any        quantized      latent        ``w* ← w* − η B(w*) ⊙ ∇ℓ(F w*)``
    PQ (ProxQuant)          ``prox_linear``, …    quantized      quantized     ``w* ← P w* − η ∇ℓ(P w*)``
    rPC                     ``prox_linear``, …    latent         quantized     ``w* ← P w* − η ∇ℓ(w*)``
    post-training           any                   latent         latent        ``w* ← w* − η ∇ℓ(w*)``
    ======================  ====================  =============  ============  =================================

    F and B live in the layers: this class adds the switches and nothing else, so with their defaults it takes exactly
    the inner optimizer's steps. A parameter always holds the latent ``w*``: momentum, weight decay and gradient
    clipping act as ever, decay on the latent. With ``step_from="quantized"`` the inner optimizer's move, whatever it
    is made of, starts from ``F(w*)``. With ``grad_at="latent"`` the network computes with latent weights in training
    mode, and with quantized ones in evaluation mode and under `frostbit.hardened`; that stays with the layers, until a
    ProxConnect with ``grad_at="quantized"`` is made for them. Other parameters move as ever.

    ``param_groups`` and ``state`` are the inner optimizer's own, so schedulers, gradient scalers and progressions
    (``frostbit.Anneal(…).attach(optimizer)``) take it for any optimizer.

    Args:
        model: a model with binary layers, or a plain one with ``quantizer``.
        optimizer: the class of the inner optimizer, or whatever makes one from parameters.
        grad_at: where the gradient of the binary weights is taken.
        step_from: where their step starts.
        params: parameters or groups for the inner optimizer; all of the model's if left out.
        quantizer: for plain layers: a copy of it becomes the parametrization of each ``weight`` of two or more
            dimensions that has no quantizer yet. Its hardness is yours to set, through `quantizers`; a progression
            drives converted layers only (`frostbit.binarize_`).
        keep: names or globs of plain layers that stay as they are.
        **options: the inner optimizer's, such as ``lr``.

    Attributes:
        inner: the optimizer inside.

    Raises:
        ValueError: no binary weight to move, a direct weight, a switch or a layer name that does not exist, an
            optimizer or a quantizer that is none. The model is then as it was.

    Source: Lu et al., ProxConnect++ (arXiv 2402.17710).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        *,
        grad_at: Place = "quantized",
        step_from: Place = "latent",
        params: Iterable[Any] | None = None,
        quantizer: nn.Module | None = None,
        keep: Sequence[str] = (),
        **options: Any,
    ) -> None:
        check_model("ProxConnect", model)
        for switch, place in (("grad_at", grad_at), ("step_from", step_from)):
            if place not in ("quantized", "latent"):
                raise ValueError(f"{switch} must be 'quantized' or 'latent', found {place!r}")
        check_maker("ProxConnect", optimizer, options)
        if quantizer is None and keep:
            raise ValueError("keep= names plain layers that quantizer= would not touch, found no quantizer=")
        self.model = model
        self.grad_at, self.step_from = grad_at, step_from
        with ExitStack() as undo:
            if quantizer is not None:
                _parametrize(model, quantizer, keep, undo)
            self.inner = optimizer(model.parameters() if params is None else params, **options)
            check_pairing(model, self.inner)
            super().__init__([dict(group) for group in self.inner.param_groups], self.inner.defaults)
            self._link()
            weights = list(self.weights())
            if not weights:
                raise ValueError(
                    f"ProxConnect found no binary weight among the parameters of {type(model).__name__}: "
                    "convert it with frostbit.binarize_, or give quantizer= for plain layers"
                )
            undo.pop_all()
        self._whole = True
        self._tell()

    def _tell(self) -> None:
        for weight in self._held():
            weight.quantizer.at_latent = self.grad_at == "latent"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch, after a look at its binary weights.

        Raises:
            ValueError: a direct weight. The group is not added.
        """
        if not getattr(self, "_whole", False):  # torch's constructor, with the inner optimizer's own groups
            super().add_param_group(param_group)
            return
        self.inner.add_param_group(param_group)
        try:
            check_pairing(self.model, self.inner)
        except ValueError:
            self.inner.param_groups.pop()
            raise
        self._tell()

    def _link(self) -> None:
        """Hold the groups and the state of the inner optimizer, the very same objects."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _held(self) -> Iterator[Weight]:
        """Yield the binary weights that the inner optimizer holds, tied ones as often as layers share them."""
        held = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        return (weight for weight in _weights(self.model) if id(weight.latent) in held)

    def weights(self) -> Iterator[Weight]:
        """Yield the binary weights that the inner optimizer holds, each once, as the model has them now."""
        seen: set[int] = set()
        for weight in self._held():
            if id(weight.latent) not in seen:
                seen.add(id(weight.latent))
                yield weight

    @property
    def quantizers(self) -> dict[str, Any]:
        """The quantizers of the binary weights, by the weight's name; each layer that shares one has its own."""
        return {weight.name: weight.quantizer for weight in self._held()}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; see `torch.optim.Optimizer.step`.

        Args:
            closure: evaluates the model again and returns the loss, as in torch.

        Returns:
            What the closure returned, else ``None``.

        Raises:
            RuntimeError: a quantizer was replaced since (by a progression, say) and takes its gradient elsewhere.
        """
        if self.grad_at == "quantized" and self.step_from == "latent":
            return self.inner.step(closure)
        weights = list(self.weights())
        for name, quantizer in self.quantizers.items():
            if quantizer.at_latent != (self.grad_at == "latent"):
                raise RuntimeError(
                    f"the quantizer of {name!r} was replaced after ProxConnect was made, and the new one ignores "
                    f"grad_at={self.grad_at!r}: make the progression first"
                )
        if self.step_from == "latent":
            return self.inner.step(closure)
        with torch.no_grad():
            latents: list[Tensor] = [weight.latent for weight in weights]
            shifts = torch._foreach_sub([weight.quantized() for weight in weights], latents)
        loss = self.inner.step(closure)
        moved = [(w, shift) for w, shift in zip(latents, shifts, strict=True) if w.grad is not None]
        if moved:
            with torch.no_grad():
                torch._foreach_add_([w for w, _ in moved], [shift for _, shift in moved])
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the inner optimizer's state, the switches, and how hard each quantizer is."""
        hardness = {
            name: (None if q.hardness is None else q.hardness.item(), q.finished) for name, q in self.quantizers.items()
        }
        own = {"grad_at": self.grad_at, "step_from": self.step_from, "hardness": hardness}
        return {**self.inner.state_dict(), "prox_connect": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit where ``state_dict`` was saved.

        Raises:
            ValueError: it is not of a ProxConnect with the same switches and weights.
        """
        own = state_dict.get("prox_connect", {})
        for key in ("grad_at", "step_from"):
            if own.get(key) != getattr(self, key):
                raise ValueError(f"this ProxConnect has {key}={getattr(self, key)!r}, the saved state {own.get(key)!r}")
        quantizers = self.quantizers
        if set(own["hardness"]) != set(quantizers):
            odd = sorted(set(own["hardness"]) ^ set(quantizers))[0]
            raise ValueError(f"this ProxConnect and the saved one do not have the same binary weights: see {odd!r}")
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != "prox_connect"})
        self._link()
        for name, (hardness, finished) in own["hardness"].items():
            if hardness is not None:
                quantizers[name].hardness.fill_(hardness)
            quantizers[name].finished = finished

    def __getstate__(self) -> dict[str, Any]:
        """Keep the model and the inner optimizer in copies and pickles."""
        own = ("model", "inner", "grad_at", "step_from", "_whole")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}


def _weights(model: nn.Module) -> Iterator[Weight]:
    """Yield every binary weight of a model, shared ones as often as layers share them."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if callable(getattr(module, "latents", None)):
            for name, parameter, quantizer in module.latents():
                yield Weight(prefix + name, parameter, quantizer, _scale_of(module, name, parameter))
        elif parametrize.is_parametrized(module):
            chains: dict[str, Any] = dict(module.parametrizations.items())
            for name, chain in chains.items():
                if hasattr(chain[0], "at_latent"):
                    yield Weight(prefix + name, chain.original, chain[0], lambda: None)


def _scale_of(layer: Any, name: str, latent: nn.Parameter) -> Callable[[], Tensor | None]:
    if name == "weight" or layer.weight_scale is None:
        return lambda: layer.scale() if layer.weight_scale is not None else None
    return lambda: latent.detach().abs().mean(1, keepdim=True)  # a projection of attention: one filter a row


def _parametrize(model: nn.Module, quantizer: nn.Module, keep: Sequence[str], undo: ExitStack) -> None:
    if not hasattr(quantizer, "at_latent"):
        raise ValueError(f"quantizer must be one of frostbit.quantizers.create(name), found {quantizer!r}")
    if getattr(quantizer, "direct", False):
        raise ValueError("ProxConnect moves latent weights: a direct weight, always -1 or +1, has none")
    plain = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() >= 2 and not callable(getattr(module, "latents", None)):
            plain[name] = module
    for pattern in keep:
        if not fnmatch.filter(plain, pattern):
            raise ValueError(f"keep names no plain layer {pattern!r}: {nearest(pattern, plain)}")
    for name, module in plain.items():
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in keep):
            undo.callback(_unparametrize, module, dict(module._parameters))
            parametrize.register_parametrization(module, "weight", copy.deepcopy(quantizer))


def _unparametrize(module: nn.Module, parameters: dict[str, nn.Parameter | None]) -> None:
    if parametrize.is_parametrized(module, "weight"):
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    module._parameters.clear()  # it comes back at the end, and optimizers go by the order
    module._parameters.update(parameters)
