from __future__ import annotations

import numpy as np
import pytest
from frostbit_runtime import kernels
from hypothesis import given
from hypothesis import strategies as st

from . import plain
from .cases import examples


@examples
@given(st.lists(st.integers(1, 5), max_size=3), st.integers(1, 100), st.integers(0, 2**31))
def test_packing_is_a_comparison_and_unpacking_its_inverse(lead: list[int], channels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.choice(
        np.array([-1e-45, -2.0, -0.0, 0.0, 1e-45, 3.0, -np.inf, np.inf], np.float32), (*lead, channels)
    )
    words = kernels.pack(x)
    np.testing.assert_array_equal(words, plain.pack(x))
    np.testing.assert_array_equal(kernels.pack_bool(x >= 0), words)
    signs = kernels.unpack(words, channels)
    np.testing.assert_array_equal(signs, np.where(x >= 0, 1, -1))
    assert signs.dtype == np.float32
    assert words.dtype == np.uint32


def test_both_zeros_are_plus_one() -> None:
    assert kernels.pack(np.array([[0.0, -0.0, -1.0]], np.float32)).tolist() == [[3]]


@pytest.mark.parametrize("shape", [(0, 40), (3, 0, 40)])
def test_nothing_packs_to_nothing(shape: tuple[int, ...]) -> None:
    assert kernels.pack(np.zeros(shape, np.float32)).shape == (*shape[:-1], 2)
