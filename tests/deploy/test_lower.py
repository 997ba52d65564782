"""From ATen to operations: what folds, what is found, what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

import frostbit as fb
from frostbit.deploy.convert import pack
from frostbit.deploy.export import Lowered, lower
from frostbit.deploy.passes import thresholds
from tests.deploy import zoo


def kinds(lowered: Lowered) -> Counter[str]:
    return Counter(node.kind for node in lowered.graph.nodes)


def lowered(model: nn.Module, x: Any) -> Lowered:
    return lower(pack(model.eval()), x)


NUMBERS = st.floats(-100, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.lists(
        st.tuples(
            NUMBERS,
            st.one_of(st.floats(0, 1e4, width=32), st.just(1e-38)),
            st.one_of(NUMBERS, st.just(0.0), st.just(-0.0)),
            NUMBERS,
            st.floats(-3, 3, width=32),
        ),
        min_size=1,
        max_size=6,
    ),
    bound=st.integers(1, 70),
    layout=st.sampled_from(["rows", "images", "channels last"]),
)
def test_thresholds_agree_with_torchs_batch_norm_on_every_sum(
    channels: list[tuple[float, ...]], bound: int, layout: str
) -> None:
    """Negative, zero and huge scales, vanishing variance, a factor before the norm: sign(BN(n)) for each n."""
    mean, var, weight, bias, factor = (torch.tensor(column) for column in zip(*channels, strict=True))

    def norm(v: Tensor) -> Tensor:
        return F.batch_norm(v, mean, var, weight, bias, False, 0.0, 1e-5)

    found = thresholds([lambda v: v * factor[:, None], norm], len(channels), bound)
    assert found is not None
    at, flip = found
    sums = torch.arange(-bound, bound + 1)
    x = sums[:, None] * factor
    if layout != "rows":
        x = x[..., None, None].expand(-1, -1, 3, 5).contiguous()
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    y = norm(x)
    expected = (y if layout == "rows" else y[:, :, 1, 2]) >= 0
    assert torch.equal((sums[:, None] >= at) != flip, expected)


def test_a_sign_that_changes_twice_is_no_threshold() -> None:
    assert thresholds([lambda v: v * v - 2], 3, 5) is None
    at, flip = thresholds([lambda v: torch.where(v == 5, -0.0, -1.0)], 1, 5) or (torch.empty(0),) * 2
    assert (at.item(), flip.item()) == (5, False)


def test_binarynet_becomes_sums_and_comparisons() -> None:
    model, x = zoo.ready("binarynet")
    found = kinds(lowered(model, x))
    expected = {"conv": 1, "binary_conv": 5, "binary_dense": 3, "max_pool": 3, "threshold": 7, "reshape": 1}
    assert found == {**expected, "sign": 1, "affine": 2}  # the stem's norm and the last one


def test_what_lies_between_a_norm_and_a_sign_moves_out_of_the_way() -> None:
    """Pooling after the norm, flattening, permuting: the comparison stays directly behind the sums."""
    between = nn.Sequential(nn.MaxPool2d(2), nn.Hardtanh(), nn.Flatten(), nn.Dropout(), nn.Identity())
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), fb.nn.Conv2d(4, 8, 3, weight_scale="mean_abs"), nn.BatchNorm2d(8), between,
        fb.nn.Linear(8 * 9, 5),
    )  # fmt: skip
    zoo.look_trained(model, torch.randn(9, 3, 10, 10))
    graph = lowered(model, torch.randn(2, 3, 10, 10)).graph
    assert [node.kind for node in graph.nodes] == [
        "conv", "sign", "binary_conv", "threshold", "max_pool", "reshape", "binary_dense", "affine",
    ]  # fmt: skip


def test_a_layer_that_reads_activations_of_another_placement_adds_up_signs() -> None:
    """Weights alone do not make a binary convolution: the kind of what they read does."""
    model = nn.Sequential(
        fb.nn.Binarizer(), nn.ZeroPad2d(1), fb.nn.Conv2d(3, 4, 3, input_quantizer=None),
        nn.AvgPool2d(2), fb.nn.Conv2d(4, 4, 3, input_quantizer=None), nn.ConstantPad2d((0, 1, 2, 0), -1.0),
        fb.nn.Binarizer(), nn.ConstantPad2d((0, 1, 2, 0), -1.0), fb.nn.Conv2d(4, 4, 3, input_quantizer=None),
    )  # fmt: skip
    nodes = lowered(model, torch.randn(2, 3, 12, 12)).graph.nodes
    found = [(node.kind, node.attrs.get("padding"), node.attrs.get("pad_value")) for node in nodes]
    assert ("binary_conv", [[1, 1], [1, 1]], 0) in found
    assert ("binary_conv", [[2, 0], [0, 1]], -1) in found
    assert [kind for kind, *_ in found].count("conv") == 1
    assert next(node for node in nodes if node.kind == "conv").tensors["weight"].abs().eq(1).all()


def test_real_layers_keep_one_affine_map_and_no_bias() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5, bias=False))
    nodes = lowered(zoo.look_trained(model, torch.randn(30, 6)), torch.randn(2, 6)).graph.nodes
    assert [(node.kind, sorted(node.tensors)) for node in nodes] == [
        ("dense", ["weight"]), ("affine", ["scale", "shift"]), ("dense", ["weight"]),
    ]  # fmt: skip


def test_what_nobody_reads_is_left_out() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = fb.nn.Linear(6, 4), fb.nn.Linear(6, 40)
            self.attention = fb.nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            y, _ = self.attention(*[self.used(x)] * 3)  # its weights are computed, and dropped
            return y

    found = lowered(Wasteful(), torch.randn(2, 3, 6))
    assert kinds(found)["binary_dense"] == 1 + 3 + 1
    assert kinds(found)["mean"] == 0
    assert (kinds(found)["sign"], kinds(found)["threshold"]) == (2, 1)  # query, key and value read one tensor
    assert found.inputs == [("x", (None, None, 6), "float32")]


def test_equal_signs_are_taken_once_and_shared_modules_work() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = fb.nn.Linear(6, 4), fb.nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x.reshape(-1, 6))

    assert kinds(lowered(Two(), torch.randn(2, 6)))["sign"] == 1


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (torch.randn(1, 3, 9, 9), (None, 3, 9, 9)),
        (torch.randn(4, 3, 9, 9), (None, 3, 9, 9)),
        (torch.randn(4, 3, 9, 9).double(), (None, 3, 9, 9)),
        (torch.randn(4, 3, 9, 9).half(), (None, 3, 9, 9)),
    ],
    ids=["one sample", "four", "float64", "float16"],
)
def test_the_batch_stays_open(x: Tensor, shape: tuple[int | None, ...]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), fb.nn.Linear(196, 3)).to(x.dtype)
    assert lowered(model, x).inputs == [("input", shape, "float32")]


def test_the_length_stays_open_where_the_network_allows() -> None:
    x = torch.randint(20, (2, 9))
    assert lowered(zoo.Attention(), x).inputs == [("tokens", (None, 9), "int64")]  # torch's attention merges sizes
    model = zoo.Attention()
    fb.binarize_(model, example_input=x, min_binary_macs=0)
    assert lowered(model, x).inputs == [("tokens", (None, None), "int64")]


class Calls(nn.Module):
    """One layer, then a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer, self.function = fb.nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


REFUSED = {
    "sort": (lambda y: y.sort(-1).values, r"aten.sort.default in Calls.forward .*no operation for it: replace it"),
    "log_softmax": (lambda y: y.log_softmax(-1), "leave it out of the model: classes and probabilities follow"),
    "quotient": (lambda y: y / (y.abs() + 1), "cannot be packed"),
    "batch": (lambda y: y.mean(0), "it averages over the batch"),
    "first": (lambda y: y[0], "it takes a part of the batch"),
    "fixed batch": (lambda y: y.reshape(4, 2, 3), "fixes its batch to 4 in forward"),
    "branch": (lambda y: y if y.sum() > 0 else -y, "torch cannot export Calls"),
    "constant": (lambda y: torch.ones(3), "returns nothing that depends on its input"),
    "power": (lambda y: y**3, "its exponent is 3"),
    "unequal": (lambda y: (y != 0).float(), "it compares real numbers for equality"),
    "running sum": (lambda y: y.cumsum(1), "it adds up real numbers one by one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_packed_is_named_with_what_to_do(case: str) -> None:
    function, words = REFUSED[case]
    with pytest.raises(fb.UsageError, match=words):
        lowered(Calls(function), torch.randn(4, 6))


class Indexed(nn.Module):
    """An embedding of what becomes of indices."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.table, self.function = nn.Embedding(50, 4), function
        self.register_buffer("order", torch.arange(50)[None])

    def forward(self, ids: Tensor) -> Any:
        return self.table(self.function(ids, self.order))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda ids, order: order.expand(len(ids), -1).gather(1, ids), "it picks entries one by one"),
        (lambda ids, order: ids + order[:, :7], "indices can be combined with whole numbers and other indices alone"),
        (lambda ids, order: (ids * 0.5).long(), "indices can be combined with whole numbers"),
    ],
)
def test_what_becomes_of_indices_is_limited(function: Any, words: str) -> None:
    with pytest.raises(fb.UsageError, match=words):
        lowered(Indexed(function), torch.randint(20, (4, 7)))


def test_indices_are_compared_counted_and_combined() -> None:
    model = Indexed(lambda ids, order: ((ids != 3).cumsum(1) * (ids != 3) + ids * 2) + 1)
    assert set(kinds(lowered(model, torch.randint(20, (4, 7))))) == {
        "differs", "cumsum", "mul", "add", "expand_like", "embedding",
    }  # fmt: skip


def test_len_and_negative_indices_are_sizes_and_bounds() -> None:
    found = lowered(Calls(lambda y: y.reshape(len(y), 2, 3)[:, -1, :-1]), torch.randn(4, 6))
    assert found.inputs == [("x", (None, 6), "float32")]
    assert found.graph.values[found.graph.outputs[0]].shape[1:] == (2,)


def test_the_module_is_named() -> None:
    model = nn.Sequential(fb.nn.Linear(6, 6), nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)))
    with pytest.raises(fb.UsageError, match=r"in module '1.0' \(BatchNorm1d\) .*track_running_stats=True"):
        lowered(model, torch.randn(4, 6))


def test_a_norm_without_finite_numbers_is_refused() -> None:
    model = nn.Sequential(fb.nn.Linear(6, 6), nn.BatchNorm1d(6))
    model[1].running_var[2] = float("inf")
    with pytest.raises(fb.UsageError, match=r"module '1' \(BatchNorm1d\) .*statistics are not finite"):
        lowered(model, torch.randn(4, 6))


def test_inputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(fb.UsageError, match=r"found an input of torch.bool"):
        lowered(nn.Identity(), torch.ones(2, 3, dtype=torch.bool))
