"""The definitions: sums in the stated order, one rounding a term, torch's semantics."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostbit_runtime import InputError, interpret
from frostbit_runtime.reference import FUNCTIONS
from frostbit_runtime.reference.elementwise import erf
from frostbit_runtime.reference.sums import fma
from programs import Builder, binarynet, conv_attrs, residual_net, token_net


def rounded(value: Fraction) -> np.float32:
    """Round an exact number to float32, ties to even, with integer arithmetic only."""
    if value == 0:
        return np.float32(0)
    sign, value = (-1, -value) if value < 0 else (1, value)
    exponent = max(value.numerator.bit_length() - value.denominator.bit_length() - 24, -149)
    while value / Fraction(2) ** exponent >= 2**24:
        exponent += 1
    while value / Fraction(2) ** exponent < 2**23 and exponent > -149:
        exponent -= 1
    return np.float32(sign * round(value / Fraction(2) ** exponent) * 2.0**exponent)  # round() is half to even


SIGNIFICANDS = st.sampled_from([1, 1 + 2**-23, 1 - 2**-24, 1 - 2**-23, 1 + 2**-12, 1.5, 1 + 3 * 2**-23])


@st.composite
def float32s(draw, low, high):
    if draw(st.booleans()):
        return np.float32(draw(SIGNIFICANDS) * 2.0 ** draw(st.integers(low, high))) * draw(st.sampled_from([1, -1]))
    return np.float32(draw(st.floats(-(2.0**high), 2.0**high, width=32)))


@settings(max_examples=400, deadline=None)
@given(float32s(-80, 20), float32s(-80, 20), float32s(-149, 60))
def test_fma_rounds_once(a, b, c):
    found = fma(np.array([a]), np.array([b]), np.array([c]))
    assert found[0] == rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def test_fma_where_float64_alone_would_round_twice():
    one = np.float32(1)
    a, b = one + np.float32(2**-23), one - np.float32(2**-23)  # product just below 1
    for c in (2.0**24 + 2, -(2.0**24) - 2):  # adding 1 is half-way
        c = np.float32(c)
        for left in (a, -a):
            exact = Fraction(float(left)) * Fraction(float(b)) + Fraction(float(c))
            naive = np.float32(np.float64(left) * b + c)
            assert fma(np.array([left]), np.array([b]), np.array([c]))[0] == rounded(exact)
            assert naive != rounded(exact) or np.sign(left) == np.sign(c) == 0
    # below the normal numbers float32 has fewer bits, so half-way lies elsewhere
    tiny = np.float32(2.0**-149)
    a, b = np.float32((1 - 2**-23) * 2.0**-75), np.float32((1 + 2**-23) * 2.0**-75)
    assert fma(np.array([a]), np.array([b]), np.array([tiny]))[0] == tiny


def loop_conv(x, weight, attrs):
    """A convolution by Python loops, one term after the other."""
    groups, (filters, inner, *kernel) = attrs["groups"], weight.shape
    x = np.pad(x, [(0, 0), (0, 0), *map(tuple, attrs["padding"])])
    spans = [d * (k - 1) + 1 for d, k in zip(attrs["dilation"], kernel, strict=True)]
    out = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, attrs["stride"], strict=True)]
    y = np.zeros((len(x), filters, *out), np.float32)
    for n, o, *place in itertools.product(*map(range, y.shape)):
        total = np.zeros(1, np.float32)
        for position in itertools.product(*map(range, kernel)):
            rows = zip(place, attrs["stride"], position, attrs["dilation"], strict=True)
            at = tuple(q * s + p * d for q, s, p, d in rows)
            for c in range(inner):
                entry = x[(n, o // (filters // groups) * inner + c, *at)]
                total = fma(np.array([entry]), np.array([weight[(o, c, *position)]]), total)
        y[(n, o, *place)] = total[0]
    return y


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_real_sums_go_by_position_then_channel(dims):
    rng = np.random.default_rng(dims)
    x = rng.standard_normal((2, 4, *[4, 5, 3][:dims])).astype(np.float32)
    weight = (rng.standard_normal((4, 2, *[2, 3, 2][:dims])) * 10.0 ** rng.integers(-4, 4, 1)).astype(np.float32)
    attrs = conv_attrs(dims, stride=2, pad=1, groups=2)
    found = FUNCTIONS["conv"]([x], attrs, {"weight": weight})
    np.testing.assert_array_equal(found, loop_conv(x, weight, attrs))


def test_the_order_of_a_sum_matters_and_is_kept():
    x = np.array([[1.0, 2.0**24, -(2.0**24)]], np.float32)
    assert FUNCTIONS["dense"]([x], {}, {"weight": np.ones((1, 3), np.float32)})[0, 0] == 0
    x = np.array([[2.0**24, -(2.0**24), 1.0]], np.float32)
    assert FUNCTIONS["dense"]([x], {}, {"weight": np.ones((1, 3), np.float32)})[0, 0] == 1
    column = np.array([2.0**24, 1, 1, 1, 1], np.float32).reshape(1, 1, 5)
    for kind, attrs in (("mean", {"axes": [2], "keepdims": False}), ("avg_pool", AVERAGE)):
        assert FUNCTIONS[kind]([column], attrs, {}).item() == np.float32(2.0**24) / np.float32(5)


AVERAGE = {"kernel": [5], "stride": [1], "padding": [0], "ceil_mode": False, "count_include_pad": True}


def test_zeros_of_both_signs_are_positive():
    x = np.array([[-0.0, 0.0, -1e-45]], np.float32)
    np.testing.assert_array_equal(FUNCTIONS["sign"]([x], {}, {}), [[1, 1, -1]])


def test_thresholds():
    sums = np.array([[3, 3, 4, 4]], np.int32)
    tensors = {"at": np.array([3, 4, 4, 5], np.int16), "flip": np.array([-1, -1, 1, 1], np.int8)}
    np.testing.assert_array_equal(FUNCTIONS["threshold"]([sums], {"axis": 1}, tensors), [[1, -1, -1, 1]])


@pytest.mark.parametrize("seed", range(60))
def test_as_torch(seed):
    torch = pytest.importorskip("torch")
    functional, rng, choose = torch.nn.functional, np.random.default_rng(seed), random.Random(seed)
    dims, groups = choose.choice([1, 2, 3]), choose.choice([1, 2])

    def ints(low, high):
        return [choose.randint(low, high) for _ in range(dims)]

    def by_name(name):
        return getattr(functional, f"{name}{dims}d")

    sizes, kernel, stride, dilation, pad = ints(4, 7), ints(1, 3), ints(1, 3), ints(1, 2), ints(0, 1)
    channels, out = groups * choose.randint(1, 3), groups * choose.randint(1, 3)
    x = rng.standard_normal((2, channels, *sizes)).astype(np.float32)
    weight = rng.standard_normal((out, channels // groups, *kernel)).astype(np.float32)
    back = rng.standard_normal((channels, out // groups, *kernel)).astype(np.float32)
    bias = rng.standard_normal(out).astype(np.float32)
    extra = [choose.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    window = ints(1, 4)
    half, ceil, include = [choose.randint(0, k // 2) for k in window], choose.random() < 0.5, choose.random() < 0.5
    t, signs = torch.tensor, np.where(x >= 0, 1, -1).astype(np.int8)
    attrs = {"stride": stride, "dilation": dilation, "groups": groups}
    conv = attrs | {"padding": [[p, p] for p in pad]}
    transposed = attrs | {"padding": pad, "output_padding": extra}
    pool = {"kernel": window, "stride": stride, "padding": half, "ceil_mode": ceil}
    binary, binary_back = np.sign(weight).astype(np.int8), np.sign(back).astype(np.int8)
    cases = [
        ("conv", x, conv, {"weight": weight, "bias": bias}, "conv",
         (t(weight), t(bias), stride, pad, dilation, groups)),
        ("binary_conv", signs, conv | {"pad_value": 0}, {"weight": binary}, "conv",
         (t(binary).float(), None, stride, pad, dilation, groups)),
        ("conv_transpose", x, transposed, {"weight": back, "bias": bias}, "conv_transpose",
         (t(back), t(bias), stride, pad, extra, groups, dilation)),
        ("binary_conv_transpose", signs, transposed, {"weight": binary_back}, "conv_transpose",
         (t(binary_back).float(), None, stride, pad, extra, groups, dilation)),
        ("max_pool", x, pool | {"dilation": dilation}, {}, "max_pool", (window, stride, half, dilation, ceil)),
        ("avg_pool", x, pool | {"count_include_pad": include}, {}, "avg_pool", (window, stride, half, ceil, include)),
    ]  # fmt: skip
    for kind, value, own, tensors, name, arguments in cases:
        try:
            expected = by_name(name)(t(value).float(), *arguments).numpy()
        except RuntimeError:  # torch refuses these sizes
            continue
        found = FUNCTIONS[kind]([value], own, tensors)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 if "binary" not in kind else 0)


def test_the_error_function_is_that_of_the_c_library():
    z = np.linspace(-9, 9, 200_001)
    exact = np.array([math.erf(each) for each in z])
    np.testing.assert_allclose(erf(z), exact, rtol=0, atol=2e-8)
    inside = np.abs(z) < 4
    np.testing.assert_allclose(erf(z)[inside], exact[inside], rtol=1e-10, atol=0)
    np.testing.assert_allclose(erf(z)[inside], exact[inside], rtol=0, atol=8e-12)
    assert (erf(z).astype(np.float32) == exact.astype(np.float32)).mean() > 0.999  # where GELU becomes -0.0, foremost
    assert (np.diff(erf(z)) >= -1e-15).all()


def test_elementwise_as_torch():
    torch = pytest.importorskip("torch")
    x = np.linspace(-120, 120, 4001).astype(np.float32).reshape(1, -1, 1)
    t, f = torch.tensor(x), torch.nn.functional
    pairs = [
        (FUNCTIONS["gelu"]([x], {"approximate": "none"}, {}), f.gelu(t)),
        (FUNCTIONS["gelu"]([x], {"approximate": "tanh"}, {}), f.gelu(t, approximate="tanh")),
        (FUNCTIONS["silu"]([x], {}, {}), f.silu(t)),
        (FUNCTIONS["sigmoid"]([x], {}, {}), t.sigmoid()),
        (FUNCTIONS["tanh"]([x], {}, {}), t.tanh()),
        (FUNCTIONS["softmax"]([x], {"axis": 1}, {}), t.softmax(1)),
        (FUNCTIONS["clip"]([x], {"min": -1, "max": None}, {}), t.clamp(min=-1)),
        (FUNCTIONS["relu"]([x], {}, {}), t.relu()),
        (
            FUNCTIONS["layer_norm"]([x], {"axes": 2, "eps": 1e-5}, {"weight": x[0], "bias": x[0]}),
            f.layer_norm(t, t.shape[1:], t[0], t[0]),
        ),
    ]
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("make", [binarynet, residual_net])
def test_samples_do_not_see_each_other(make):
    program = make()
    rng = np.random.default_rng(0)
    x = rng.standard_normal([3, *program.inputs[0].shape[1:]]).astype(np.float32)
    together = interpret(program, x)
    for i in range(3):
        np.testing.assert_array_equal(interpret(program, x[i : i + 1]), together[i : i + 1])


def test_indices_are_compared_counted_and_combined():
    tokens = np.array([[7, 1, 1, 9], [1, 3, 4, 5]])
    mask = FUNCTIONS["differs"]([tokens], {"value": 1}, {})
    counted = FUNCTIONS["mul"]([FUNCTIONS["cumsum"]([mask], {"axis": 1}, {}), mask], {}, {})
    big = FUNCTIONS["add"]([np.array([2**53]), np.array([1])], {}, {})  # no float holds it
    assert (mask.tolist(), counted.tolist()) == ([[1, 0, 0, 1], [0, 1, 1, 1]], [[1, 0, 0, 2], [0, 1, 2, 3]])
    assert (mask.dtype, counted.dtype, big.tolist()) == (np.int64, np.int64, [2**53 + 1])


def test_padding_changes_nothing():
    program, tokens = token_net(), np.array([[5, 0, 7]])
    padded = np.array([[5, 0, 7, 1, 1]])
    np.testing.assert_array_equal(interpret(program, padded), interpret(program, tokens))
    assert (interpret(program, np.array([[5, 0, 7, 2, 2]])) != interpret(program, tokens)).any()


def test_any_number_of_tokens():
    program = token_net()
    tokens = np.arange(10).reshape(2, 5)
    assert interpret(program, tokens).shape == (2, 3)
    assert interpret(program, tokens[:, :2]).shape == (2, 3)
    with pytest.raises(InputError, match="at most 12 positions are stored, found 13"):
        interpret(program, np.zeros((1, 13), np.int64))
    with pytest.raises(InputError, match="index 20 is outside of a table of 20 rows"):
        interpret(program, np.full((1, 2), 20))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([], "takes 1 inputs \\(x0\\), found 0"),
        ([[0.0]], "must be a numpy array, found list"),
        ([np.zeros((1, 4))], "must be float32, found float64"),
        ([np.zeros((1, 4, 1), np.float32)], "must have shape \\[any, 4\\], found \\[1, 4, 1\\]"),
        ([np.zeros((0, 4), np.float32)], "must have shape \\[any, 4\\], found \\[0, 4\\]"),
        ([np.full((1, 4), np.inf, np.float32)], "holds values that are not finite"),
    ],
)
def test_wrong_arguments(arrays, words):
    b = Builder(np.random.default_rng(0))
    program = b.program(b.op("relu", b.input((None, 4))))
    with pytest.raises(InputError, match=words):
        interpret(program, *arrays)
