from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostbit_runtime import kernels
from frostbit_runtime.reference import FUNCTIONS
from frostbit_runtime.reference.rows import LANES, LOWEST, exponential, row_sum

from .cases import examples

seeds = st.integers(0, 2**31)


def bits(x: Any) -> Any:
    """Return what distinguishes every float32, NaNs apart."""
    return np.where(np.isnan(x), 0, x.view(np.int32))


def test_the_exponential_is_within_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(LOWEST, 0, 400_001), -np.logspace(-38, 0, 100_001)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    units = np.spacing(exact.astype(np.float32))
    assert (np.abs(exponential(x) - exact) / units).max() < 2
    assert exponential(np.zeros(1, np.float32)) == 1
    far = np.array([LOWEST - 1, -1e4, np.finfo(np.float32).min, -np.inf], np.float32)
    np.testing.assert_array_equal(exponential(far), 0)
    assert np.isnan(exponential(np.array([np.nan], np.float32)))[0]


@examples
@given(st.integers(1, 70), st.sampled_from([np.float32, np.float64]), seeds)
def test_a_row_is_summed_in_lanes(n: int, dtype: Any, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((3, n)).astype(dtype)
    for row, found in zip(x, row_sum(x), strict=True):
        lanes = np.zeros(LANES, dtype)
        for i, value in enumerate(row):
            lanes[i % LANES] += value
        for width in (8, 4, 2, 1):
            lanes = lanes[:width] + lanes[width : 2 * width]
        assert found.dtype == dtype
        assert found[0] == lanes[0]


@examples
@given(st.integers(1, 300), st.sampled_from([1e-30, 1e-3, 1, 4, 6, 1e30]), st.integers(1, 3), seeds)
def test_gelu_equals_the_reference_bit_for_bit(n: int, size: float, threads: int, seed: int) -> None:
    x = (np.random.default_rng(seed).standard_normal((2, n)) * size).astype(np.float32)
    x.flat[:: n // 3 + 1] = -0.0
    y = kernels.gelu(x, threads)
    np.testing.assert_array_equal(bits(y), bits(FUNCTIONS["gelu"]([x], {"approximate": "none"}, {})))


@examples
@given(
    st.integers(1, 30), st.integers(1, 70), st.sampled_from([0, 1e-3, 1, 40, 1e30]),
    st.sets(st.sampled_from([-np.inf, np.finfo(np.float32).min, -0.0])), st.integers(1, 3), seeds,
)  # fmt: skip
def test_softmax_equals_the_reference_bit_for_bit(
    rows: int, n: int, size: float, masked: set[float], threads: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal((2, rows, n)) * size).astype(np.float32)
    for value in masked:  # what attention masks hold; a whole row of -inf has no softmax
        x[generator.random(x.shape) < 0.2] = value
    y = kernels.softmax(x, threads)
    np.testing.assert_array_equal(bits(y), bits(FUNCTIONS["softmax"]([x], {"axis": -1}, {})))
    some = np.isfinite(x).any(-1)
    np.testing.assert_allclose(y[some].sum(-1), 1, rtol=1e-5)
    assert np.isnan(y[~some]).all()
    assert (y[np.isinf(x) & some[..., None]] == 0).all()


@examples
@given(
    st.integers(1, 30), st.integers(1, 70), st.booleans(), st.sets(st.sampled_from(["weight", "bias"])),
    st.sampled_from([0, 1e-20, 1, 1e30]), st.integers(1, 3), seeds,
)  # fmt: skip
def test_layer_norm_equals_the_reference_bit_for_bit(
    rows: int, n: int, two: bool, given_: set[str], size: float, threads: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    shape = (2, n) if two else (n,)
    x = (generator.standard_normal((3, rows, *shape)) * size + size).astype(np.float32)
    own = {name: generator.standard_normal(shape).astype(np.float32) for name in given_}
    attrs = {"axes": len(shape), "eps": 1e-5}
    y = kernels.layer_norm(x, **attrs, **own, threads=threads)
    np.testing.assert_array_equal(bits(y), bits(FUNCTIONS["layer_norm"]([x], attrs, own)))


def test_a_softmax_that_meets_infinity_is_no_number() -> None:
    x = np.zeros((3, 40), np.float32)
    x[0, 5], x[1, 39] = np.inf, np.nan
    for found in (kernels.softmax(x), FUNCTIONS["softmax"]([x], {"axis": 1}, {})):
        assert np.isnan(found).any(1).tolist() == [True, True, False]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_the_reference_takes_any_axis(axis: int) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    wide = np.exp(x.astype(np.float64))
    found = FUNCTIONS["softmax"]([x], {"axis": axis}, {})
    np.testing.assert_allclose(found, wide / wide.sum(axis, keepdims=True), rtol=1e-6)


@examples
@given(st.integers(0, 4), st.integers(1, 40), st.integers(1, 50), st.integers(1, 70), st.integers(1, 3), seeds)
def test_products_equal_the_reference_bit_for_bit(
    count: int, height: int, inner: int, width: int, threads: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((count, height, inner)).astype(np.float32)
    right = generator.standard_normal((count, width, inner)).astype(np.float32).transpose(0, 2, 1)
    found = kernels.matmul(left, right, threads)
    np.testing.assert_array_equal(bits(found), bits(FUNCTIONS["matmul"]([left, right], {}, {})))
