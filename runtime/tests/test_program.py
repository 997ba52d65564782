"""What a program may be: encodings, the table of operations, one sentence for each fault."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from frostbit_runtime import OPS, Input, Op, Program, ProgramError, Stored, check
from frostbit_runtime.reference import FUNCTIONS
from programs import Builder, binarynet, conv_attrs, pool_attrs

FLOATS = st.floats(-1000, 1000, width=32)


@given(hnp.arrays(np.bool_, hnp.array_shapes(max_dims=4, max_side=9)))
def test_bits_hold_signs(ones):
    signs = np.where(ones, 1, -1)
    for array in (ones, signs, signs.astype(np.float32)):
        tensor = Stored.encode(array, "bits")
        np.testing.assert_array_equal(tensor.decode(), signs)
        assert tensor.nbytes == -(-ones.size // 8)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=FLOATS))
def test_reals_are_kept_or_rounded_once(array):
    np.testing.assert_array_equal(Stored.encode(array, "float32").decode(), array)
    np.testing.assert_array_equal(Stored.encode(array, "float16").decode(), array.astype(np.float16).astype(np.float32))
    eight = Stored.encode(array, "int8")
    rows = np.abs(array).reshape(len(array), -1).max(axis=1).reshape(-1, *[1] * (array.ndim - 1))
    assert np.all(np.abs(eight.decode() - array) <= rows / 127 * 0.5001 + 1e-37)
    assert eight.nbytes == array.size + 4 * len(array)


@pytest.mark.parametrize(
    ("array", "encoding", "words"),
    [
        ([0, 1], "bits", "another value"),
        ([0.5, 1], "bits", "another value"),
        ([np.nan], "bits", "another value"),
        ([np.nan], "float32", "cannot hold NaN"),
        ([70000.0], "float16", "float16 cannot hold 70000"),
        ([1.5], "int16", "int16 cannot hold 1.5"),
        ([2**15], "int16", "int16 cannot hold 32768"),
        ([2**31], "int32", "int32 cannot hold 2147483648"),
        (1.0, "int8", "at least one axis"),
        ([1.0], "int4", "unknown encoding 'int4'"),
    ],
)
def test_what_an_encoding_cannot_hold(array, encoding, words):
    with pytest.raises(ProgramError, match=words):
        Stored.encode(np.array(array), encoding)


def test_every_operation_has_a_definition():
    assert set(OPS) == set(FUNCTIONS)


def conv_program(**changes):
    b = Builder(np.random.default_rng(0))
    x = b.op("sign", b.input((None, 4, 5, 5)))
    x = b.op("binary_conv", x, attrs=conv_attrs(pad_value=0) | changes.pop("attrs", {}), weight=b.signs(8, 4, 3, 3))
    program = b.program(b.norm(x, 8))
    return dataclasses.replace(program, **changes)


def with_op(index, **changes):
    program = conv_program()
    ops = list(program.ops)
    ops[index] = dataclasses.replace(ops[index], **changes)
    return dataclasses.replace(program, ops=tuple(ops))


def one_op(kind, shape=(None, 4, 6, 6), attrs=None, **tensors):
    b = Builder(np.random.default_rng(0))
    x = b.input(shape)
    if kind in ("binary_conv", "binary_dense", "binary_conv_transpose", "threshold"):
        x = b.op("sign", x)
    return b.program(b.op(kind, x, attrs=attrs, **tensors))


def index_op(kind, attrs=None, **tensors):
    b = Builder(np.random.default_rng(0))
    return b.program(b.op(kind, b.input((None, None), "int64"), attrs=attrs, **tensors))


def bits(*shape):
    return np.ones(shape, np.int8), "bits"


def floats(*shape):
    return np.ones(shape, np.float32), "float32"


BIG = 2**31 - 1
FAULTS = [
    (lambda: conv_program(inputs=()), "at least one input"),
    (lambda: conv_program(outputs=()), "at least one output"),
    (lambda: conv_program(outputs=("nothing",)), "output 'nothing' is never computed"),
    (lambda: conv_program(inputs=(Input("x0", ()),)), "needs a batch axis"),
    (lambda: conv_program(inputs=(Input("x0", (None, 0)),)), "must be at most 8 integers >= 1 or null"),
    (lambda: conv_program(inputs=(Input("x0", (None, True)),)), "must be at most 8 integers >= 1 or null"),
    (lambda: conv_program(inputs=(Input("x0", (None,) * 9),)), "must be at most 8 integers"),
    (lambda: conv_program(inputs=(Input("x0", (None, BIG, BIG)),)), "would hold more than 268435456 values"),
    (lambda: conv_program(inputs=(Input("x0", (None, 4, 5, 5), "float16"),)), "must be float32 or int64"),
    (lambda: conv_program(inputs=(Input("x\n", (None, 4, 5, 5)),)), "printable characters"),
    (lambda: conv_program(inputs=(Input("x0", (None, 4, 5, 5)),) * 2), "value 'x0' is written twice"),
    (lambda: conv_program(inputs=(Input("x0", (None, 3, 5, 5)),)), "reads 4 channels, found 3"),
    (lambda: conv_program(inputs=(Input("x0", (None, 4, 5)),)), "needs 1 entries"),
    (lambda: conv_program(info={"labels": [1]}), "labels must be a list of printable strings or null, found \\[1\\]"),
    (lambda: conv_program(info={"preprocess": {"size": 4}}), "preprocess: 'channels' must be an integer >= 1"),
    (lambda: with_op(0, kind="sing"), "unknown kind 'sing': did you mean 'sign'"),
    (lambda: with_op(0, inputs=("v1",)), "input 'v1' is not computed before it"),
    (lambda: with_op(0, inputs=()), "has 0 inputs, expected 1"),
    (lambda: with_op(0, inputs=("x0", "x0")), "has 2 inputs, expected 1"),
    (lambda: with_op(0, output="x0"), "value 'x0' is written twice"),
    (lambda: with_op(0, attrs={"axis": 1}), "has no attribute 'axis'"),
    (lambda: with_op(1, inputs=("x0",)), "input 'x0' must be sign, found real"),
    (lambda: with_op(1, attrs={}), "lacks attribute 'stride'"),
    (lambda: with_op(1, tensors={}), "lacks tensor 'weight'"),
    (lambda: with_op(1, tensors={"weight": "v1.wight"}), "which is not there: did you mean 'v1.weight'"),
    (lambda: with_op(1, tensors={"weigth": "v1.weight"}), "did you mean 'weight'"),
    (lambda: with_op(1, tensors={"weight": "v2.scale"}), "weight must be encoded as bits, found float32"),
    (lambda: with_op(2, tensors={}), "tensor 'v2.scale' is read by no operation"),
    (lambda: with_op(2, attrs={"axis": 2}), "must have shape \\[5\\], found \\[8\\]"),
    (lambda: with_op(2, attrs={"axis": 4}), "axis 4 does not exist in 4 dimensions"),
    (lambda: conv_program(attrs={"stride": [0, 1]}), "'stride' must be a list of integers >= 1, found \\[0, 1\\]"),
    (lambda: conv_program(attrs={"stride": [1.0, 1]}), "'stride' must be a list of integers >= 1"),
    (lambda: conv_program(attrs={"stride": [1]}), "'stride' needs 2 entries"),
    (lambda: conv_program(attrs={"padding": [[1, -1], [0, 0]]}), "'padding' must be a list of pairs"),
    (lambda: conv_program(attrs={"padding": [[0, BIG], [0, BIG]]}), "the padded input would hold"),
    (lambda: conv_program(attrs={"dilation": [4, 4]}), "exceeds input"),
    (lambda: conv_program(attrs={"groups": 2}), "with 2 groups reads 8 channels"),
    (lambda: conv_program(attrs={"pad_value": 2}), "'pad_value' must be one of 0, 1, -1, found 2"),
    (lambda: conv_program(attrs={"pad_value": False}), "'pad_value' must be one of 0, 1, -1, found False"),
    (lambda: one_op("conv", attrs=conv_attrs(), weight=floats(4, 4, 3)), "does not fit input"),
    (lambda: one_op("conv", attrs=conv_attrs(), weight=floats(4, 4, 3, 3), bias=floats(3)), "bias must have shape"),
    (
        lambda: one_op(
            "conv_transpose",
            attrs=conv_attrs() | {"padding": [0, 0], "output_padding": [1, 0]},
            weight=floats(4, 4, 3, 3),
        ),
        "output_padding 1 must be below stride or dilation",
    ),
    (
        lambda: one_op(
            "conv_transpose",
            (None, 4, 2**14),
            attrs=conv_attrs(1, stride=2**15) | {"padding": [0], "output_padding": [0]},
            weight=floats(4, 4, 3),
        ),
        "before its padding is cut would hold",
    ),
    (
        lambda: one_op(
            "conv_transpose",
            attrs=conv_attrs() | {"padding": [9, 9], "output_padding": [0, 0]},
            weight=floats(4, 4, 3, 3),
        ),
        "leaves nothing",
    ),
    (lambda: one_op("dense", weight=floats(4, 5)), "weight \\[4, 5\\] does not fit"),
    (lambda: one_op("threshold", attrs={"axis": 1}, at=(np.ones(4), "int16"), flip=bits(4)), "must be int, found sign"),
    (lambda: one_op("max_pool", attrs=pool_attrs(pad=2, dilation=[1, 1])), "padding 2 exceeds half of kernel 2"),
    (lambda: one_op("max_pool", attrs=pool_attrs(9, dilation=[1, 1])), "kernel 9 exceeds input 6"),
    (lambda: one_op("max_pool", attrs=pool_attrs(2, pad=1, dilation=[7, 7])), "dilation 7 exceeds input 6"),
    (
        lambda: one_op("max_pool", attrs=pool_attrs(BIG, pad=BIG // 2, dilation=[1, 1])),
        "the padded input would hold",
    ),
    (  # 2**15 windows of 2**15 positions each
        lambda: one_op(
            "avg_pool",
            (None, 1, 2**16),
            attrs=pool_attrs(2**15, 1, dims=1, count_include_pad=True),
        ),
        "kernel \\[32768\\] on \\[32769\\] outputs is too large",
    ),
    (  # a table of 2**15 places near the border, 2**15 kernel positions each
        lambda: one_op(
            "binary_conv",
            (None, 1, 2**15),
            attrs=conv_attrs(1, pad=2**15, pad_value=0),
            weight=bits(1, 1, 2**15),
        ),
        "kernel \\[32768\\] with padding \\[\\[32768, 32768\\]\\] is too large",
    ),
    (  # every group filled up to 32 filters
        lambda: one_op("conv", (None, 2**15, 24, 24), attrs=conv_attrs(groups=2**14), weight=floats(2**14, 2, 24, 24)),
        "is too large",
    ),
    (
        lambda: one_op(
            "conv_transpose",
            (None, 1, 1, 1),
            attrs=conv_attrs(stride=2**9) | {"padding": [0, 0], "output_padding": [0, 0]},
            weight=floats(1, 1, 3, 3),
        ),
        "stride \\[512, 512\\] has too many phases",
    ),
    (lambda: one_op("mean", attrs={"axes": [0], "keepdims": True}), "must not name the batch"),
    (lambda: one_op("mean", attrs={"axes": [1] * 5, "keepdims": True}), "at least one axis and each once"),
    (lambda: one_op("mean", attrs={"axes": [1, -3], "keepdims": True}), "name one axis twice"),
    (lambda: one_op("reshape", attrs={"shape": [0, 5]}), "does not reshape to"),
    (lambda: one_op("reshape", attrs={"shape": [-1, -1]}), "at most one -1"),
    (lambda: one_op("reshape", attrs={"shape": [1, 1, 1, 1, 0]}), "copies axis 4, the input has 4"),
    (lambda: one_op("reshape", attrs={"shape": [-1] + [1] * 8}), "must have 1 to 8 entries, found 9"),
    (lambda: one_op("reshape", attrs={"shape": [BIG] * 10**5}), "must have 1 to 8 entries, found 100000"),
    (lambda: one_op("permute", attrs={"axes": [0, 1]}), "must name all 4 axes, found 2"),
    (lambda: one_op("squeeze", attrs={"axis": 1}), "axis 1 of \\[1, 4, 6, 6\\] is not 1"),
    (lambda: one_op("slice", attrs={"axis": 1, "start": 4, "stop": None, "step": 1}), "is empty"),
    (lambda: one_op("slice", attrs={"axis": 1, "start": 0, "stop": None, "step": 0}), "'step' must be an integer >= 1"),
    (lambda: one_op("pad", attrs={"padding": [[0, 0]], "value": 0}), "padding needs 4 pairs"),
    (lambda: one_op("pad", attrs={"padding": [[0, BIG]] * 4, "value": 0}), "would hold"),
    (lambda: one_op("pad", attrs={"padding": [[0, 0]] * 4, "value": float("inf")}), "'value' must be a finite number"),
    (lambda: one_op("expand_like", value=floats(2, 3)), "value must have shape \\[1, ...\\]"),
    (lambda: one_op("crop_like", attrs={"axis": 0, "reference_axis": 1}, value=floats(3, 3)), "at most 3 positions"),
    (lambda: one_op("add"), "needs two inputs, or one input and the role 'other'"),
    (lambda: one_op("add", other=floats(5)), "do not broadcast"),
    (lambda: one_op("clip", attrs={"min": "0", "max": None}), "'min' must be a finite number or null, found '0'"),
    (lambda: one_op("layer_norm", attrs={"axes": 4, "eps": 1e-5}), "leave no batch"),
    (lambda: one_op("layer_norm", attrs={"axes": 1, "eps": 0}), "'eps' must be a number > 0, found 0"),
    (lambda: one_op("gelu", attrs={"approximate": "Tanh"}), "'approximate' must be one of 'none', 'tanh'"),
    (lambda: one_op("differs", attrs={"value": 1}), "must be index, found real"),
    (lambda: one_op("cumsum", attrs={"axis": 1}), "must be index, found real"),
    (lambda: index_op("differs", attrs={"value": 0.5}), "'value' must be an integer, found 0.5"),
    (lambda: index_op("cumsum", attrs={"axis": 2}), "axis 2 does not exist in 2 dimensions"),
    (lambda: index_op("add", other=floats(1)), "cannot combine index and real"),
    (lambda: one_op("embedding", weight=floats(3, 3)), "must be index, found real"),
]


@pytest.mark.parametrize(("make", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_a_fault_is_one_sentence(make, words):
    with pytest.raises(ProgramError, match=words) as caught:
        check(make())
    assert str(caught.value).isprintable()


def stored(**changes):
    program = conv_program()
    return dataclasses.replace(
        program, tensors={**program.tensors, "v1.weight": dataclasses.replace(program.tensors["v1.weight"], **changes)}
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: stored(encoding="bit"), "has encoding 'bit', known: bits"),
        (lambda: stored(shape=(8, 4, 3, 0)), "must be at most 8 integers >= 1"),
        (lambda: stored(shape=(8, 4, 3, 4)), "must hold uint8 \\[48\\], found uint8 \\[36\\]"),
        (lambda: stored(data=np.zeros(36, np.int8)), "must hold uint8 \\[36\\], found int8 \\[36\\]"),
        (lambda: stored(shape=(7, 4, 3, 3), data=np.full(32, 255, np.uint8)), "bits set beyond its last entry"),
        (lambda: stored(encoding="float32", data=np.full((8, 4, 3, 3), np.nan, np.float32)), "holds NaN"),
        (lambda: stored(encoding="int8", data=np.zeros((8, 4, 3, 3), np.int8)), "needs a float32 scale of shape"),
        (lambda: stored(scale=np.ones(8, np.float32)), "needs a float32 scale of shape None"),
    ],
)
def test_data_must_be_what_the_encoding_says(make, words):
    with pytest.raises(ProgramError, match=words):
        check(make())


def test_all_that_is_held_at_once_is_bounded():
    side = 2**13
    b = Builder(np.random.default_rng(0))
    values = [b.input((None, side, side // 2))]
    for _ in range(9):
        values.append(b.op("relu", values[-1]))
    check(b.program(values[-1]))  # a chain: two values at a time
    for left in values[:-1]:
        values.append(b.op("add", left, values[-1]))
    with pytest.raises(ProgramError, match=r"would hold \d+ values at once"):
        check(b.program(values[-1]))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_payload_is_what_the_parts_weigh(rows, columns, other):
    b = Builder(np.random.default_rng(0))
    x = b.op("binary_dense", b.op("sign", b.input((None, columns))), weight=b.signs(rows, columns))
    program = b.program(b.op("dense", x, weight=b.reals(other, rows, encoding="int8"), bias=b.reals(other)))
    assert program.nbytes == -(-rows * columns // 8) + other * rows + 4 * other + 4 * other


def test_a_program_is_data():
    program = binarynet()
    assert Program(program.inputs, program.ops, program.outputs, program.tensors) is not program
    assert Op("sign", "a", ("x",), "y").attrs == {}
    values = check(program)
    assert [values[name].shape for name in program.outputs] == [(1, 10)]
