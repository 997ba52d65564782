"""`torch.compile` over whole progressions: few graphs, the same numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import frostbit as fb

STEPS = 9
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(drop_frozen: bool, compiled: Callable[[nn.Module], Any], ste: str | None = None) -> list[float]:
    """Return the losses of a whole progression, the last of the fully frozen network."""
    torch.manual_seed(0)
    model = fb.models.create("resnet8", width=4, input_size=8, num_classes=4)
    fb.binarize_(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    progression = fb.StoMPP(model, total_steps=STEPS, tail=1, ste=ste, drop_frozen=drop_frozen, refresh=2)
    progression.attach(optimizer)
    forward = compiled(model)
    losses = []
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(forward(IMAGES), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert set(fb.frozen_fraction(model).values()) == {1.0}
    with torch.no_grad(), fb.hardened(model.eval()):
        losses.append(nn.functional.cross_entropy(model(IMAGES), LABELS).item())
    return losses


@pytest.mark.parametrize("ste", [None, "ste_clip"])
def test_one_graph_serves_a_whole_progression(ste: str | None) -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def whole(model: nn.Module) -> Any:
        return torch.compile(model, fullgraph=True, backend=counter)

    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = train(False, whole, ste)
    assert counter.frame_count == 1
    assert losses == pytest.approx(train(False, lambda model: model, ste), rel=1e-4)


def test_keeping_frozen_units_in_the_graph_changes_no_number() -> None:
    plain = train(True, lambda model: model)
    assert plain == pytest.approx(train(False, lambda model: model), rel=1e-5)


def test_blocks_compile_a_few_times_where_frozen_units_leave() -> None:
    counter = CompileCounterWithBackend("eager")
    blocks: list[nn.Module] = []

    def per_block(model: nn.Module) -> nn.Module:
        for module in list(model.modules()):
            if type(module).__name__ == "BasicBlock":
                module.compile(fullgraph=True, backend=counter)
                blocks.append(module)
        return model

    # all blocks run one piece of code, and torch's limit (8) counts per piece of code
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        losses = train(True, per_block)
    assert losses == pytest.approx(train(True, lambda model: model), rel=1e-4)
    # soft, first mixed, first frozen, second mixed, both frozen; and one for evaluation
    assert len(blocks) < counter.frame_count <= 6 * len(blocks)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_generated_code_gives_the_same_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), fb.nn.Conv2d(8, 8, 3, weight_scale="mean_abs"), nn.BatchNorm2d(8))

    def step(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        y = run(IMAGES)
        return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]

    for eager, fast in zip(step(model), step(torch.compile(model, fullgraph=True)), strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-4)
