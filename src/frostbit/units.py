"""Units: what a progression freezes together, an input quantizer and the layers that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from frostbit.errors import UsageError
from frostbit.graph import Call, Graph, trace, walk_back
from frostbit.nn import Binarizer, BinaryLayer, Embedding, MultiheadAttention
from frostbit.quantizers import Quantizer

_RECORD = "_frostbit_units"

#: modules and functions whose output has the sign pattern of their input, for following a tensor back
_PASSING_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Unflatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
_PASSING_FUNCTIONS = {
    "flatten", "reshape", "view", "permute", "transpose", "contiguous", "dropout", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "unsqueeze", "squeeze", "to", "clone", "movedim", "expand",
}  # fmt: skip


def passes_sign(call: Call) -> bool:
    """Whether a call hands the signs of its input on: pooling, dropout and changes of shape."""
    if call.module is None:
        return call.name in _PASSING_FUNCTIONS
    return isinstance(call.module, _PASSING_MODULES)


@dataclass
class Unit:
    """One input quantizer and the binary layers that read it.

    Attributes:
        name: path of its first layer, or of the quantizer's module where no layer reads it.
        input_quantizer: the quantizer, ``None`` where the layers read a real input.
        layers: the layers, possibly none (the last activation of ``placement="activation"``).
        feature_shape: shape of one sample's quantized features, ``[C, H, W]`` for convolutions, ``[D]`` where the
            last dimension holds the features; ``None`` if no real batch has been seen.
    """

    name: str
    input_quantizer: Quantizer | None
    layers: list[BinaryLayer] = field(default_factory=list)
    feature_shape: tuple[int, ...] | None = None

    def weight_quantizers(self) -> Iterator[tuple[str, nn.Parameter, Quantizer]]:
        """Yield (role, latent weight, quantizer) of the unit's layers; the role is stable across runs."""
        for number, layer in enumerate(self.layers):
            for name, parameter, quantizer in layer.latents():
                yield f"{number}.{name}", parameter, quantizer

    def quantizers(self) -> Iterator[Quantizer]:
        """Yield the input quantizer, if any, then the weights'."""
        if self.input_quantizer is not None:
            yield self.input_quantizer
        for _, _, quantizer in self.weight_quantizers():
            yield quantizer


def find_units(model: nn.Module, graph: Graph) -> list[Unit]:
    """Group the binary layers of a converted model by the tensor that they read, in order of first execution."""
    units: dict[tuple[str, int], Unit] = {}

    def unit_for(key: tuple[str, int], name: str, quantizer: Quantizer | None) -> Unit:
        return units.setdefault(key, Unit(name, quantizer))

    for index, call in enumerate(graph.calls):
        module = call.module
        if isinstance(module, Binarizer):
            unit = unit_for(("call", index), call.name, module.input_quantizer)
            unit.feature_shape = _features(call.in_shape, unit)
        elif isinstance(module, BinaryLayer) and call.nth == 0 and _has_quantizer(module):
            source = call.inputs[0] if call.inputs else -1
            activation = walk_back(graph, source, passes_sign) if source >= 0 else -1
            reads = call.in_shape if module.input_quantizer is not None else None
            if module.input_quantizer is None and isinstance(graph.calls[activation].module, Binarizer):
                unit = units["call", activation]
                if not unit.layers:
                    unit.name = call.name
                    reads = graph.calls[activation].in_shape
            elif module.input_quantizer is not None:
                unit = unit_for(("quantizer", id(module.input_quantizer)), call.name, module.input_quantizer)
            else:
                unit = unit_for(("tensor", source), call.name, None)
            unit.layers.append(module)
            if reads is not None:
                unit.feature_shape = _features(reads, unit)
            if isinstance(module, MultiheadAttention):
                _add_output_projection(units, module, call)
    return list(units.values())


def _has_quantizer(layer: BinaryLayer) -> bool:
    return layer.input_quantizer is not None or any(True for _ in layer.latents())


def _add_output_projection(units: dict[tuple[str, int], Unit], attention: MultiheadAttention, call: Call) -> None:
    """An attention module runs its output projection inside: a unit of its own, right after."""
    projection = attention.out_proj
    assert isinstance(projection, BinaryLayer)
    unit = Unit(f"{call.name}.out_proj", projection.input_quantizer, [projection], (attention.embed_dim,))
    units["inside", id(projection)] = unit


def _features(shape: tuple[int, ...] | None, unit: Unit) -> tuple[int, ...] | None:
    """Features of one sample: all but the batch for images and sequences of convolutions, else the last dimension."""
    if shape is None:
        return None
    layer = unit.layers[0] if unit.layers else None
    if layer is None:
        return shape[1:] if len(shape) >= 4 else shape[-1:]
    if isinstance(layer, Embedding):
        return None
    if isinstance(layer, MultiheadAttention):
        return shape[-1:]
    weight = layer.get_parameter("weight")
    if weight.dim() > 2:
        return shape[1:] if len(shape) == weight.dim() else shape
    # where the last dimension is not the layer's input, the features are flattened on the way to it
    return shape[-1:] if shape[-1] == weight.shape[1] else shape[1:]


def units(model: nn.Module, example_input: Any = None) -> list[Unit]:
    """Return the model's units in order of first execution.

    Args:
        model: a converted model, or one built from `frostbit.nn` layers.
        example_input: a batch; needed where `binarize_` did not see one and the model cannot be traced without,
            or to learn feature shapes.

    Returns:
        The units. What a trace found is remembered on the model, so that later calls cost nothing.

    Raises:
        UsageError: the model has no binary layer or activation, or cannot be traced.
    """
    record = getattr(model, _RECORD, None)
    if record is None or example_input is not None:
        found = find_units(model, trace(model, example_input))
        remember(model, found)
        return found
    # Paths, not objects, are remembered: they stay true after deepcopy and pickle.
    result = []
    for entry in record:
        layers = [model.get_submodule(path) for path in entry["layers"]]
        owner = model.get_submodule(entry["quantizer"]) if entry["quantizer"] is not None else None
        result.append(Unit(entry["name"], getattr(owner, "input_quantizer", None), layers, entry["features"]))  # type: ignore[arg-type]  # the record holds paths of binary layers only
    return result


def remember(model: nn.Module, found: list[Unit]) -> None:
    """Store units on the model by path; a plain attribute, so ``state_dict`` is unchanged."""
    if not found:
        raise UsageError(f"{type(model).__name__} has no binary layer: call frostbit.binarize_(model) first")
    paths = {id(module): name for name, module in model.named_modules()}
    owners = {
        id(module.input_quantizer): name
        for name, module in reversed(list(model.named_modules()))
        if isinstance(module, (Binarizer, BinaryLayer)) and module.input_quantizer is not None
    }
    record = [
        {
            "name": unit.name,
            "quantizer": None if unit.input_quantizer is None else owners[id(unit.input_quantizer)],
            "layers": [paths[id(layer)] for layer in unit.layers],
            "features": unit.feature_shape,
        }
        for unit in found
    ]
    setattr(model, _RECORD, record)


def frozen_fraction(model: nn.Module) -> dict[str, float]:
    """Return ``{unit name: share of entries that are exactly ±1}``, the mean over the unit's quantizers."""
    shares = {}
    for unit in units(model):
        each = [quantizer.frozen_share for quantizer in unit.quantizers()]
        shares[unit.name] = sum(each) / len(each)
    return shares


def binary_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of every latent weight, in the order of ``named_parameters``."""
    seen: set[int] = set()  # tied weights count once
    for path, module in model.named_modules():
        if isinstance(module, BinaryLayer):
            for name, parameter, _ in module.latents():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter
