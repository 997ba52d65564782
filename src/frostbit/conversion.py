"""The steps of `frostbit.binarize_`, each of which can be undone, and its report."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from frostbit import keep as keep_rules
from frostbit import nn as fnn
from frostbit.counting import can_count, layer_macs, matrices
from frostbit.errors import UsageError
from frostbit.graph import LAYER_FUNCTIONS, Call, Graph, trace
from frostbit.nn.layers import BinaryLayer
from frostbit.nn.per_call import PerCall
from frostbit.quantizers import Quantizer, Spec, resolve
from frostbit.registry import check_choice
from frostbit.signs import look_at_signs
from frostbit.units import ends_of_sign, find_units, refuse_second_call, remember

Placement = Literal["input", "activation"]

_BINARY_CLASS: dict[type[nn.Module], type[BinaryLayer]] = {
    nn.Linear: fnn.Linear,
    nn.Conv1d: fnn.Conv1d,
    nn.Conv2d: fnn.Conv2d,
    nn.Conv3d: fnn.Conv3d,
    nn.ConvTranspose1d: fnn.ConvTranspose1d,
    nn.ConvTranspose2d: fnn.ConvTranspose2d,
    nn.ConvTranspose3d: fnn.ConvTranspose3d,
    nn.Embedding: fnn.Embedding,
    nn.MultiheadAttention: fnn.MultiheadAttention,
}
_RELUS = (nn.ReLU, nn.ReLU6)
#: left out before a sign: a ReLU is never negative; a GELU, whose sign is its input's, underflows to -0 near -6, which
#: counts as +1, and has a negative slope below -0.75
_NOT_BEFORE_SIGN = (*_RELUS, nn.GELU)
#: torch's modules with an inference fast path, and the attribute without which they do not take it
_FAST_PATHS = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
_LAYER_OPTIONS = ("weight_scale", "pad_value", "latent_clip", "accumulator_bits")
_OVERRIDABLE = ("weight", "input", *_LAYER_OPTIONS)


@dataclass
class Report:
    """What `binarize_` did.

    Attributes:
        converted: layer name → one phrase.
        kept: layer name → why it stayed real.
        activations: activation name → what became of it.
        binary_macs: share of multiply-accumulates that use binary weights, ``None`` where no batch was seen.
        one_sided: layer or activation → share of its input's channels whose sign says nothing, see
            `frostbit.signs.look_at_signs`; those from 5 % on.
    """

    converted: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    binary_macs: float | None = None
    one_sided: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        share = "unknown without example_input" if self.binary_macs is None else f"{self.binary_macs:.1%}"
        lines = [f"{len(self.converted)} layers binary, {len(self.kept)} kept real; binary MACs: {share}"]
        signs = {
            name: f"{share:.1%} of its input's channels are never negative" for name, share in self.one_sided.items()
        }
        titles = ("binary", "kept", "activations", "signs that say nothing")
        for title, rows in zip(titles, (self.converted, self.kept, self.activations, signs), strict=True):
            width = max(map(len, rows), default=0)
            lines += [f"{title}:"] if rows else []
            lines += [f"  {name:<{width}}  {text}" for name, text in rows.items()]
        return "\n".join(lines)


class Conversion:
    """The state of one `binarize_` call: each step can be undone."""

    def __init__(
        self, model: nn.Module, graph: Graph, placement: Placement, own_overrides: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.model = model
        self.own_overrides = own_overrides
        self.graph = graph
        self.placement = placement
        self.report = Report()
        self.undos: list[Callable[[], Any]] = []

    def undo(self) -> None:
        """Put the model back as it was."""
        for step in reversed(self.undos):
            step()

    def weight_layers(self) -> list[tuple[str, nn.Module]]:
        """Return the weight layers that run, in order of first execution; odd ones go to ``report.kept`` as well."""
        found: dict[nn.Module, str] = {}
        for call in self.graph.calls:
            module, reason = call.module, _why_real(call)
            if reason is not None:
                self.report.kept[call.name if module is not None else f"{call.name}()"] = reason
            if module is not None and (type(module) in _BINARY_CLASS or (reason is not None and can_count(module))):
                found.setdefault(module, call.name)
        for name, module in self.model.named_modules():
            if type(module) in _BINARY_CLASS and module not in found:
                self.report.kept[name] = "not called in the forward pass that was traced"
        return [(name, module) for module, name in found.items()]

    def layers(
        self,
        weight: Spec,
        input: Spec,
        keep: keep_rules.Spec,
        overrides: Mapping[str, Mapping[str, Any]],
        options: Mapping[str, Any],
        accumulator_bits: int | None,
    ) -> None:
        """Convert the weight layers that the keep rule leaves."""
        running = self.weight_layers()
        ordered = [(name, module) for name, module in running if name not in self.report.kept]
        if not ordered:
            raise UsageError(f"{type(self.model).__name__} has no layer that can become binary")
        rule = keep_rules.resolve(keep, running)
        self.report.kept |= {name: "kept by the keep rule" for name, module in ordered if rule(module, name)}
        self._check_overrides(overrides, [name for name, _ in ordered])
        shared: dict[int, Quantizer | None] = {}
        for name, module in ordered:
            if name in self.report.kept:
                continue
            if len(self.graph.of(module)) > 1:
                refuse_second_call("layer", name)
            settings: dict[str, Any] = {"weight": weight, "input": input, **options}
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                settings["pad_value"] = 0.0  # it pads nothing; asked for by name in overrides, it is an error
            own_input = False
            for pattern, changes in (*self.own_overrides.items(), *overrides.items()):
                if fnmatch.fnmatchcase(name, pattern):
                    settings |= changes
                    own_input = own_input or "input" in changes
            quantize_input = self.placement == "input" and not isinstance(module, nn.Embedding)
            in_spec = settings["input"] if quantize_input else None
            if settings["weight"] is None and in_spec is None:
                self.report.kept[name] = "neither its weight nor its input was to be binary"
                continue
            of_signs = settings["weight"] is not None and in_spec is not None
            settings.setdefault("accumulator_bits", accumulator_bits if of_signs else None)
            source = self.graph.calls[self.graph.of(module)[0]].inputs[:1]
            quantizer = resolve(in_spec)
            if source and not own_input:  # layers reading one tensor share its quantizer
                quantizer = shared.setdefault(source[0], quantizer)
            self._convert(module, settings, quantizer)
            specs = f"weight {_describe(settings['weight'])}, input {_describe(in_spec)}"
            self.report.converted[name] = f"{type(module).__name__}, {specs}"
        self._check_tied()
        if not self.report.converted and not (weight is None and self.placement == "activation"):
            raise UsageError(f"the keep rule keeps all {len(ordered)} layers: pass another keep=, or None for nothing")
        if accumulator_bits is not None and not any(getattr(m, "accumulator_bits", None) for _, m in ordered):
            raise UsageError("accumulator_bits is for sums of ±1 products: no layer has a binary weight and input")

    def _check_tied(self) -> None:
        """Refuse to turn a weight into signs that a real layer reads too."""
        binary = [(name, m) for name, m in self.model.named_modules() if isinstance(m, BinaryLayer)]
        direct = {id(p): name for name, layer in binary for _, p, quantizer in layer.latents() if quantizer.direct}
        for name, module in self.model.named_modules():
            own = {id(p) for _, p, _ in module.latents()} if isinstance(module, BinaryLayer) else set()
            for parameter in module.parameters(recurse=False):
                if id(parameter) in direct and id(parameter) not in own:
                    raise UsageError(
                        f"{name!r} stays real and shares the weight of {direct[id(parameter)]!r}: a direct weight "
                        "would be -1 or +1 in both, so keep both or neither"
                    )

    def _check_overrides(self, overrides: Mapping[str, Mapping[str, Any]], names: list[str]) -> None:
        open_names = [name for name in names if name not in self.report.kept]
        for pattern, changes in overrides.items():
            keep_rules.check_matches("overrides", pattern, names)
            if not fnmatch.filter(open_names, pattern):
                raise UsageError(f"overrides: {pattern!r} matches only layers that keep= leaves real")
            if not isinstance(changes, Mapping):
                raise UsageError(f"overrides[{pattern!r}] must be a table such as {{'weight': …}}, found {changes!r}")
            if "input" in changes and self.placement == "activation":
                raise UsageError(
                    f"overrides[{pattern!r}]: with placement='activation' no layer has an input quantizer of its own, "
                    "activations have: leave 'input' out, or use placement='input'"
                )
            for option in changes:
                check_choice(f"option in overrides[{pattern!r}]", option, _OVERRIDABLE)

    def _convert(self, module: nn.Module, settings: dict[str, Any], quantizer: Quantizer | None) -> None:
        before, attributes = type(module), set(module.__dict__)
        children = list(module.named_children())
        projection = module.out_proj if isinstance(module, nn.MultiheadAttention) else None
        projection_class = type(module.out_proj) if isinstance(module, nn.MultiheadAttention) else nn.Linear

        def back() -> None:
            if projection is not None:
                _strip(projection, projection_class)
            for extra in set(module._modules) - {name for name, _ in children}:
                del module._modules[extra]
            for extra in set(module.__dict__) - attributes:
                del module.__dict__[extra]
            module.__class__ = before

        self.undos.append(back)
        weight = resolve(settings["weight"])
        if weight is not None and weight.direct:  # only signs will be left of the values
            self.undos += [partial(p.data.copy_, p.detach().clone()) for p in module.parameters()]
        options = {name: settings[name] for name in _LAYER_OPTIONS}
        _BINARY_CLASS[before].from_float(module, weight_quantizer=weight, input_quantizer=quantizer, **options)

    def activations(self, input: Spec) -> None:
        """Turn ReLUs into binarizers, or ReLUs and GELUs into identities where an input quantizer reads them."""
        replaced: dict[nn.Module, dict[int, nn.Module]] = {}
        if self.placement == "activation" and input is None:
            return  # a weights-only network keeps its ReLUs in either placement
        if self.placement == "activation":
            for call in self.graph.calls:
                if isinstance(call.module, _RELUS):
                    replaced.setdefault(call.module, {})[call.nth] = fnn.Binarizer(input)
                    self.report.activations[self._call_name(call)] = f"becomes {_describe(input)}"
                elif call.module is None and call.name in ("relu", "relu_", "relu6"):
                    raise UsageError(
                        f"{type(self.model).__name__} calls {call.name!r} as a function, which cannot be replaced: "
                        "use an nn.ReLU module, or placement='input'"
                    )
            if not replaced:
                raise UsageError(f"placement='activation' found no ReLU in {type(self.model).__name__}: use 'input'")
        else:
            for index, name in self._activations_before_quantizers():
                call = self.graph.calls[index]
                assert call.module is not None
                replaced.setdefault(call.module, {})[call.nth] = nn.Identity()
                self.report.activations[self._call_name(call)] = f"becomes the identity: {name} takes its sign"
        for module, by_call in replaced.items():
            self._replace_activation(module, by_call)

    def _call_name(self, call: Call) -> str:
        assert call.module is not None
        return call.name if len(self.graph.of(call.module)) == 1 else f"{call.name} (call {call.nth + 1})"

    def _activations_before_quantizers(self) -> list[tuple[int, str]]:
        found: dict[int, str] = {}
        for call in self.graph.calls:
            layer = call.module
            if not isinstance(layer, BinaryLayer) or layer.input_quantizer is None or not call.inputs:
                continue
            operands = call.inputs if isinstance(layer, nn.MultiheadAttention) else call.inputs[:1]
            for index in dict.fromkeys(end for operand in operands for end in ends_of_sign(self.graph, operand)):
                source = self.graph.calls[index]
                if isinstance(source.module, _NOT_BEFORE_SIGN):
                    found.setdefault(index, call.name)
                elif source.module is None and source.name in ("relu", "relu_", "relu6"):
                    raise UsageError(
                        f"the input of {call.name!r} comes from the function {source.name!r}, so its sign would be +1 "
                        "always: use an nn.ReLU module there, so that it can become the identity"
                    )
        return list(found.items())

    def _replace_activation(self, module: nn.Module, by_call: dict[int, nn.Module]) -> None:
        by_turn = [by_call.get(n, module) for n in range(len(self.graph.of(module)))]
        alike = len(by_turn) == 1 or all(isinstance(each, nn.Identity) for each in by_turn)
        new = by_turn[0] if alike else PerCall(by_turn)
        new.train(module.training)
        places = []
        for path, child in list(self.model.named_modules(remove_duplicate=False)):
            if child is module:
                places.append(path)
                self.undos.append(partial(self.model.set_submodule, path, module))
                self.model.set_submodule(path, new)
        if isinstance(new, PerCall):
            self.undos += new.follow(self.model, places)

    def leave_fast_paths(self) -> None:
        """Switch off torch's inference fast paths: they read weights past the forward of the layers."""
        for module in self.model.modules():
            for kind, flag in _FAST_PATHS.items():
                if isinstance(module, kind) and getattr(module, flag, False):
                    self.undos.append(partial(setattr, module, flag, getattr(module, flag)))
                    setattr(module, flag, False)

    def finish(self, batch: Any, min_binary_macs: float) -> None:
        """Remember the units, count, and check that no quantizer is constant on the batch."""
        if batch is None:
            remember(self.model, find_units(self.model, trace(self.model)))
            return
        graph = trace(self.model, batch)
        units = find_units(self.model, graph)
        self.report.one_sided = look_at_signs(self.model, batch, units)
        self.undos.append(lambda: self.model.__dict__.pop("_frostbit_units", None))
        remember(self.model, units)
        macs = layer_macs(graph)
        total = sum(count for _, count in macs.values())
        binary = sum(count for is_binary, count in macs.values() if is_binary)
        self.report.binary_macs = share = binary / total if total else 0.0
        if share < min_binary_macs:
            rest = max(((count, name) for name, (is_binary, count) in macs.items() if not is_binary), default=(0, "-"))
            raise UsageError(
                f"only {share:.1%} of the multiply-accumulates became binary, expected {min_binary_macs:.0%} "
                f"(largest real layer: {rest[1]}, {rest[0] / total:.1%}): change keep=, or pass min_binary_macs="
            )


def _why_real(call: Call) -> str | None:
    """Say why a call with a weight cannot become that of a binary layer, ``None`` where it can or has no weight."""
    module = call.module
    if module is None:
        return "called as a function, which cannot be replaced" if call.name in LAYER_FUNCTIONS else None
    kind = type(module).__name__
    base = next((base for base in _BINARY_CLASS if isinstance(module, base)), None)
    if is_parametrized(module):
        return "it is parametrized"
    if base is None:
        counted = "" if can_count(module) else "; its multiply-accumulates are not counted"
        return f"{kind} has no binary form{counted}" if matrices(module) else None
    if type(module) is not base:
        own = type(module).forward is not base.forward
        limit = " with a forward of its own" if own else ": only torch's own layers are converted"
        return f"{kind} is a subclass of {base.__name__}{limit}"
    if base is not nn.MultiheadAttention and module._parameters.get("weight") is None:
        return "its weight is made anew before each call"  # torch's older weight_norm and spectral_norm
    return None


def _strip(module: nn.Module, before: type[nn.Module]) -> None:
    for name in ("weight_quantizer", "input_quantizer", *_LAYER_OPTIONS):
        module._modules.pop(name, None)
        module.__dict__.pop(name, None)
    module.__class__ = before


def _describe(spec: Spec) -> str:
    if spec is None or isinstance(spec, str):
        return spec or "real"
    if isinstance(spec, Mapping):
        return str(spec["name"])
    return type(spec).__name__ if isinstance(spec, Quantizer) else "(F, B)"
