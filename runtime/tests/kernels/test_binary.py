from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from frostbit_runtime import kernels
from hypothesis import given
from hypothesis import strategies as st

from . import plain
from .cases import Case, convolutions, examples


def sums_of(case: Case, weight: plain.Array, pad_value: int) -> plain.Array:
    signs = np.where(case.input >= 0, 1, -1).astype(np.float32)
    return plain.binary_conv(signs, weight, case.stride, case.padding, case.dilation, case.groups, pad_value)


@examples
@given(st.one_of(convolutions(), convolutions(depthwise=True)), st.sampled_from([0, 1, -1]), st.integers(1, 3))
def test_sums_equal_the_plain_ones_for_every_geometry_border_and_form_of_input(
    case: Case, pad_value: int, threads: int
) -> None:
    weight = case.signs(*case.weight_shape)
    conv = kernels.BinaryConv(weight, **case.geometry, pad_value=pad_value)
    expected = sums_of(case, weight, pad_value)
    for x in (case.input, kernels.pack(case.input)):
        y = conv.run(x, threads=threads)
        assert y.dtype == np.int32
        np.testing.assert_array_equal(y, expected)


@examples
@given(
    st.one_of(convolutions(), convolutions(depthwise=True)),
    st.sets(st.sampled_from(["scale", "shift", "residual", "relu"]), min_size=1),
    st.integers(1, 2),
)
def test_floats_equal_the_plain_ones_bit_for_bit(case: Case, chosen: set[str], threads: int) -> None:
    weight = case.signs(*case.weight_shape)
    sums = sums_of(case, weight, 0)
    options: dict[str, Any] = {
        "scale": case.reals(case.outputs, salt=2),
        "shift": case.reals(case.outputs, salt=3),
        "residual": case.reals(*sums.shape, salt=4),
        "relu": True,
    }
    options = {name: options[name] for name in sorted(chosen)}
    y = kernels.BinaryConv(weight, **case.geometry).run(case.input, threads=threads, **options)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.view(np.uint32), plain.finish(sums, **options).view(np.uint32))


@examples
@given(st.one_of(convolutions(), convolutions(depthwise=True)), st.booleans(), st.integers(1, 2))
def test_signs_equal_the_plain_ones_and_leave_unused_bits_zero(case: Case, flipped: bool, threads: int) -> None:
    weight = case.signs(*case.weight_shape)
    sums = sums_of(case, weight, 0)
    generator = np.random.default_rng(case.seed)
    at = generator.integers(-9, 10, case.outputs).astype(np.int32)
    flip = generator.random(case.outputs) < 0.5 if flipped else None
    y = kernels.BinaryConv(weight, **case.geometry).run(case.input, at=at, flip=flip, threads=threads)
    np.testing.assert_array_equal(y, plain.finish(sums, at=at, flip=flip))


@pytest.mark.parametrize("follow", ["sums", "reals", "signs", "flipped"])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_pool_takes_the_maximum_of_the_sums_before_anything_else(follow: str, groups: int) -> None:
    case = Case(2, (9, 8), 20, 48, groups, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3)
    weight, pool = case.signs(*case.weight_shape), ((3, 2), (2, 2), ((1, 1), (0, 0)), (1, 1))
    sums = plain.max_pool(sums_of(case, weight, 0), *pool)
    at = np.arange(-24, 24, dtype=np.int32)
    options: dict[str, Any] = {
        "sums": {},
        "reals": {"scale": case.reals(48, salt=2), "residual": case.reals(*sums.shape, salt=3), "relu": True},
        "signs": {"at": at},
        "flipped": {"at": at, "flip": at % 3 == 0},
    }[follow]
    y = kernels.BinaryConv(weight, **case.geometry).run(case.input, pool=pool, **options)
    np.testing.assert_array_equal(y, plain.finish(sums, **options))


@examples
@given(st.integers(1, 70), st.integers(1, 200), st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**31))
def test_dense_sums_equal_the_matrix_product(rows: int, inputs: int, outputs: int, threads: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, inputs)).astype(np.float32)
    weight = generator.choice(np.array([-1, 1], np.int8), (outputs, inputs))
    residual = generator.standard_normal((rows, outputs)).astype(np.float32)
    expected = np.where(x >= 0, 1, -1) @ weight.T
    dense = kernels.BinaryDense(weight)
    np.testing.assert_array_equal(dense.run(kernels.pack(x), threads=threads), expected)
    np.testing.assert_array_equal(dense.run(x, residual=residual), expected.astype(np.float32) + residual)


def test_an_empty_batch_gives_an_empty_result() -> None:
    x = np.zeros((0, 5, 5, 3), np.float32)
    assert kernels.BinaryConv(WEIGHT).run(x).shape == (0, 3, 3, 4)
    assert kernels.BinaryConv(WEIGHT).run(kernels.pack(x), at=np.zeros(4, np.int32), threads=2).shape == (0, 3, 3, 1)
    assert kernels.BinaryDense(WEIGHT[:, :, 0, 0]).run(x[:, 0, 0]).shape == (0, 4)
    assert kernels.RealConv(WEIGHT.astype(np.float32)).run(x).shape == (0, 3, 3, 4)
    assert kernels.max_pool(x, (2, 2), (2, 2)).shape == (0, 2, 2, 3)


def test_long_sums_are_exact() -> None:
    ones = np.ones((3, 20000), np.float32)
    weight = np.ones((5, 20000), np.int8)
    assert (kernels.BinaryDense(weight).run(-ones) == -20000).all()
    assert (kernels.BinaryDense(weight).run(ones) == 20000).all()


def test_leading_dimensions_batch_64_and_a_given_output() -> None:
    case = Case(64, (5, 3), 33, 40, 1, (3, 3), (2, 1), ((1, 1), (1, 1)), (1, 1), 8)
    weight = case.signs(*case.weight_shape)
    expected = sums_of(case, weight, 0)
    out = np.empty(expected.shape, np.int32)
    assert kernels.BinaryConv(weight, **case.geometry).run(case.input, out) is out
    np.testing.assert_array_equal(out, expected)
    dense = kernels.BinaryDense(weight[:, :, 0, 0])
    expected = np.where(case.input >= 0, 1, -1) @ weight[:, :, 0, 0].T
    np.testing.assert_array_equal(dense.run(case.input), expected)
    out = np.empty(expected.shape, np.int32)
    assert np.shares_memory(dense.run(case.input, out), out)
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="out: expected C-contiguous"):
        dense.run(case.input, np.empty((*expected.shape[:-1], 80), np.int32)[..., ::2])


def test_the_residual_may_be_the_output() -> None:
    case = Case(2, (7, 7), 64, 48, 1, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 5)
    weight = case.signs(*case.weight_shape)
    stream = case.reals(2, 7, 7, 48, salt=9)
    expected = plain.finish(sums_of(case, weight, 0), residual=stream)
    kernels.BinaryConv(weight, **case.geometry).run(case.input, stream, residual=stream, threads=2)
    np.testing.assert_array_equal(stream, expected)


WEIGHT = np.ones((4, 3, 3, 3), np.int8)


@pytest.mark.parametrize(
    ("build", "run", "words"),
    [
        ({"pad_value": 2}, {}, "pad_value: expected 0, 1 or -1, found 2"),
        ({"groups": 3}, {}, "groups: expected a divisor of the 4 output channels, found 3"),
        ({"stride": (1,)}, {}, "stride: expected 2 entries of at least 1"),
        ({"dilation": (0, 1)}, {}, "dilation: expected 2 entries of at least 1"),
        ({}, {"x": np.zeros((1, 5, 5, 4), np.float32)}, "expected float32 .N, .S, 3. or uint32 .N, .S, 1."),
        ({}, {"x": np.zeros((1, 5, 5, 3), np.float64)}, "found float64"),
        ({}, {"x": np.zeros((1, 2, 5, 3), np.float32)}, "expected at least as large as the window"),
        ({}, {"scale": np.ones(3, np.float32)}, r"scale: expected shape \(4,\), found \(3,\)"),
        ({}, {"flip": np.ones(4, bool)}, "flip: expected thresholds"),
        ({}, {"at": np.ones(4, np.int32), "relu": True}, "at: expected no scale"),
        ({}, {"residual": np.ones((1, 3, 3, 5), np.float32)}, r"residual: expected shape \(1, 3, 3, 4\)"),
        ({}, {"out": np.ones((1, 3, 3, 4), np.float32)}, "out: expected C-contiguous int32"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(build: dict[str, Any], run: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kernels.BinaryConv(WEIGHT, **build).run(**{"x": np.zeros((1, 5, 5, 3), np.float32)} | run)
