"""`binarize_`: turn anyone's float model into a binary one, in place, and say what was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from frostbit import keep as keep_rules
from frostbit import nn as fnn
from frostbit.conversion import Conversion, Placement, Report
from frostbit.errors import UsageError
from frostbit.graph import default_example, trace
from frostbit.nn.layers import BinaryLayer, WeightScale
from frostbit.quantizers import Spec
from frostbit.registry import check_choice


def binarize_(
    model: nn.Module,
    weight: Spec = "ste_clip",
    input: Spec = "default",
    example_input: Any = None,
    placement: Placement = "input",
    keep: keep_rules.Spec = keep_rules.default,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    weight_scale: WeightScale = None,
    pad_value: float = 0.0,
    latent_clip: float | None = None,
    accumulator_bits: int | None = None,
    min_binary_macs: float = 0.8,
) -> Report:
    """Make the model's layers binary, in place. Parameters keep their names and objects.

    Args:
        model: a float model: `frostbit.models`, torchvision, timm, transformers, or your own.
        weight: quantizer of the weights (see `frostbit.quantizers.resolve`), ``None`` for real weights. With
            ``"direct"`` the parameter itself becomes ±1, the sign of what it was, for a flip optimizer.
        input: quantizer of the layers' inputs, ``None`` for real inputs (weights-only networks); ``"default"`` is the
            model's own (Bi-Real nets have ``approx_sign``), else ``ste_clip``.
        example_input: a batch (tensor, tuple or dict of arguments); gives order of execution, shapes and sharing.
            Needed only where the model has no ``input_shape`` and cannot be traced without.
        placement: ``"input"``: a quantizer at each binary layer's input; a ReLU or GELU whose output such a quantizer
            reads becomes the identity, since the sign of a ReLU's output is +1 always and that of a GELU's its
            input's. ``"activation"``: every ReLU becomes a quantizer, the sum of a residual block included.
        keep: which layers stay real: a rule ``(module, name) -> bool``, names or globs. Left out, it is the model's
            own rule, else `frostbit.keep.first_last_downsample`. A model brings its own answers in an attribute
            ``binarize_defaults = {"keep": …, "input": …, "overrides": …}``; such overrides come before those given
            here.
        overrides: ``{name or glob: {"weight": …, "input": …, "weight_scale": …, "pad_value": …, "latent_clip": …,
            "accumulator_bits": …}}`` for single layers; later entries win.
        weight_scale: ``"mean_abs"`` for ``mean|w|`` per filter on hard weight entries.
        pad_value: what convolutions pad their quantized input with: 0, 1 or −1.
        latent_clip: keep latents in [−c, c] (see `frostbit.clip_latents_`).
        accumulator_bits: sums of ±1 products in that many bits, see `frostbit.nn.Accumulator`; layers with a real
            weight or input, by ``overrides`` say, have none.
        min_binary_macs: fail below this share of multiply-accumulates with binary weights; 0 accepts any, and so does
            ``weight=None``.

    Returns:
        A report; print it.

    Raises:
        UsageError: nothing or too little to convert, a name that matches nothing, an input whose sign is constant.
            The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"binarize_ takes a model, an instance of torch.nn.Module, found {model!r}")
    check_choice("placement", placement, ["input", "activation"])
    if not 0 <= min_binary_macs <= 1:
        raise UsageError(f"min_binary_macs is a share from 0 to 1, found {min_binary_macs}")
    own: Mapping[str, Any] = getattr(model, "binarize_defaults", {})
    if isinstance(input, str) and input == "default":
        input = own.get("input", "ste_clip")
    if weight is None and input is None:
        raise UsageError("binarize_ has nothing to do: both weight and input are None")
    if any(isinstance(module, (BinaryLayer, fnn.Binarizer)) for module in model.modules()):
        raise UsageError(f"{type(model).__name__} is binary already: binarize_ takes a float model")
    batch = default_example(model) if example_input is None else example_input
    if keep is keep_rules.default:
        keep = own.get("keep", keep_rules.first_last_downsample)
    conversion = Conversion(model, trace(model, batch), placement, own.get("overrides", {}))
    try:
        options = {"weight_scale": weight_scale, "pad_value": pad_value, "latent_clip": latent_clip}
        conversion.layers(weight, input, keep, overrides or {}, options, accumulator_bits)
        if input is not None or placement == "activation":
            conversion.activations(input)
        conversion.leave_fast_paths()
        conversion.finish(batch, 0.0 if weight is None else min_binary_macs)
    except Exception:
        conversion.undo()
        raise
    return conversion.report
