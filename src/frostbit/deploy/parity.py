"""Whether what was written computes what the model computes, every sign accounted for.

Two correct implementations of one network may differ: a sum of floats next to a sign, rounded differently, can fall on
the other side of 0, and what follows is then another computation. So the comparison has two parts. As they stand, the
share of samples with the same largest output. And with the written network's signs put in the model's place, one after
the other: then every activation must agree but for rounding, and each sign that differs must belong to a number that is
0 but for rounding. A mistake cannot hide behind the second part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostbit.errors import RunError
from frostbit.evaluation import hardened
from frostbit.graph import as_arguments
from frostbit.nn import BinaryLayer
from frostbit.quantizers import Quantizer, hard


@dataclass(frozen=True)
class Tolerance:
    """What counts as rounding.

    Attributes:
        near_zero: a sign may differ where ``|x|`` is below this share of the largest one in its tensor.
        outputs: results may differ by this share of the largest one.
    """

    near_zero: float
    outputs: float


EXACT = Tolerance(1e-4, 1e-3)
#: for weights and norms stored in float16 or int8
LOSSY = Tolerance(5e-2, 1e-1)

#: arrays of the named values for the given inputs
Run = Callable[[Sequence[str], Sequence[Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Trace:
    """Where a sample parted from the model.

    Attributes:
        sample: its number.
        site: which binary activation gave it another sign first, counted from 1; ``None``: none did, two outputs are
            equal but for rounding.
        value: the model's number there; for outputs, the distance of the two largest.
        largest: the largest magnitude beside it, in the same tensor.
    """

    sample: int
    site: int | None
    value: float
    largest: float

    def __str__(self) -> str:
        where = "outputs apart by" if self.site is None else f"binary activation {self.site} reads"
        return f"sample {self.sample}: {where} {self.value:.2g} (largest {self.largest:.3g})"


@dataclass(frozen=True)
class Parity:
    """How a written network compares with the hardened model.

    Attributes:
        samples: how many were compared.
        agreement: share of samples whose largest output is the same.
        signs: how many signs of activations were compared.
        flips: how many of them differ, each at a number that is 0 but for rounding.
        error: largest difference of outputs computed from equal signs, as a share of the largest output.
        furthest: largest number whose sign differs, as a share of the largest one beside it.
        traces: for each sample whose largest output is another, why.
    """

    samples: int
    agreement: float
    signs: int
    flips: int
    error: float
    furthest: float = 0.0
    traces: tuple[Trace, ...] = ()

    def __str__(self) -> str:
        text = f"{self.agreement:.1%} of {self.samples} samples agree with the hardened model"
        if not self.signs:
            return text
        return f"{text}, {self.flips} of {self.signs:,} signs differ, each at a sum of 0 but for rounding"


def compare(
    model: nn.Module,
    example_input: Any,
    outputs: Sequence[str],
    sites: Sequence[str | None],
    run: Run,
    what: str,
    tolerance: Tolerance = EXACT,
) -> Parity:
    """Compare a written network with the model that it was made of.

    Args:
        model: binary or float; evaluated hardened, its state is left as it was.
        example_input: what the model is called with.
        outputs: names of the network's results, in the order of the model's.
        sites: names of the signs of activations, in the order in which the model takes them; ``None`` for one that
            nobody reads.
        run: computes named values of the written network.
        what: its name, for the message.
        tolerance: what counts as rounding.

    Returns:
        The comparison.

    Raises:
        RunError: they disagree beyond rounding.
    """
    arguments = as_arguments(example_input)
    arrays = [array_of(leaf) for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    found = run(list(dict.fromkeys([*outputs, *filter(None, sites)])), arrays)
    plain = _call(model, arguments)
    ours = [np.asarray(found[name], np.float32) for name in outputs]
    judge = _Judge([None if name is None else np.asarray(found[name]) for name in sites], what, tolerance.near_zero)
    with _instead(model, judge):
        forced = _call(model, arguments)
    if judge.next != len(sites):  # a sign that nobody reads, or one taken in other code: no order to go by
        judge.flips, judge.furthest, judge.first = 0, 0.0, {}
        forced = plain
    if [y.shape for y in ours] != [y.shape for y in forced]:
        shapes = [[list(y.shape) for y in each] for each in (forced, ours)]
        raise RunError(f"{what} disagrees with the model: outputs {shapes[0]} expected, found {shapes[1]}")
    error = max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in zip(ours, forced, strict=True))
    if not error <= tolerance.outputs:
        raise RunError(
            f"{what} disagrees with the model: from equal signs its outputs differ by {error:.2g} of the largest one, "
            f"expected rounding ({tolerance.outputs:g})"
        )
    first, expected = ours[0], plain[0]
    same = first.argmax(-1) == expected.argmax(-1) if first.ndim > 1 else np.isclose(first, expected)
    traces = tuple(judge.first.get(n) or _near_tie(n, expected[n]) for n in map(int, _samples(~same)))
    return Parity(len(first), float(same.mean()), judge.signs, judge.flips, error, judge.furthest, traces)


def _samples(different: Any) -> Any:
    """Return which samples a mask [N, ...] says something of."""
    return np.flatnonzero(different.reshape(len(different), -1).any(1))


def _near_tie(sample: int, outputs: Any) -> Trace:
    ranked = np.sort(outputs.reshape(-1))
    return Trace(sample, None, float(ranked[-1] - ranked[-2]) if ranked.size > 1 else 0.0, float(np.abs(ranked).max()))


def array_of(tensor: Tensor) -> Any:
    """Return an input as a written network takes it: float32 or int64."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor.long()).contiguous().numpy()


def _call(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Any]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), hardened(model.eval()):
            results = pytree.tree_leaves(model(*arguments[0], **arguments[1]))
    finally:
        for module, training in modes:
            module.training = training
    return [y.detach().cpu().float().numpy() for y in results if isinstance(y, Tensor)]


class _Judge:
    """Takes the model's numbers in turn, compares their signs with those written, and hands the written ones on."""

    def __init__(self, written: Sequence[Any], what: str, near_zero: float) -> None:
        self.written, self.what, self.near_zero = written, what, near_zero
        self.next = self.signs = self.flips = 0
        self.furthest = 0.0
        self.first: dict[int, Trace] = {}  # by sample

    def __call__(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        written = self.written[self.next] if self.next < len(self.written) else None
        self.next += 1
        if written is None:
            return hard(x)
        signs = torch.from_numpy(written.astype(np.float32)).to(x.device, x.dtype)
        if signs.shape != x.shape:
            raise RunError(
                f"{self.what} disagrees with the model: the {self.next}th sign has shape {list(signs.shape)}, "
                f"expected {list(x.shape)}"
            )
        self.signs += x.numel()
        differ = (x >= 0) != (signs >= 0)
        if not bool(differ.any()):
            return signs
        furthest, largest = float(x[differ].abs().max()), float(x.abs().max())
        self.flips += int(differ.sum())
        self.furthest = max(self.furthest, furthest / max(largest, 1e-30))
        for sample in map(int, _samples(differ.numpy(force=True))):
            value = float(x[sample][differ[sample]].abs().max())
            self.first.setdefault(sample, Trace(sample, self.next, value, largest))
        if furthest > self.near_zero * largest:
            raise RunError(
                f"{self.what} disagrees with the model: a sign of the {self.next}th binary activation differs at "
                f"{furthest:.3g}, where the largest is {largest:.3g}"
            )
        return signs


@contextmanager
def _instead(model: nn.Module, judge: _Judge) -> Iterator[None]:
    """Let ``judge`` stand for every quantizer of activations."""
    weights = {id(q) for m in model.modules() if isinstance(m, BinaryLayer) for _, _, q in m.latents()}
    for module in model.modules():
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            weights |= {id(part) for part in module.modules()}
    chosen = [m for m in model.modules() if isinstance(m, Quantizer) and id(m) not in weights]
    try:
        for quantizer in chosen:
            object.__setattr__(quantizer, "value", judge)
        yield
    finally:
        for quantizer in chosen:
            quantizer.__dict__.pop("value", None)
