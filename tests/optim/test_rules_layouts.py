"""The flip rules on layouts, sizes and lists of tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostbit.optim import FlipOptimizer, base

from .flips import RULES, signs

torch.set_num_threads(1)


def run(shapes: list[tuple[int, ...]], rule: str, steps: int, ops: base.Ops | None = None) -> list[Tensor]:
    parameters = [signs(*shape, seed=i) for i, shape in enumerate(shapes)]
    opt = RULES[rule](parameters)
    generator = torch.Generator().manual_seed(3)
    for step in range(1, steps + 1):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        if ops is None:
            opt.step()
            continue
        group = opt.param_groups[0]
        states = [opt._state_of(p, group) for p in parameters]
        lists = [[s[name] for s in states] for name in opt.moments]
        with torch.no_grad():
            opt._update(ops, [p.data for p in parameters], [p.grad for p in parameters], *lists, group=group, step=step)
    return [*(p.detach() for p in parameters), *(opt.state[p][name] for p in parameters for name in opt.moments)]


@pytest.mark.parametrize("rule", RULES)
def test_lists_of_tensors_and_single_ones_agree(rule: str) -> None:
    shapes = [(3,), (70_001,), (2, 3, 4), ()]
    for one, other in zip(run(shapes, rule, 6), run(shapes, rule, 6, base.FOREACH), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rule", RULES)
def test_large_tensors_in_any_layout_move_as_small_ones_do(rule: str) -> None:
    """A tensor of several chunks, channels-last, transposed, or with a gradient of another layout."""
    shape = (40, 30, 10, 10)
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    start = signs(*shape).detach()

    def end(weight: Tensor, to_layout: Callable[[Tensor], Tensor], **options: Any) -> tuple[Tensor, int]:
        p = nn.Parameter(weight)
        opt = RULES[rule]([p], **options)
        for g in gradients:
            p.grad = to_layout(g)
            opt.step()
        return p.detach(), opt.flips(p)

    row = nn.Parameter(start.flatten().clone())
    opt = RULES[rule]([row])
    pieces = [nn.Parameter(piece.clone()) for piece in start.flatten().split(999)]
    in_pieces = RULES[rule](pieces)
    for g in gradients:
        row.grad = g.flatten()
        opt.step()
        for piece, part in zip(pieces, g.flatten().split(999), strict=True):
            piece.grad = part.clone()
        in_pieces.step()
    expected = torch.cat([piece.detach() for piece in pieces]).view(shape)
    assert torch.equal(row.detach().view(shape), expected)
    last = {"memory_format": torch.channels_last}
    strided = torch.stack([start, start], -1)[..., 0]
    for weight, layout in (
        (start.clone(), lambda g: g),
        (start.contiguous(**last), lambda g: g.contiguous(**last)),
        (start.contiguous(**last), lambda g: g),
        (start.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), lambda g: g),
        (strided, lambda g: g),
    ):
        got, flips = end(weight, layout)
        assert torch.equal(got, expected)
        assert flips == opt.flips(row) == sum(in_pieces.flips(p) for p in pieces)


class Contrary(FlipOptimizer):
    """A rule of one's own, without memory: a weight flips where this step's gradient is beyond the threshold."""

    def __init__(self, params: Any, threshold: float = 0.0) -> None:
        super().__init__(params, {"threshold": threshold})

    def filter_(self, op: base.Ops, g: Any, moments: Any, group: base.Group) -> None:
        self.evidence = g

    def flips_where(self, op: base.Ops, w: Any, moments: Any, group: base.Group, step: int) -> Any:
        x = op.mul(self.evidence, w)
        op.gt_(x, group["threshold"])
        return x


def test_a_rule_of_ones_own_without_moments_and_with_gaps_in_memory() -> None:
    storage = torch.full((300, 400, 2), 7.0)
    w = nn.Parameter(storage[..., 0])
    with torch.no_grad():
        w.copy_(signs(300, 400))
    start = w.detach().clone()
    g = torch.randn(300, 400)
    w.grad = torch.stack([g, g], -1)[..., 0]
    opt = Contrary([w])
    opt.step()
    assert torch.equal(w, torch.where(g * start > 0, -start, start))
    assert opt.flips(w) == (g * start > 0).sum().item()
    assert (storage[..., 1] == 7).all()


def test_a_sharded_looking_tensor_is_updated_through_its_local_part() -> None:
    class Sharded(Tensor):
        def to_local(self) -> Tensor:
            return self.as_subclass(Tensor)

    assert type(base._local(torch.ones(2).as_subclass(Sharded))) is Tensor
    plain = torch.ones(2)
    assert base._local(plain) is plain


def test_counts_beyond_float32_are_exact() -> None:
    mask = torch.ones(2**24 + 3)
    assert base._count(mask) == 2**24 + 3
    assert base.SINGLE.count(torch.ones(7)) == 7
