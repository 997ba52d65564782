"""Units: what a progression freezes together, an input quantizer and the layers that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from frostbit.errors import UsageError
from frostbit.graph import Call, Graph, trace, walk_back
from frostbit.nn import Binarizer, BinaryLayer, Embedding, MultiheadAttention
from frostbit.quantizers import Quantizer

_RECORD = "_frostbit_units"

#: modules and functions whose output has the sign pattern of their input, for following a tensor back
_PASSING_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Flatten, nn.Unflatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Upsample, nn.ZeroPad2d, nn.Unfold,
)  # fmt: skip
_PASSING_FUNCTIONS = {
    "flatten", "unflatten", "reshape", "view", "permute", "transpose", "contiguous", "movedim", "expand", "unsqueeze",
    "squeeze", "to", "clone", "chunk", "split", "tensor_split", "unbind", "narrow", "getitem", "__getitem__", "roll",
    "pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "interpolate", "dropout", "mean", "amax",
    *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)),
}  # fmt: skip
#: functions whose output has the signs of all tensors that they are given
_JOINING_FUNCTIONS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"}


#: what may bring another dimension to the end without a change of rank
_MOVING_FUNCTIONS = {"reshape", "view", "permute", "transpose", "movedim", "swapaxes", "swapdims", "t"}
#: layers whose features are the last dimension; not their subclasses, which may move channels there and back
_FEATURES_LAST = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, MultiheadAttention, nn.LSTM, nn.GRU)


def passes_sign(call: Call) -> bool:
    """Whether a call hands the signs of its input on: pooling, dropout and changes of shape."""
    if call.module is None:
        return call.name in _PASSING_FUNCTIONS
    return isinstance(call.module, _PASSING_MODULES)


def ends_of_sign(graph: Graph, index: int) -> Iterator[int]:
    """Yield the calls that decide the signs in the result of call ``index``, each operand of a join included."""
    call = graph.calls[index]
    if call.module is None and call.name in _JOINING_FUNCTIONS:
        for source in call.inputs:
            yield from ends_of_sign(graph, source)
    elif passes_sign(call) and call.inputs:
        yield from ends_of_sign(graph, call.inputs[0])
    else:
        yield index


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


def refuse_second_call(what: str, name: str) -> NoReturn:
    """Raise: what is called twice in a forward pass has no one place in the order of units."""
    raise UsageError(
        f"{what} {name!r} is called more than once in a forward pass: a progression cannot freeze it; "
        "give each call one of its own, or keep it real"
    )


def find_units(model: nn.Module, graph: Graph) -> list[Unit]:
    """Group the binary layers of a converted model by the tensor that they read, in order of first execution.

    Raises:
        UsageError: a layer or an activation is called twice.
    """
    units: dict[tuple[str, int], Unit] = {}

    def unit_for(key: tuple[str, int], name: str, quantizer: Quantizer | None) -> Unit:
        return units.setdefault(key, Unit(name, quantizer))

    for index, call in enumerate(graph.calls):
        module = call.module
        if isinstance(module, Binarizer):
            if call.nth:
                refuse_second_call("activation", call.name)
            unit = unit_for(("call", index), call.name, module.input_quantizer)
            unit.feature_shape = _written_features(graph, call)
        elif isinstance(module, BinaryLayer) and _has_quantizer(module):
            if call.nth:
                refuse_second_call("layer", call.name)
            source = call.inputs[0] if call.inputs else -1
            activation = walk_back(graph, source, passes_sign) if source >= 0 else -1
            if module.input_quantizer is None and isinstance(graph.calls[activation].module, Binarizer):
                unit = units["call", activation]
                if not unit.layers:
                    unit.name = call.name
                if source == activation and not unit.layers:
                    unit.feature_shape = _read_features(call.in_shape, module) or unit.feature_shape
            elif module.input_quantizer is not None:
                unit = unit_for(("quantizer", id(module.input_quantizer)), call.name, module.input_quantizer)
                unit.feature_shape = _read_features(call.in_shape, module)
            else:
                unit = unit_for(("tensor", source), call.name, None)
            unit.layers.append(module)
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


def _read_features(shape: tuple[int, ...] | None, layer: BinaryLayer) -> tuple[int, ...] | None:
    """Features of one sample of what ``layer`` reads: channels and space of a convolution, else the last dimension."""
    if shape is None or isinstance(layer, Embedding):
        return None
    return shape[len(shape) - (layer.weight.dim() - 1) :] if isinstance(layer, _ConvNd) else shape[-1:]


def _written_features(graph: Graph, call: Call) -> tuple[int, ...] | None:
    """Features of one sample of what ``call`` reads, as the layer that wrote it lays them out."""
    shape = call.in_shape
    return None if shape is None else shape[len(shape) - _feature_dims(graph, call, len(shape)) :]


def _feature_dims(graph: Graph, call: Call, rank: int) -> int:
    while call.inputs:
        call = graph.calls[call.inputs[0]]
        moved = call.module is None and call.name in _MOVING_FUNCTIONS
        if moved or call.out_shape is None or len(call.out_shape) != rank:
            break
        if isinstance(call.module, _ConvNd):
            return call.module.weight.dim() - 1  # channels and space; there may be no batch
        if isinstance(call.module, (_NormBase, nn.GroupNorm)):
            return rank - 1
        if isinstance(call.module, nn.Linear) or type(call.module) in _FEATURES_LAST:
            return 1
    return rank - 1 if rank >= 4 else 1  # nobody says: images, else rows or tokens


def units(model: nn.Module, example_input: Any = None) -> list[Unit]:
    """Return the model's units in order of first execution.

    Args:
        model: a converted model, or one built from `frostbit.nn` layers; also wrapped in torch's
            ``DistributedDataParallel``, ``DataParallel`` or ``AveragedModel``.
        example_input: a batch; needed where `binarize_` did not see one and the model cannot be traced without,
            or to learn feature shapes.

    Returns:
        The units. What a trace found is remembered on the model, so that later calls cost nothing.

    Raises:
        UsageError: the model has no binary layer or activation, or cannot be traced.
    """
    record = getattr(model, _RECORD, None)
    wrapped = model._modules.get("module")
    if record is None and wrapped is not None and hasattr(wrapped, _RECORD):
        return units(wrapped, example_input)
    if record is None or example_input is not None:
        found = find_units(model, trace(model, example_input))
        remember(model, found)
        return found
    # Paths, not objects, are remembered: they stay true after deepcopy and pickle.
    result = []
    for entry in record:
        layers = [_layer_at(model, path) for path in entry["layers"]]
        owner = model.get_submodule(entry["quantizer"]) if entry["quantizer"] is not None else None
        result.append(Unit(entry["name"], getattr(owner, "input_quantizer", None), layers, entry["features"]))
    return result


def _layer_at(model: nn.Module, path: str) -> BinaryLayer:
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, BinaryLayer):
        raise UsageError(
            f"the model was changed, {path!r} is no binary layer any more: frostbit.units(model, example_input=batch) "
            "looks at it anew"
        )
    return found


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
