"""A program as a torch module in float32: what the same network costs without bits. Used by `frostbit bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from frostbit_runtime import Program

Attrs = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Function = Callable[[list[Tensor], Attrs, Tensors], Tensor]


class TorchNetwork(nn.Module):
    """Runs a program's operations one after the other, ±1 as floats.

    Args:
        program: from `frostbit_runtime.read`.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        for index, stored in enumerate(program.tensors.values()):
            tensor = torch.from_numpy(stored.decode().copy())
            is_index = stored.encoding in ("int16", "int32")
            self.register_buffer(f"t{index}", tensor.long() if is_index else tensor.float())
        self._buffer = {name: f"t{index}" for index, name in enumerate(program.tensors)}

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the program's results, a tuple of them if there are several."""
        values = {item.name: x for item, x in zip(self.program.inputs, inputs, strict=True)}
        for op in self.program.ops:
            tensors = {role: self.get_buffer(self._buffer[name]) for role, name in op.tensors.items()}
            values[op.output] = FUNCTIONS[op.kind]([values[name] for name in op.inputs], op.attrs, tensors)
        results = tuple(values[name] for name in self.program.outputs)
        return results[0] if len(results) == 1 else results


def _sides(pairs: list[list[int]]) -> list[int]:
    return [side for pair in reversed(pairs) for side in pair]


def _conv(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    value, pairs = x[0], attrs["padding"]
    before = [pair[0] for pair in pairs]
    if attrs.get("pad_value", 0) != 0 or before != [pair[1] for pair in pairs]:
        value, before = F.pad(value, _sides(pairs), value=float(attrs.get("pad_value", 0))), [0] * len(pairs)
    geometry = (attrs["stride"], before, attrs["dilation"], False, [0] * len(pairs), attrs["groups"])
    y: Tensor = torch.ops.aten.convolution(value, tensors["weight"], tensors.get("bias"), *geometry)
    return y


def _conv_transpose(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    names = ("stride", "padding", "dilation")
    geometry = (*(attrs[name] for name in names), True, attrs["output_padding"], attrs["groups"])
    y: Tensor = torch.ops.aten.convolution(x[0], tensors["weight"], tensors.get("bias"), *geometry)
    return y


def _dense(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    return F.linear(x[0], tensors["weight"], tensors.get("bias"))


def _along(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def _affine(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    y = x[0]
    y = y * _along(tensors["scale"], y, attrs["axis"]) if "scale" in tensors else y
    return y + _along(tensors["shift"], y, attrs["axis"]) if "shift" in tensors else y


def _sign(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    return torch.where(x[0] >= 0, 1.0, -1.0)


def _threshold(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    at, flip = (_along(tensors[role], x[0], attrs["axis"]) for role in ("at", "flip"))
    return torch.where((x[0] >= at) != (flip > 0), 1.0, -1.0)


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda x, attrs, tensors: function(x[0], x[1] if len(x) == 2 else tensors["other"])


def _one(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda x, attrs, tensors: function(x[0])


def _layer_norm(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    shape = x[0].shape[-attrs["axes"] :]
    return F.layer_norm(x[0], shape, tensors.get("weight"), tensors.get("bias"), attrs["eps"])


def _max_pool(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x[0].dim() - 3]
    names = ("kernel", "stride", "padding", "dilation", "ceil_mode")
    y: Tensor = function(x[0], *(attrs[name] for name in names))
    return y


def _avg_pool(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x[0].dim() - 3]
    names = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad")
    return function(x[0], *(attrs[name] for name in names))


def _reshape(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    return x[0].reshape([x[0].shape[i] if size == 0 else size for i, size in enumerate(attrs["shape"])])


def _slice(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    index = [slice(None)] * x[0].dim()
    index[attrs["axis"]] = slice(attrs["start"], attrs["stop"], attrs["step"])
    return x[0][tuple(index)]


def _crop_like(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    return tensors["value"].narrow(attrs["axis"], 0, x[0].shape[attrs["reference_axis"]])


def _expand_like(x: list[Tensor], attrs: Attrs, tensors: Tensors) -> Tensor:
    return tensors["value"].expand(len(x[0]), *tensors["value"].shape[1:])


FUNCTIONS: dict[str, Function] = {
    "sign": _sign,
    "threshold": _threshold,
    **dict.fromkeys(("binary_conv", "conv"), _conv),
    **dict.fromkeys(("binary_conv_transpose", "conv_transpose"), _conv_transpose),
    **dict.fromkeys(("binary_dense", "dense"), _dense),
    "affine": _affine,
    "add": _two(torch.add),
    "sub": _two(torch.sub),
    "mul": _two(torch.mul),
    "matmul": _two(torch.matmul),
    "relu": _one(F.relu),
    "silu": _one(F.silu),
    "sigmoid": _one(torch.sigmoid),
    "tanh": _one(torch.tanh),
    "gelu": lambda x, attrs, tensors: F.gelu(x[0], approximate=attrs["approximate"]),
    "clip": lambda x, attrs, tensors: x[0].clamp(attrs["min"], attrs["max"]),
    "prelu": lambda x, attrs, tensors: torch.where(
        x[0] >= 0, x[0], x[0] * _along(tensors["slope"], x[0], attrs["axis"])
    ),
    "softmax": lambda x, attrs, tensors: x[0].softmax(attrs["axis"]),
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": lambda x, attrs, tensors: x[0].mean(list(attrs["axes"]), keepdim=attrs["keepdims"]),
    "reshape": _reshape,
    "permute": lambda x, attrs, tensors: x[0].permute(attrs["axes"]),
    "expand_dims": lambda x, attrs, tensors: x[0].unsqueeze(attrs["axis"]),
    "squeeze": lambda x, attrs, tensors: x[0].squeeze(attrs["axis"]),
    "concat": lambda x, attrs, tensors: torch.cat(x, attrs["axis"]),
    "slice": _slice,
    "pad": lambda x, attrs, tensors: F.pad(x[0], _sides(attrs["padding"]), value=attrs["value"]),
    "expand_like": _expand_like,
    "crop_like": _crop_like,
    "cumsum": lambda x, attrs, tensors: x[0].cumsum(attrs["axis"]),
    "differs": lambda x, attrs, tensors: (x[0] != attrs["value"]).long(),
    "embedding": lambda x, attrs, tensors: F.embedding(x[0], tensors["weight"]),
}
