from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from frostbit_runtime import kernels
from hypothesis import given
from hypothesis import strategies as st

from . import plain
from .cases import Case, convolutions, examples

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**40), max_value=2.0**40)


@examples
@given(FLOATS, FLOATS, FLOATS)
def test_the_plain_fma_rounds_the_exact_value_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = plain.fma(*(np.array([value], np.float32) for value in (a, b, c)))[0]
    below, above = np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))
    error = abs(Fraction(float(found)) - exact)
    for other in (below, above):
        distance = abs(Fraction(float(other)) - exact)
        assert error < distance or (error == distance and found.view(np.uint32) % 2 == 0)


@examples
@given(
    st.one_of(convolutions(most_channels=40), convolutions(most_channels=70, depthwise=True)),
    st.sets(st.sampled_from(["bias", "scale", "shift", "residual", "relu"])),
    st.integers(1, 3),
)
def test_every_float_equals_the_plain_one_bit_for_bit(case: Case, chosen: set[str], threads: int) -> None:
    weight = case.reals(*case.weight_shape, salt=5)
    sums = plain.real_conv(case.input, weight, case.stride, case.padding, case.dilation, case.groups)
    options: dict[str, Any] = {
        name: case.reals(case.outputs, salt=salt) for salt, name in enumerate(("bias", "scale", "shift"))
    }
    options |= {"residual": case.reals(*sums.shape, salt=4), "relu": True}
    options = {name: options[name] for name in sorted(chosen)}
    y = kernels.RealConv(weight, **case.geometry).run(case.input, threads=threads, **options)
    np.testing.assert_array_equal(y.view(np.uint32), plain.finish(sums, **options).view(np.uint32))


@examples
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**31))
def test_dense_equals_the_plain_form_bit_for_bit(rows: int, inputs: int, outputs: int, threads: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, inputs)).astype(np.float32)
    weight, bias = (generator.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), outputs))
    expected = plain.real_conv(x[None], weight[:, :, None], (1,), ((0, 0),), (1,), 1)[0] + bias
    np.testing.assert_array_equal(kernels.RealDense(weight).run(x, bias=bias, threads=threads), expected)


def test_a_stem_agrees_with_float64_closely() -> None:
    case = Case(1, (57, 57), 3, 64, 1, (7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 4)
    weight = case.reals(*case.weight_shape, salt=5)
    y = kernels.RealConv(weight, **case.geometry).run(case.input)
    columns = plain.windows(case.input.astype(np.float64), (7, 7), (2, 2), case.padding, (1, 1), 0)
    expected = np.einsum("nhwpc,ocp->nhwo", columns, weight.reshape(64, 3, 49).astype(np.float64))
    np.testing.assert_allclose(y, expected, atol=1e-3)


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    conv = kernels.RealConv(np.ones((4, 3, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"expected float32 \[N, \*S, 3\] with 2 dimensions of space, found float32"):
        conv.run(np.zeros((5, 5, 3), np.float32))
