"""Three values: what they are, that StoMPP freezes to them, and that nothing takes them for one bit."""

import pytest
import torch

import frostbit as fb
from frostbit.errors import UsageError
from frostbit.quantizers import Masked, Ternary

NAN, INF = float("nan"), float("inf")
TABLE = [
    (0.5, False, [-INF, -0.6, -0.5, -0.1, -0.0, 0.0, 0.5, 0.6, INF, NAN], [-1, -1, 0, 0, 0, 0, 0, 1, 1, NAN]),
    (0.0, False, [-0.1, -0.0, 0.0, 0.1], [-1, 0, 0, 1]),
    (1.0, True, [-4.0, -1.0, 1.0, 2.0, 0.0], [-1, 0, 0, 1, 0]),  # mean |x| is 1.6
    (0.7, True, [-0.004, -0.001, 0.001, 0.002, 0.0], [-1, 0, 0, 1, 0]),  # whatever the size
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("threshold", "relative", "values", "expected"), TABLE)
def test_values(threshold, relative, values, expected, dtype):
    quantizer = Ternary(threshold, relative)
    y = quantizer(torch.tensor(values, dtype=dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0, equal_nan=True)
    assert not torch.signbit(y[y == 0]).any()


def network():
    torch.manual_seed(0)
    model = fb.models.create("mlp", num_classes=4, input_size=6)
    weight = {"name": "ternary", "threshold": 0.7, "relative": True}
    fb.binarize_(model, weight=weight, input={"name": "ternary", "threshold": 0.3}, min_binary_macs=0)
    return model, torch.randn(8, *model.input_shape)


def values_of(model, x):
    """Return the values that the binary layers compute with, of weights and of inputs."""
    weights, inputs = set(), set()
    hooks = []

    def look(layer, args):
        inputs.update(layer.input_quantizer.value(args[0].detach()).flatten().tolist())

    for unit in fb.units(model):
        weights |= {v for _, w, q in unit.weight_quantizers() for v in q.value(w.detach()).flatten().tolist()}
        for layer in unit.layers:
            hooks.append(layer.register_forward_pre_hook(look))
    model(x)
    for hook in hooks:
        hook.remove()
    return weights, inputs


@pytest.mark.parametrize("ste", [None, "ste_clip"])
def test_stompp_freezes_to_three_values(ste):
    model, x = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    progression = fb.StoMPP(model, total_steps=8, ste=ste, refresh=2)
    progression.attach(optimizer)
    three = {-1.0, 0.0, 1.0}
    for step in range(8):
        with torch.no_grad(), fb.hardened(model):
            assert values_of(model, x) == (three, three)
        weights, _ = values_of(model, x)
        assert (len(weights) > 3) == (step < 7)  # the last forward is fully frozen
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values_of(model, x) == (three, three)
    assert set(fb.frozen_fraction(model).values()) == {1.0}
    masked = [module for module in model.modules() if isinstance(module, Masked)]
    assert masked
    assert not any(quantizer.is_sign or quantizer.binary for quantizer in masked)


@pytest.mark.parametrize("frozen", [False, True])
def test_three_values_are_never_taken_for_one_bit(frozen, tmp_path):
    model, x = network()
    if frozen:
        progression = fb.StoMPP(model, total_steps=2)
        for _ in range(2):
            progression.step()
    for export in (fb.deploy.save, fb.deploy.export_onnx, fb.deploy.export_qonnx):
        with pytest.raises(UsageError, match=r"has three values \(Ternary\), which one bit cannot hold"):
            export(model, x, tmp_path / "file")
    summary = fb.summary(model, x)
    assert "three values" in summary.note
    assert {row.bits for row in summary.rows} == {2, 32}
    assert summary.binary_parameters == summary.binary_macs == 0
    twos = [row for row in summary.rows if row.bits == 2]
    assert sum(row.bytes for row in twos) == sum(-(-row.parameters // 4) for row in twos)
    assert "2-bit" in str(summary)


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="at least 0 and finite, found -1"):
        fb.quantizers.create("ternary", threshold=-1)
    with pytest.raises(UsageError, match="accumulator_bits=8 is for sums of ±1 products: a ternary one may be 0"):
        fb.nn.Linear(4, 4, weight_quantizer="ternary", accumulator_bits=8)
