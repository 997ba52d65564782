"""Shapes for the property tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from .plain import Array

# The first example compiles, the others take a fraction of a millisecond.
examples = settings(deadline=None, max_examples=100, derandomize=True)


@dataclass(frozen=True)
class Case:
    """One convolution."""

    batch: int
    space: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    seed: int

    @property
    def channels(self) -> int:
        """Return all input channels."""
        return self.inputs * self.groups

    @property
    def geometry(self) -> dict[str, Any]:
        """Return the arguments of a layer."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def reals(self, *shape: int, salt: int = 0) -> Array:
        """Return float32 values with zeros of both signs among them."""
        generator = np.random.default_rng((self.seed, salt))
        values = generator.standard_normal(shape) * generator.choice([0.0, 1.0, 1.0, 4.0], shape)
        return (values * generator.choice([-1.0, 1.0], shape)).astype(np.float32)

    def signs(self, *shape: int, salt: int = 1) -> Array:
        """Return int8 values of -1 and +1."""
        return np.random.default_rng((self.seed, salt)).choice(np.array([-1, 1], np.int8), shape)

    @property
    def input(self) -> Array:
        """Return float32 [N, *S, C]."""
        return self.reals(self.batch, *self.space, self.channels)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Return [O, C/groups, *K]."""
        return (self.outputs, self.inputs, *self.kernel)


@st.composite
def convolutions(draw: Any, most_channels: int = 70, depthwise: bool = False) -> Case:
    """Draw a convolution whose output has at least one pixel."""
    dimensions = draw(st.sampled_from([1, 2, 2, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dimensions))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    before, after = each(0, 2), each(0, 2)
    space = tuple(
        max(1, d * (k - 1) + 1 - b - a) + draw(st.integers(0, 9 if dimensions < 3 else 3))
        for d, k, b, a in zip(dilation, kernel, before, after, strict=True)
    )
    if depthwise:
        groups = outputs = draw(st.integers(2, most_channels))
        inputs = 1
    else:
        groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
        inputs = draw(st.one_of(st.integers(1, most_channels // groups), st.sampled_from([32, 64])))
        outputs = groups * draw(st.one_of(st.integers(1, most_channels // groups), st.sampled_from([32, 64])))
    batch, seed = draw(st.sampled_from([1, 2, 7])), draw(st.integers(0, 2**31))
    padding = tuple(zip(before, after, strict=True))
    return Case(batch, space, inputs, outputs, groups, kernel, stride, padding, dilation, seed)
