"""Units: what is frozen together, in which order, with which features."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import frostbit as fb
from frostbit.errors import UsageError
from frostbit.quantizers import Masked
from frostbit.units import Unit

IMAGES = torch.randn(2, 3, 8, 8)


class Backwards(nn.Module):
    """Registered in another order than it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = fb.nn.Linear(4, 2)
        self.middle = fb.nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def names(found: list[Unit]) -> list[str]:
    return [unit.name for unit in found]


def test_units_come_in_order_of_first_execution() -> None:
    for example in (None, torch.randn(2, 4)):
        assert names(fb.units(Backwards(), example)) == ["middle", "last"]


def test_a_model_without_binary_layers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Sequential has no binary layer: call frostbit.binarize_"):
        fb.units(nn.Sequential(nn.Linear(3, 3)))


def test_a_unit_lists_its_quantizers_and_stable_roles() -> None:
    model = nn.Sequential(fb.nn.Linear(4, 4), fb.nn.MultiheadAttention(4, 2, kdim=4, batch_first=True))
    (unit,) = fb.units(nn.Sequential(model[0]))
    assert [role for role, _, _ in unit.weight_quantizers()] == ["0.weight"]
    assert list(unit.quantizers()) == [model[0].input_quantizer, model[0].weight_quantizer]
    weights_only = nn.Sequential(fb.nn.Linear(4, 4, input_quantizer=None))
    (unit,) = fb.units(weights_only)
    assert list(unit.quantizers()) == [weights_only[0].weight_quantizer]
    inputs_only = nn.Sequential(fb.nn.Linear(4, 4, weight_quantizer=None))
    (unit,) = fb.units(inputs_only)
    assert list(unit.quantizers()) == [inputs_only[0].input_quantizer]


class Self(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = fb.nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("options", [{}, {"input_quantizer": None}])
def test_attention_is_two_units_its_projections_and_its_output(options: dict[str, None]) -> None:
    model = Self(**options)
    found = fb.units(model, torch.randn(2, 5, 8))
    assert names(found) == ["attention", "attention.out_proj"]
    assert found[0].layers == [model.attention]
    assert found[1].layers == [model.attention.out_proj]
    assert [unit.input_quantizer is None for unit in found] == [bool(options)] * 2
    if not options:
        assert [unit.feature_shape for unit in found] == [(8,), (8,)]


ROW_OF_7 = torch.randn(2, 3, 7)


def pooled_to(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), fb.nn.Linear(width, width, input_quantizer=None)]


FEATURES = [
    (nn.Sequential(fb.nn.Conv2d(3, 4, 3)), IMAGES, (3, 8, 8)),
    (nn.Sequential(fb.nn.Conv2d(3, 4, 3)), IMAGES[0], (3, 8, 8)),
    (nn.Sequential(fb.nn.Conv1d(3, 4, 3)), torch.randn(2, 3, 7), (3, 7)),
    (nn.Sequential(fb.nn.Conv3d(3, 4, 1)), torch.randn(2, 3, 4, 5, 6), (3, 4, 5, 6)),
    (nn.Sequential(fb.nn.ConvTranspose2d(3, 4, 3)), IMAGES, (3, 8, 8)),
    (nn.Sequential(fb.nn.Linear(8, 4)), torch.randn(2, 8), (8,)),
    (nn.Sequential(fb.nn.Linear(8, 4)), torch.randn(2, 5, 8), (8,)),
    (nn.Sequential(fb.nn.Binarizer(), fb.nn.Conv2d(3, 4, 3, input_quantizer=None)), IMAGES, (3, 8, 8)),
    (nn.Sequential(fb.nn.Binarizer(), nn.Flatten(), fb.nn.Linear(192, 4, input_quantizer=None)), IMAGES, (3, 8, 8)),
    (nn.Sequential(fb.nn.Binarizer(), fb.nn.Linear(8, 4, input_quantizer=None)), torch.randn(2, 5, 8), (8,)),
    (nn.Sequential(fb.nn.Binarizer(), nn.AdaptiveAvgPool2d(1)), IMAGES, (3, 8, 8)),
    (nn.Sequential(fb.nn.Binarizer()), torch.randn(2, 8), (8,)),
    # what wrote the tensor decides, whatever the sizes happen to be
    (nn.Sequential(nn.Conv1d(3, 8, 1), fb.nn.Binarizer(), nn.Flatten(), nn.Linear(56, 2)), ROW_OF_7, (8, 7)),
    (nn.Sequential(nn.Conv1d(3, 8, 1), fb.nn.Binarizer()), ROW_OF_7[0], (8, 7)),
    (nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.MaxPool1d(3), fb.nn.Binarizer()), ROW_OF_7, (8, 2)),
    (nn.Sequential(nn.Conv2d(3, 8, 1), fb.nn.Binarizer(), *pooled_to(8)), IMAGES, (8, 8, 8)),
    (nn.Sequential(nn.Linear(8, 8), nn.Dropout(), fb.nn.Binarizer()), torch.randn(2, 5, 8), (8,)),
    (nn.Sequential(nn.Linear(8, 8), fb.nn.Binarizer()), torch.randn(2, 5, 4, 8), (8,)),
    (nn.Sequential(nn.Linear(7, 7), nn.LayerNorm(7), fb.nn.Binarizer(), nn.Flatten()), ROW_OF_7, (7,)),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), fb.nn.Binarizer()), IMAGES, (64,)),  # by its rank
    (nn.Sequential(nn.Linear(7, 7), fb.nn.Binarizer(), fb.nn.Conv1d(3, 4, 1, input_quantizer=None)), ROW_OF_7, (3, 7)),
]


@pytest.mark.parametrize(("model", "batch", "features"), FEATURES, ids=[str(f[0]) for f in FEATURES])
def test_feature_shapes_fit_a_mask(model: nn.Module, batch: Tensor, features: tuple[int, ...]) -> None:
    model = copy.deepcopy(model)
    (unit,) = fb.units(model, batch)
    assert unit.feature_shape == features
    progression = fb.StoMPP(model, total_steps=4)
    for _ in range(4):
        model(batch)
        progression.step()


def test_a_binarizer_and_the_layers_behind_it_are_one_unit() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.end = fb.nn.Binarizer(), fb.nn.Binarizer()
            self.pool = nn.MaxPool2d(2)
            self.a = fb.nn.Conv2d(3, 4, 3, input_quantizer=None)
            self.b = fb.nn.Conv2d(3, 4, 3, input_quantizer=None)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(x)
            return self.end(self.a(self.pool(x)) + self.b(self.pool(x)))

    model = Two()
    first, last = fb.units(model, IMAGES)
    assert (first.name, first.layers, first.input_quantizer) == ("a", [model.a, model.b], model.act.input_quantizer)
    assert (last.name, last.layers, last.input_quantizer) == ("end", [], model.end.input_quantizer)


@pytest.mark.parametrize(
    ("layer", "what"), [(fb.nn.Binarizer(), "activation"), (fb.nn.Linear(8, 8), "layer")], ids=["binarizer", "layer"]
)
def test_what_is_called_twice_is_refused(layer: nn.Module, what: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 8), layer, fb.nn.Linear(8, 2))
    with pytest.raises(UsageError, match=rf"{what} '1' is called more than once in a forward pass: .* of its own"):
        fb.units(model, torch.randn(2, 8))
    assert not hasattr(model, "_frostbit_units")


def test_units_are_remembered_by_path_without_touching_the_state_dict() -> None:
    model = Backwards()
    keys = list(model.state_dict())
    found = fb.units(model, torch.randn(2, 4))
    assert list(model.state_dict()) == keys
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        again = fb.units(twin)
        assert names(again) == names(found)
        assert [unit.feature_shape for unit in again] == [(4,), (4,)]
        assert again[0].layers == [twin.middle]
        assert again[0].input_quantizer is twin.middle.input_quantizer


def test_a_wrapper_has_the_units_of_the_model_inside() -> None:
    model = Backwards()
    found = fb.units(model, torch.randn(2, 4))
    for wrap in (nn.DataParallel, torch.optim.swa_utils.AveragedModel):
        wrapper = wrap(model)
        assert names(fb.units(wrapper)) == names(found)
        fb.StoMPP(wrapper, total_steps=2).step()
        assert fb.frozen_fraction(wrapper) == {"middle": 1.0, "last": pytest.approx(0.5, abs=0.5)}


def test_units_follow_quantizers_that_a_progression_put_in() -> None:
    model = Backwards()
    fb.units(model, torch.randn(2, 4))
    fb.StoMPP(model, total_steps=4)
    found = [quantizer for unit in fb.units(model) for quantizer in unit.quantizers()]
    assert [type(quantizer) for quantizer in found] == [fb.quantizers.Masked] * 4


def test_frozen_fraction_is_the_mean_over_a_units_quantizers() -> None:
    model = Backwards()
    fb.units(model, torch.randn(2, 4))
    assert fb.frozen_fraction(model) == {"middle": 1.0, "last": 1.0}  # hard forwards all
    model.middle.input_quantizer = fb.quantizers.create("clip")
    assert fb.frozen_fraction(model) == {"middle": 0.5, "last": 1.0}
    masked = fb.quantizers.Masked(fb.quantizers.create("clip"))
    masked.stage, masked.mask = "mixed", torch.tensor([True, False, False, False])
    model.middle.input_quantizer = masked
    assert fb.frozen_fraction(model)["middle"] == pytest.approx((0.25 + 1) / 2)


def test_binary_parameters_name_each_latent_once() -> None:
    model = nn.Sequential(
        fb.nn.Linear(4, 4), nn.Linear(4, 4), fb.nn.Linear(4, 4, weight_quantizer=None), fb.nn.MultiheadAttention(4, 2),
        fb.nn.MultiheadAttention(4, 2, kdim=3, vdim=2), fb.nn.Linear(4, 4), fb.nn.Embedding(3, 4),
    )  # fmt: skip
    model[5].weight = model[0].weight  # tied
    found = list(fb.binary_parameters(model))
    split = [f"4.{name}_proj_weight" for name in "qkv"]
    expected = ["0.weight", "3.in_proj_weight", "3.out_proj.weight", *split, "4.out_proj.weight", "6.weight"]
    assert [name for name, _ in found] == expected
    order = [name for name, _ in model.named_parameters()]
    assert [name for name in order if name in expected] == expected
    assert all(parameter is model.get_parameter(name) for name, parameter in found)
    assert [name for name, _ in fb.binary_parameters(fb.nn.Linear(2, 2))] == ["weight"]


def test_a_layer_that_is_the_whole_model() -> None:
    model = fb.nn.Linear(4, 2)
    assert len(fb.units(model, torch.randn(2, 4))) == 1
    fb.StoMPP(model, total_steps=2).step()
    assert fb.summary(model, torch.randn(2, 4)).binary_macs == 8


def test_attention_that_reads_a_binarizer_has_its_output_projection_too() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu = nn.Linear(8, 8), nn.ReLU()
            self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.first(x))
            return self.last(self.attention(x, x, x)[0])

    model = Network()
    fb.binarize_(model, placement="activation", example_input=torch.randn(2, 3, 8), min_binary_macs=0)
    fb.StoMPP(model, 8)
    assert list(fb.frozen_fraction(model)) == ["attention", "attention.out_proj"]
    assert isinstance(model.attention.out_proj.weight_quantizer, Masked)
    assert [unit.feature_shape for unit in fb.units(model)] == [(8,), (8,)]


def test_a_model_that_was_changed_is_named() -> None:
    model = nn.Sequential(*(fb.nn.Linear(4, 4, bias=False) for _ in range(3)))
    x = torch.randn(2, 4)
    fb.units(model, example_input=x)
    model[1] = nn.Linear(4, 4)
    with pytest.raises(fb.UsageError, match="'1' is no binary layer any more"):
        fb.StoMPP(model, 12)
    assert len(fb.units(model, example_input=x)) == 2
