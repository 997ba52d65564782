"""Each signal against a brute-force computation, on networks in every stage of freezing."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import frostbit as fb
from frostbit.quantizers import hard
from frostbit.signals import DeadChannels, GradientNorms, SignFlips, pack_bits, unpack_bits

pytestmark = pytest.mark.usefixtures("one_thread")


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.out = nn.LayerNorm(16), nn.MultiheadAttention(16, 2), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.out(x + self.attention(y, y, y, need_weights=False)[0]).mean(1)


def make(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "mlp":
        model, x = fb.models.create("mlp", hidden=(16, 16, 16)), torch.randn(8, 1, 8, 8)
    elif kind == "attention":
        model, x = Attends(), torch.randn(4, 5, 16)
    else:
        model, x = fb.models.create("resnet8", input_size=8, width=4), torch.randn(8, 3, 8, 8)
    placement = "activation" if kind == "activation" else "input"
    keep = "none" if kind == "attention" else fb.keep.first_last_downsample
    fb.binarize_(model, placement=placement, keep=keep, min_binary_macs=0, example_input=x)
    return model.train(), x


KINDS = ("mlp", "resnet", "activation", "attention")


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).pow(2).mean() + model(x)[:, 0].mean()


def gradients_by_hand(model: nn.Module, passes: list[torch.Tensor]) -> list[float]:
    """Norms from the gradients that autograd leaves at the tensors themselves."""
    kept: list[list[torch.Tensor]] = [[] for _ in fb.units(model)]
    handles = []

    def keep(index: int, y: torch.Tensor) -> None:
        if y.requires_grad:
            y.retain_grad()
            kept[index].append(y)

    for index, unit in enumerate(fb.units(model)):
        for layer in unit.layers or [unit.input_quantizer]:
            if isinstance(layer, nn.MultiheadAttention):
                handles.append(layer.out_proj.register_forward_pre_hook(lambda m, a, i=index: keep(i, a[0])))
            else:
                handles.append(layer.register_forward_hook(lambda m, a, y, i=index: keep(i, y)))
    for x in passes:
        loss_of(model, x).backward()
    for handle in handles:
        handle.remove()
    squares = [[y.grad.double().pow(2).sum() for y in ys if y.grad is not None] for ys in kept]
    return [float(sum(each)) ** 0.5 for each in squares]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["ste", "start", "middle", "reverse", "frozen"])
def test_gradient_norms(kind, stage):
    model, x = make(kind)
    if stage != "ste":
        order = "reverse" if stage == "reverse" else "forward"
        progression = fb.StoMPP(model, total_steps=40, order=order)
        for _ in range({"start": 0, "middle": 20, "reverse": 20, "frozen": 40}[stage]):
            progression.step()
    passes = [x, x.flip(0) * 0.5]
    state = copy.deepcopy(model.state_dict())
    expected = gradients_by_hand(model, passes)
    model.load_state_dict(state)
    listener = GradientNorms(model)
    listener.listen()
    for part in passes:
        loss_of(model, part).backward()
        with torch.no_grad():  # what an evaluation in between does is no part of it
            model(part)
        model.eval()
        loss_of(model, part)
        model.train()
    found = listener.take()
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-12)
    if stage in ("ste", "start"):
        assert (found > 0).all()
    if stage == "frozen":
        assert (found == 0).sum() > 0
    hooks = (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not listener.listening
    assert not any(hooks)


def test_a_frozen_activation_blocks_what_lies_before_it():
    model, x = make("mlp")
    progression = fb.StoMPP(model, total_steps=30, order="reverse")
    for _ in range(16):
        progression.step()
    listener = GradientNorms(model)
    listener.listen()
    loss_of(model, x).backward()
    # what the first unit puts out is read by the second, frozen one, which lets nothing pass
    assert list(fb.frozen_fraction(model).values())[1] == 1
    assert listener.take().tolist() == [0.0, 0.0]
    assert fb.units(model)[0].layers[0].weight.requires_grad


def test_a_unit_that_does_not_run_has_no_figure():
    model, _ = make("mlp")
    for listener in (GradientNorms(model), DeadChannels(model)):
        listener.listen()
        assert listener.take().isnan().all()


class Halving:
    """A scaler that skips its first step: the scale is halved then."""

    scale = 1024.0

    def get_scale(self) -> float:
        return self.scale


def test_a_skipped_step_is_forgotten_and_the_scale_taken_out():
    model, x = make("resnet")
    state = copy.deepcopy(model.state_dict())
    expected = gradients_by_hand(model, [x])
    model.load_state_dict(state)
    scaler = Halving()
    norms, dead = GradientNorms(model, scaler), DeadChannels(model, scaler)
    norms.listen()
    dead.listen()
    (loss_of(model, 3 * x + 1) * torch.inf).backward()  # overflows, so the step is skipped
    scaler.scale /= 2
    model.load_state_dict(state)
    (loss_of(model, x) * scaler.scale).backward()
    assert norms.take().tolist() == pytest.approx(expected, rel=1e-4)
    plain = DeadChannels(model)
    plain.listen()
    model.load_state_dict(state)
    loss_of(model, x)
    assert torch.equal(dead.take(), plain.take())


@pytest.mark.parametrize("kind", KINDS)
def test_dead_channels(kind):
    model, x = make(kind)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    with torch.no_grad():
        for norm in norms:  # shift some channels out of reach, one just at 0
            norm.bias[:2] += torch.tensor([100.0, -100.0])
            norm.weight[2], norm.bias[2] = 0.0, 0.0
    seen: list[list[torch.Tensor]] = [[] for _ in fb.units(model)]
    handles = []
    for index, unit in enumerate(fb.units(model)):
        inside = bool(unit.layers) and unit.layers[0].input_quantizer is not None
        place = unit.layers[0] if inside else unit.input_quantizer
        handles.append(place.register_forward_pre_hook(lambda m, a, i=index: seen[i].append(a[0].detach())))
    listener = DeadChannels(model)
    listener.listen()
    for part in (x, 2 - x):
        model(part)
    for handle in handles:
        handle.remove()
    expected = []
    for unit, tensors in zip(fb.units(model), seen, strict=True):
        channels = unit.feature_shape[0] if unit.feature_shape else tensors[0].shape[-1]
        dim = tensors[0].dim() - len(unit.feature_shape or (1,))
        columns = [hard(torch.cat([t.select(dim, c).flatten() for t in tensors])) for c in range(channels)]
        expected.append(sum(len(column.unique()) == 1 for column in columns) / channels)
    assert listener.take().tolist() == pytest.approx(expected)
    assert not norms or max(expected) > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["latent", "direct"]), st.booleans())
@example(120524596, "latent", False)
def test_sign_flips(seed, weights, through_state):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 2))
    x = torch.randn(64, 5)  # of four samples, some seed's layer sees only one sign, which binarize_ refuses
    fb.binarize_(model, weight="direct" if weights == "direct" else "ste_clip", keep="none", example_input=x)
    flips = SignFlips(model)
    latents = [[p for _, p, _ in unit.weight_quantizers()] for unit in fb.units(model)]
    for _ in range(3):
        before = [[hard(p).clone() for p in unit] for unit in latents]
        with torch.no_grad():
            for unit in latents:
                for p in unit:
                    p.copy_(hard(torch.randn_like(p)) if weights == "direct" else torch.randn_like(p).round())
        if through_state:  # as a resumed run does
            state = flips.state_dict()
            flips = SignFlips(model)
            flips.load_state_dict(state)
        expected = [
            sum(int((hard(p) != b).sum()) for p, b in zip(u, bs, strict=True)) / sum(p.numel() for p in u)
            for u, bs in zip(latents, before, strict=True)
        ]
        assert flips.take().tolist() == pytest.approx(expected)
    assert flips.take().tolist() == [0.0] * len(latents)


def test_no_binary_weights_no_flips():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fb.binarize_(model, weight=None, keep="none", example_input=torch.randn(4, 4), min_binary_macs=0)
    assert SignFlips(model).take().isnan().all()


@given(st.lists(st.booleans(), max_size=40))
def test_bits_come_back(values):
    signs = torch.tensor(values, dtype=torch.bool)
    packed = pack_bits(signs)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(values) // 8)
    assert torch.equal(unpack_bits(packed, signs.shape), signs)
