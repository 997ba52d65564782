from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frostbit_runtime import kernels
from hypothesis import assume, given
from hypothesis import strategies as st

from . import plain
from .cases import Case, convolutions, examples


@examples
@given(convolutions(), st.sampled_from(["float32", "int32", "uint32"]), st.integers(1, 3))
def test_max_pool_equals_the_plain_form(case: Case, kind: Any, threads: int) -> None:
    x = case.reals(case.batch, *case.space, case.channels) * 100
    x = kernels.pack(x) if kind == "uint32" else x.astype(kind)
    ones = np.ones((1, *case.space, 1), np.float32)
    assume((plain.windows(ones, case.kernel, case.stride, case.padding, case.dilation, 0).max(-2) > 0).all())
    y = kernels.max_pool(x, case.kernel, case.stride, case.padding, case.dilation, threads)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, plain.max_pool(x, case.kernel, case.stride, case.padding, case.dilation))


@examples
@given(convolutions(), st.booleans(), st.integers(1, 3))
def test_avg_pool_sums_in_row_major_order(case: Case, count_include_pad: bool, threads: int) -> None:
    ones = (1,) * len(case.kernel)
    inside = np.ones((1, *case.space, 1), np.float32)
    assume(min(n + sum(p) - k for n, p, k in zip(case.space, case.padding, case.kernel, strict=True)) >= 0)
    counts = plain.windows(inside, case.kernel, case.stride, case.padding, ones, float(count_include_pad)).sum(-2)
    assume((counts > 0).all())
    y = kernels.avg_pool(case.input, case.kernel, case.stride, case.padding, count_include_pad, threads=threads)
    sums = plain.window_sum(plain.windows(case.input, case.kernel, case.stride, case.padding, ones, 0))
    np.testing.assert_array_equal(y, sums / counts)


def test_avg_pool_with_given_divisors_and_global_mean() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 7, 40)).astype(np.float32)
    divisors = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    y = kernels.avg_pool(x, (2, 2), (2, 2), divisors=divisors)
    sums = plain.window_sum(plain.windows(x, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), 0))
    np.testing.assert_array_equal(y, sums / divisors[:, :, None])
    expected = plain.window_sum(x.reshape(3, 35, 40)) / np.float32(35)
    np.testing.assert_array_equal(kernels.global_mean(x, threads=2), expected)


def test_a_window_in_the_border_is_refused() -> None:
    with pytest.raises(ValueError, match="padding: expected every window to reach the input"):
        kernels.max_pool(np.zeros((1, 3, 3, 1), np.float32), (1, 1), (1, 1), ((2, 0), (0, 0)))
