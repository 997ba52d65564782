"""StoMPP: mask densities, gradients, targets, resume."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.progression.fields import Field
from frostbit.quantizers import Masked

from .test_windows import network


def masked(model: nn.Module) -> list[dict[str, Masked]]:
    return [
        {"input": unit.input_quantizer} | {role: q for role, _, q in unit.weight_quantizers()}
        for unit in fb.units(model)
    ]


def wide(width: int = 300, layers: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    inner = [part for _ in range(layers) for part in (nn.ReLU(), nn.Linear(width, width, bias=False))]
    model = nn.Sequential(nn.Linear(5, width), *inner, nn.ReLU(), nn.Linear(width, 2))
    model.input_shape = (5,)
    fb.binarize_(model)
    return model


def test_density_follows_the_schedule_at_every_step():
    model = wide()
    progression = fb.StoMPP(model, 40, refresh=5)
    for step in range(40):
        for index, (window, quantizers) in enumerate(zip(progression.windows, masked(model), strict=True)):
            p = window.progress(step) ** 3
            share = quantizers["0.weight"].frozen_share
            if p in (0.0, 1.0):
                assert share == p, (step, index)
            else:  # 90 000 entries: five standard deviations
                assert abs(share - p) < 5 * (p * (1 - p) / 90_000) ** 0.5
        progression.step()
    assert progression.done


def test_the_last_forward_of_a_window_is_fully_frozen():
    model = network()
    progression = fb.StoMPP(model, 12)
    for step in range(12):
        shares = list(fb.frozen_fraction(model).values())
        assert [share == 1.0 for share in shares] == [step + 1 >= (i + 1) * 4 for i in range(3)], step
        progression.step()


def test_soft_refresh_redraws_one_in_r_each_step():
    model = wide(layers=1)
    progression = fb.StoMPP(model, 1000, refresh=10)
    field = progression._fields[0, "0.weight"]
    before = field.uniform.clone()
    progression.step()
    changed = (field.uniform != before).float().mean().item()
    assert changed == pytest.approx(1 - torch.exp(torch.tensor(-0.1)).item(), abs=0.005)


def test_without_refresh_freezing_is_monotone():
    model = wide(layers=1)
    progression = fb.StoMPP(model, 30, refresh=None)
    last = masked(model)[0]["0.weight"].mask.clone()
    for _ in range(29):
        progression.step()
        quantizer = masked(model)[0]["0.weight"]
        if quantizer.mask is not None:
            assert bool((quantizer.mask | ~last).all())
            last = quantizer.mask.clone()


def test_small_tensors_turn_over_too():
    model = network(1)
    progression = fb.StoMPP(model, 10_000, refresh=100)
    field = progression._fields[0, "input"]  # 8 entries: less than one a step
    before = field.uniform.clone()
    for _ in range(1500):
        progression.step()
    assert bool((field.uniform != before).all())


def test_resample_lags_behind_uniform():
    shares = {}
    for rule in ("uniform", "resample"):
        model = wide(layers=1)
        progression = fb.StoMPP(model, 100, refresh=50, refresh_rule=rule)
        for _ in range(98):
            progression.step()
        shares[rule] = masked(model)[0]["0.weight"].frozen_share
    assert shares["uniform"] == pytest.approx(0.99**3, abs=0.01)
    assert shares["resample"] < 0.8


def test_all_draws_depend_on_seed_unit_role_only():
    """Same-draws control: forward and reverse order see the same masks at the same local step of a unit."""
    runs = {}
    for order in ("forward", "reverse"):
        model = wide()
        progression = fb.StoMPP(model, 20, order=order, seed=3)
        torch.manual_seed(hash(order) % 1000)  # nothing else that draws may matter
        seen = {}
        for step in range(20):
            for window, quantizers in zip(progression.windows, masked(model), strict=True):
                for role, quantizer in quantizers.items():
                    if quantizer.mask is not None:
                        seen[window.unit, role, step - window.start] = quantizer.mask.clone()
            torch.rand(3)
            progression.step()
        runs[order] = seen
    assert runs["forward"].keys() == runs["reverse"].keys()
    assert len(runs["forward"]) > 20
    assert all(torch.equal(mask, runs["reverse"][key]) for key, mask in runs["forward"].items())
    other = fb.StoMPP(wide(), 20, seed=4)
    assert not torch.equal(other._fields[0, "0.weight"].mask, runs["forward"]["2", "0.weight", 0]) or bool(
        (other._fields[0, "0.weight"].uniform != fb.StoMPP(wide(), 20, seed=3)._fields[0, "0.weight"].uniform).any()
    )


@pytest.mark.parametrize("ste", [None, "ste_clip", {"weight": "ste_identity", "input": None}])
def test_gradients_of_frozen_and_open_entries(ste):
    model = network(1)
    progression = fb.StoMPP(model, 100, ste=ste)
    for _ in range(60):
        progression.step()
    layer = model[2]
    frozen = layer.weight_quantizer.mask
    assert 0 < frozen.float().mean() < 1
    model(torch.randn(16, 6)).square().sum().backward()
    gradient = layer.weight.grad
    assert bool((gradient[~frozen] != 0).any())
    assert bool((gradient[frozen] == 0).all()) == (ste is None)


def test_frozen_units_leave_the_backward_pass():
    model = network(2)
    progression = fb.StoMPP(model, 10)
    for _ in range(5):
        progression.step()
    model(torch.randn(4, 6)).sum().backward()
    assert model[0].weight.grad is None  # everything before a frozen activation is cut off
    assert model[2].weight.grad is None
    assert model[4].weight.grad is not None


def test_drop_frozen_false_gives_zero_gradients_instead():
    model = network(2)
    progression = fb.StoMPP(model, 10, drop_frozen=False)
    x = torch.randn(4, 6)
    dropped = network(2)
    other = fb.StoMPP(dropped, 10)
    for _ in range(10):
        torch.testing.assert_close(model(x), dropped(x), rtol=0, atol=0)
        progression.step()
        other.step()
    model(x).sum().backward()
    assert bool((model[2].weight.grad == 0).all())


@pytest.mark.parametrize(("targets", "weight", "input"), [(("input",), False, True), (("weight",), True, False)])
def test_hybrids_mask_only_their_targets(targets, weight, input):
    model = network(2)
    fb.StoMPP(model, 10, targets=targets)
    for unit in fb.units(model):
        assert isinstance(unit.input_quantizer, Masked) == input
        assert all(isinstance(q, Masked) == weight for _, _, q in unit.weight_quantizers())


def test_one_target_needs_no_list():
    model = network()
    assert fb.StoMPP(model, 12, targets="weight").targets == ("weight",)


@pytest.mark.parametrize("mask", ["element", "channel"])
def test_operands_of_different_widths_have_no_common_field(mask):
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = fb.nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)

        def forward(self, q, k, v):
            return self.attention(q, k, v)[0]

    model, batch = Cross(), (torch.randn(2, 3, 8), torch.randn(2, 3, 4), torch.randn(2, 3, 6))
    fb.units(model, example_input=batch)
    with pytest.raises(fb.UsageError, match=r"'attention' reads tensors of widths 8, 4, 6 .* targets=\('weight',\)"):
        fb.StoMPP(model, 12, mask=mask)
    progression = fb.StoMPP(model, 12, targets=("weight",))
    for _ in range(12):
        model(*batch)
        progression.step()


def test_masked_quantizers_have_the_models_mode():
    model = network().eval()
    fb.StoMPP(model, 12)
    assert not any(module.training for module in model.modules())


def test_weights_only_networks():
    model = network(2, input=None)
    fb.StoMPP(model, 10, targets=("weight",))
    x = torch.randn(3, 6)
    assert not torch.equal(model[1](model[0](x)).sign(), model[1](model[0](x)))  # activations stay continuous
    with pytest.raises(fb.UsageError, match="nothing to freeze"):
        fb.StoMPP(network(2, input=None), 10, targets=("input",))


def test_channel_masks_and_their_error():
    torch.manual_seed(0)
    model = fb.models.create("resnet8", width=4, input_size=8)
    fb.binarize_(model, min_binary_macs=0)
    element, channel = copy.deepcopy(model), copy.deepcopy(model)
    fb.StoMPP(element, 60)
    fb.StoMPP(channel, 60, mask="channel")
    larger = torch.randn(2, 3, 12, 12)
    channel(larger)
    with pytest.raises(ValueError, match="mask='channel'"):
        element(larger)
    assert channel.layer1[0].conv1.input_quantizer.mask.shape == (4, 1, 1)
    assert element.layer1[0].conv1.input_quantizer.mask.shape == (4, 8, 8)


def test_a_refused_progression_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    fb.binarize_(model, keep="0")  # traced without a batch, so no feature shape is known
    before = [type(module) for module in model.modules()]
    with pytest.raises(fb.UsageError, match=r"call frostbit.units\(model, example_input=batch\)"):
        fb.StoMPP(model, 10)
    assert [type(module) for module in model.modules()] == before
    fb.units(model, example_input=torch.randn(3, 4))
    fb.StoMPP(model, 10)


REFUSED = [
    (dict(soft="sign"), "soft must be a smooth quantizer"),
    (dict(ste={"input": "ste_clip", "weight": "ste_clp"}), "did you mean 'ste_clip'"),
    (dict(targets=()), "targets is empty"),
    (dict(soft_hardness=(5, 500)), "soft 'clip' has no hardness"),
    *(
        (dict(soft="bnn++", soft_hardness=ends), "two positive numbers")
        for ends in ((0, 500), (-5, 500), (1, 2, 3), (5, math.inf))
    ),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_whatever_is_refused_the_model_stays_as_it_was(options, sentence):
    model = network()
    before = [*map(id, model.modules())]
    with pytest.raises(ValueError, match=sentence):
        fb.StoMPP(model, 12, **options)
    assert [*map(id, model.modules())] == before


def test_direct_weights_are_refused_before_anything_is_changed():
    model = fb.models.create("mlp", hidden=(16, 16, 16), in_channels=1, input_size=4)
    fb.binarize_(model, weight="direct", min_binary_macs=0)
    with pytest.raises(fb.UsageError, match="direct weight"):
        fb.StoMPP(model, 12)
    assert fb.is_hard(model)


OTHERS = [
    dict(schedule="linear"),
    dict(ste="ste_identity"),
    dict(soft="tanh"),
    dict(soft="bnn++", soft_hardness=(1, 5)),
    dict(drop_frozen=False),
    dict(refresh=7),
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_the_state_of_another_progression_is_refused(other):
    progression = fb.StoMPP(network(), 12)
    with pytest.raises(fb.UsageError, match="this progression has"):
        fb.StoMPP(network(), 12, **other).load_state_dict(progression.state_dict())


def test_a_field_is_the_same_for_any_number_of_threads():
    """An entry drawn twice takes the later value, as if they were written one after another."""
    threads = torch.get_num_threads()
    fields = []
    try:
        for count in (4, 4, 1):
            torch.set_num_threads(count)
            field = Field((0, "unit", "weight"), (256, 256, 3, 3), 10, "uniform", torch.device("cpu"))
            for _ in range(3):
                field.advance(0.5)
            fields.append(field.uniform)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(fields[0], fields[1])
    assert torch.equal(fields[0], fields[2])
    plain = torch.rand(4, 4, generator=field._generator(0)).reshape(-1)
    small = Field(field.key, (4, 4), 1, "uniform", torch.device("cpu"))
    small.advance(0.5)
    small.advance(0.5)
    generator = small._generator(1)
    where, fresh = torch.randint(16, (16,), generator=generator), torch.rand(16, generator=generator)
    for place, value in zip(where.tolist(), fresh.tolist(), strict=True):
        plain[place] = value
    assert torch.equal(small.uniform.reshape(-1), plain)


@pytest.mark.parametrize("change", ["step", "harden"])
def test_a_backward_pass_of_another_moment_is_refused(change):
    model = network()
    progression = fb.StoMPP(model, 12, ste="ste_clip")
    progression.step()
    loss = model(torch.randn(4, *model.input_shape)).square().sum()
    if change == "step":
        progression.step()
        progression.step()
        context = nullcontext()
    else:
        context = fb.hardened(model)
    with context, pytest.raises(RuntimeError, match="between forward and backward"):
        loss.backward()


def test_masks_do_not_live_in_the_model():
    model = network()
    before = list(model.state_dict())
    fb.StoMPP(model, 12, ste="ste_clip", soft="tanh", soft_hardness=(1.0, 2.0))
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("rule", ["uniform", "resample"])
@pytest.mark.parametrize("at", [0, 3, 4, 7, 11, 12])
def test_resume_is_bit_exact(at, rule):
    def fresh():
        model = wide(50, 3)
        return model, fb.StoMPP(model, 12, refresh=3, refresh_rule=rule)

    model, progression = fresh()
    for _ in range(at):
        progression.step()
    saved = copy.deepcopy(progression.state_dict())
    resumed_model, resumed = fresh()
    resumed.load_state_dict(saved)
    for _ in range(at, 14):
        for mine, theirs in zip(masked(model), masked(resumed_model), strict=True):
            for role, quantizer in mine.items():
                other = theirs[role]
                assert quantizer.stage == other.stage
                assert (quantizer.mask is None) == (other.mask is None)
                assert quantizer.mask is None or torch.equal(quantizer.mask, other.mask)
        progression.step()
        resumed.step()


def test_a_state_of_another_run_is_refused():
    state = fb.StoMPP(network(), 12).state_dict()
    for options in ({"order": "reverse"}, {"seed": 1}, {"refresh": 7}):
        with pytest.raises(fb.UsageError, match=next(iter(options)) if "order" not in options else "windows"):
            fb.StoMPP(network(), 12, **options).load_state_dict(state)


def test_a_ten_line_loop_ends_in_a_sign_network():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    fb.StoMPP(model, total_steps=30, ste="ste_clip").attach(optimizer)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert fb.is_hard(model)
    plain = model(x)
    with fb.hardened(model):
        assert torch.equal(plain, model(x))
    for unit in fb.units(model):
        for _, weight, quantizer in unit.weight_quantizers():
            assert set(quantizer(weight).unique().tolist()) == {-1.0, 1.0}
