"""The fast network equals the plain interpreter bit for bit."""

import platform
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frostbit_runtime import InputError, Program, interpret, load, write
from frostbit_runtime.engine import Network
from frostbit_runtime.plan import plan
from programs import Builder, all_values, binarynet, conv_attrs, pool_attrs, random_program, residual_net, token_net


def example(program, batch, seed=0):
    rng = np.random.default_rng(seed)
    # a coarse grid, so that exact zeros and ties occur
    sizes = [[batch if n is None else n for n in item.shape] for item in program.inputs]
    return [np.round(rng.standard_normal(size) * 4).astype(np.float32) / 4 for size in sizes]


def same(left, right):
    left, right = (value if isinstance(value, tuple) else (value,) for value in (left, right))
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from([1, 2, 7]), st.sampled_from([1, 2, 3]))
def test_random_programs(rng, batch, threads):
    agree(random_program(rng, 8), batch, threads)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_random_programs(part):
    for seed in range(1000 * part, 1000 * (part + 1)):
        rng = random.Random(seed)
        agree(random_program(rng, rng.randint(2, 14)), rng.choice([1, 2, 7]), rng.choice([1, 2, 3]))


def agree(program, batch, threads):
    inputs = example(program, batch)
    with np.errstate(all="ignore"):
        try:
            values = all_values(program, inputs)
        except InputError:  # sizes that fit a batch of 1 only
            with pytest.raises(InputError):
                Network(program)(*inputs, threads=threads)
            return
        expected = tuple(values[name] for name in program.outputs)
        same(interpret(program, *inputs), expected)
        same(Network(program)(*inputs, threads=threads), expected)


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("size", [13, 14])
@pytest.mark.parametrize("width", [16, 32, 40])
def test_binarynet(width, size, batch):
    program = binarynet(seed=batch, width=width, size=size)
    (x,) = example(program, batch)
    same(Network(program)(x), interpret(program, x))


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize(("width", "size"), [(8, 17), (33, 11)])
def test_residual_network(width, size, batch):
    program = residual_net(seed=batch, width=width, size=size)
    (x,) = example(program, batch)
    same(Network(program)(x), interpret(program, x))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by rules of their own")
def test_memory_is_not_fetched_anew_in_each_call():
    """In a process of its own, whose heap nobody else has shaped."""
    script = """
import resource, sys
import numpy as np
from frostbit_runtime import Input, Op, Program
from frostbit_runtime.engine import Network
names = [f"v{i}" for i in range(9)]
ops = [Op("relu", b, (a,), b) for a, b in zip(names, names[1:])]
net = Network(Program((Input("v0", (None, 512, 512)),), tuple(ops), ("v8",), {}, {}))
x = np.zeros((1, 512, 512), np.float32)
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(x, threads=1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256  # pages of one of the values, of 4 KiB


@pytest.mark.parametrize("shape", [(1, 1), (1, 12), (5, 7)])
def test_tokens(shape):
    program = token_net()
    tokens = np.random.default_rng(0).integers(0, 20, shape)
    same(Network(program)(tokens), interpret(program, tokens))


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("gelu", {"approximate": "none"}),
        ("gelu", {"approximate": "tanh"}),
        ("silu", {}),
        ("sigmoid", {}),
        ("tanh", {}),
        ("softmax", {"axis": -1}),
        ("softmax", {"axis": 2}),
        ("softmax", {"axis": 1}),
        ("layer_norm", {"axes": 1, "eps": 1e-5}),
        ("layer_norm", {"axes": 2, "eps": 1e-5}),
    ],
)
def test_rows_in_parts(kind, attrs):
    """Large enough for several parts and several threads; numbers far out, where curves are flat."""
    b = Builder(np.random.default_rng(0))
    program = b.program(b.op(kind, b.input((None, 150, 199)), attrs=attrs))
    x = np.random.default_rng(1).standard_normal((3, 150, 199)).astype(np.float32) * np.float32(4)
    expected = interpret(program, x)
    for threads in (1, 3):
        same(Network(program)(x, threads=threads), expected)
    same(np.signbit(Network(program)(x)), np.signbit(expected))


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("permute", {"axes": [0, 2, 1, 3]}),
        ("reshape", {"shape": [0, 0, -1]}),
        ("squeeze", {"axis": 1}),
        ("expand_dims", {"axis": 1}),
        ("slice", {"axis": 2, "start": 1, "stop": 5, "step": 2}),
    ],
)
def test_signs_are_moved_as_the_numbers_that_they_are_of(kind, attrs):
    b = Builder(np.random.default_rng(0))
    x = b.input((None, 1, 6, 40))
    signs = b.op("sign", x)
    moved = b.op(kind, signs, attrs=attrs)
    values = np.random.default_rng(1).standard_normal((3, 1, 6, 40)).astype(np.float32)
    values[values > 1] = -0.0
    y = b.op("binary_dense", moved, weight=b.signs(50, interpret(b.program(moved), values).shape[-1]))
    for program in (b.program(y), b.program(y, moved, signs)):
        same(Network(program)(values), interpret(program, values))


def test_what_belongs_together_is_one_step():
    # 16 operations: six layers with all that follows them, and the first signs
    assert [step.output for step in plan(binarynet())] == ["v1", "v2", "v5", "v7", "v10", "v13", "v15"]
    # 21 operations: the three residual sums happen in the binary convolutions
    assert [step.output for step in plan(residual_net())] == [
        *["v2", "v3", "v4", "v7", "v8", "v11", "v13", "v14", "v15", "v18", "v19", "v20"]
    ]


def test_values_go_when_nothing_reads_them():
    for make in (binarynet, residual_net, token_net):
        program = make()
        steps, held = plan(program), {item.name for item in program.inputs}
        for step in steps:
            assert set(step.inputs) <= held
            held = (held | {step.output}) - set(step.frees)
        assert held == set(program.outputs)


def test_a_residual_of_another_shape_is_broadcast():
    b = Builder(np.random.default_rng(0))
    x = b.input((None, 8, 5, 5))
    once = b.op("crop_like", x, attrs={"axis": 1, "reference_axis": 1}, value=b.reals(1, 8, 5, 5))
    for sums in (
        b.op("binary_conv", b.op("sign", x), attrs=conv_attrs(pad_value=0), weight=b.signs(8, 8, 3, 3)),
        b.op("binary_conv", b.op("sign", once), attrs=conv_attrs(pad_value=0), weight=b.signs(8, 8, 3, 3)),
        b.op("dense", x, weight=b.reals(5, 5)),
        b.op("dense", once, weight=b.reals(5, 5)),
    ):
        for other in (x, once):
            program = b.program(b.op("relu", b.op("add", b.norm(sums, 8), other)))
            program = Program(program.inputs, *used(program), program.info)
            (value,) = example(program, 3)
            same(Network(program)(value), interpret(program, value))


def used(program):
    """Drop what the output does not need."""
    wanted, ops = set(program.outputs), []
    for op in reversed(program.ops):
        if op.output in wanted:
            ops.append(op)
            wanted |= set(op.inputs)
    tensors = {name: program.tensors[name] for op in ops for name in op.tensors.values()}
    return tuple(reversed(ops)), program.outputs, tensors


def test_thresholds_before_a_pooling():
    """Whatever the direction of a threshold: the largest sum decides, as if it came first."""
    b = Builder(np.random.default_rng(0))
    x = b.op("sign", b.input((None, 3, 9, 9)))
    x = b.op("binary_conv", x, attrs=conv_attrs(pad_value=-1), weight=b.signs(64, 3, 3, 3))
    x = b.op("max_pool", x, attrs=pool_attrs(3, 2, 1, dilation=[2, 2]) | {"ceil_mode": True})
    program = b.program(b.threshold(x, 64, 12))
    (value,) = example(program, 5)
    found = Network(program)(value)
    assert 0.1 < (found == 1).mean() < 0.9
    same(found, interpret(program, value))


def test_arguments_are_checked():
    net = Network(binarynet())
    with pytest.raises(InputError, match="must be float32, found float64"):
        net(np.zeros((1, 3, 14, 14)))
    with pytest.raises(InputError, match="must have shape \\[any, 3, 14, 14\\], found \\[3, 14, 14\\]"):
        net(np.zeros((3, 14, 14), np.float32))
    with pytest.raises(InputError, match="threads must be at least 1, found 0"):
        net(np.zeros((1, 3, 14, 14), np.float32), threads=0)
    with pytest.raises(InputError, match="not finite"):
        net(np.full((1, 3, 14, 14), np.nan, np.float32))


def test_a_network_knows_its_file(tmp_path):
    write(binarynet(), tmp_path / "net.safetensors")
    net = load(tmp_path / "net.safetensors")
    assert net.labels == [f"class {i}" for i in range(10)]
    assert net.info["producer"] == "test"
    assert net.inputs[0].shape == (None, 3, 14, 14)
    net.warm_up(batch=2)
    (x,) = example(net.program, 2)
    before = x.copy()
    same(net(x[:, :, ::-1]), net(np.ascontiguousarray(x[:, :, ::-1])))  # any strides
    np.testing.assert_array_equal(x, before)  # arguments stay as they are


def test_memory_does_not_grow_from_call_to_call():
    net = Network(residual_net(width=16, size=40))
    (x,) = example(net.program, 8)
    net(x, threads=1)
    tracemalloc.start()
    peaks = []
    for _ in range(3):
        tracemalloc.reset_peak()
        net(x, threads=1)
        current, peak = tracemalloc.get_traced_memory()
        peaks.append((current, peak))
    tracemalloc.stop()
    assert peaks[2][1] <= peaks[1][1] * 1.01 + 4096
    assert peaks[2][0] <= peaks[0][0] + 4096
