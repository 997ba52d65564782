"""What runs when, and what reads what: symbolic traces and watched passes agree and leave no mark."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from frostbit.errors import UsageError
from frostbit.graph import Graph, default_example, run_quietly, trace, walk_back


class Branches(nn.Module):
    """Layers out of order, a reused activation, two results of one function, a shared input."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 2)
        self.first = nn.Linear(4, 6)
        self.unused = nn.Linear(1, 1)
        self.act = nn.ReLU(inplace=True)
        self.left = nn.Linear(3, 6)
        self.right = nn.Linear(3, 6)
        self.query = nn.Linear(6, 6)
        self.key = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        a, b = y.chunk(2, -1)
        z = self.act(self.left(a) + self.right(b))
        return self.last(self.query(z) * self.key(z))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


X = torch.randn(2, 4)
BOTH = pytest.mark.parametrize("example", [None, X], ids=["symbolic", "watched"])


def source(graph: Graph, name: str) -> int:
    """Return the call whose result the named module's first call reads."""
    return next(call for call in graph.calls if call.name == name).inputs[0]


@BOTH
def test_order_of_execution_and_counts_of_calls(example: Tensor | None) -> None:
    model = Branches()
    calls = [(call.name, call.nth) for call in trace(model, example).calls if call.module is not None]
    first, middle, last = calls[:4], calls[4:5], calls[5:]
    assert first == [("first", 0), ("act", 0), ("left", 0), ("right", 0)]
    assert middle == [("act", 1)]
    assert last == [("query", 0), ("key", 0), ("last", 0)]
    assert len(trace(model, example).of(model.act)) == 2


@BOTH
def test_readers_of_one_tensor_share_its_producer_and_others_do_not(example: Tensor | None) -> None:
    graph = trace(Branches(), example)
    assert source(graph, "query") == source(graph, "key")
    assert source(graph, "left") != source(graph, "right")
    act = graph.calls[source(graph, "query")]
    assert (act.name, act.nth) == ("act", 1)
    assert [call.name for call in graph.calls if source(graph, "query") in call.inputs] == ["query", "key"]


def test_arguments_of_one_call_are_told_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y) + self.c(x)

    for example in (None, (X, X + 1), {"x": X, "y": X + 1}, UserDict(x=X, y=X + 1)):
        graph = trace(Two(), example)
        assert source(graph, "a") == source(graph, "c")
        assert source(graph, "a") != source(graph, "b")


def test_a_watched_pass_gives_shapes() -> None:
    graph = trace(Branches(), X)
    call = next(call for call in graph.calls if call.name == "left")
    assert (call.in_shape, call.out_shape) == ((2, 3), (2, 6))
    assert {(call.in_shape, call.out_shape) for call in trace(Branches()).calls} == {(None, None)}


def test_in_place_and_functional_calls_are_seen() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            y += x
            return self.b(functional.relu(y, inplace=True))

    for example in (None, X):
        graph = trace(Functions(), example)
        relu = graph.calls[source(graph, "b")]
        assert (relu.name, relu.module) == ("relu", None)
        assert graph.calls[relu.inputs[0]].name in ("__iadd__", "add_", "add")


def test_walking_back_stops_at_what_does_not_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4, 4))
    graph = trace(model, X)
    passing = (nn.Dropout, nn.Flatten)
    found = walk_back(graph, source(graph, "4"), lambda call: isinstance(call.module, passing))
    assert graph.calls[found].name == "1"
    assert walk_back(graph, 0, lambda call: True) == 0


def test_a_model_that_cannot_be_traced_asks_for_an_example() -> None:
    with pytest.raises(UsageError, match=r"DataDependent cannot be traced .* pass example_input="):
        trace(DataDependent())
    graph = trace(DataDependent(), X.abs())
    assert [call.name for call in graph.calls if call.module is not None] == ["layer"]


def test_an_example_that_does_not_fit_is_one_clear_sentence() -> None:
    with pytest.raises(UsageError, match=r"Linear .* example_input") as caught:
        trace(nn.Linear(4, 4), torch.randn(2, 5))
    assert "\n" not in str(caught.value)


def test_a_trace_leaves_modes_statistics_hooks_and_random_state() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    for example in (X, torch.randn(2, 5)):
        rng = torch.get_rng_state()
        try:
            trace(model, example)
        except UsageError:
            assert example.shape[1] == 5
        assert [module.training for module in model] == [True, False, True]
        assert torch.equal(torch.get_rng_state(), rng)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_random_forwards_do_not_advance_the_generator() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    rng = torch.get_rng_state()
    run_quietly(Noisy(), X)
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_model_that_knows_its_input_shape_needs_no_example() -> None:
    model: Any = nn.Linear(4, 4).double()
    assert default_example(model) is None
    model.input_shape = (4,)
    example = default_example(model)
    assert example is not None
    assert (example.shape, example.dtype) == ((2, 4), torch.float64)
    assert torch.equal(example, default_example(model))
    assert trace(model).calls[-1].out_shape == (2, 4)
