"""The recorder changes nothing, records what a brute-force look finds, and survives a resume."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.analysis.recorder import FIGURES
from frostbit.quantizers import hard
from frostbit.signals import DeadChannels, GradientNorms, SignFlips

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12


class Case:
    """A loop of `STEPS` steps, with or without a recorder."""

    def __init__(
        self, record: bool, weight: str = "ste_clip", stompp: bool = True, amp: str | None = None, micro: int = 1
    ):
        torch.manual_seed(0)
        self.model = fb.models.create("resnet8", input_size=8, width=4)
        self.x, self.labels = torch.randn(16, 3, 8, 8), torch.randint(10, (16,))
        placement = "activation" if stompp else "input"
        fb.binarize_(self.model, weight=weight, placement=placement, example_input=self.x, min_binary_macs=0)
        with torch.no_grad():
            for unit in fb.units(self.model):
                for _, parameter, quantizer in unit.weight_quantizers():
                    if not quantizer.direct:
                        parameter.view(-1)[::7] *= 1 / parameter.abs().max()  # some reach 1, others not
                        parameter.view(-1)[0] = 1.0
        if weight == "direct":
            rule = fb.optim.Bop, {"threshold": 1e-6, "gamma": 0.1}
            rest = torch.optim.SGD, {"lr": 0.1}
            self.optimizer = fb.optim.CaseOptimizer(self.model, {"binary": rule}, default=rest)
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        # two thirds of the run, so that it also ends with steps in which everything is frozen
        self.progression = fb.StoMPP(self.model, 8, refresh=3).attach(self.optimizer) if stompp else None
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if amp == "scaler" else None
        self.amp, self.micro = amp, micro
        self.recorder = fb.analysis.Recorder(self.model, every=3) if record else None
        if self.recorder is not None:
            self.recorder.attach(self.optimizer, self.scaler)

    def step(self, number: int) -> None:
        for part in range(self.micro):
            x = (self.x + 0.1 * number).chunk(self.micro)[part]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.amp is not None):
                loss = nn.functional.cross_entropy(self.model(x), self.labels.chunk(self.micro)[part]) / self.micro
            if part == 0:
                self.optimizer.zero_grad()
            if self.scaler is not None:
                (self.scaler.scale(loss) * (math.inf if number in (4, 5) else 1)).backward()
            elif loss.requires_grad:
                loss.backward()
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()


CASES = {
    "clipped STE": {"stompp": False},
    "StoMPP": {},
    "direct weights": {"weight": "direct", "stompp": False},
    "autocast": {"amp": "bf16"},
    "accumulation": {"micro": 2},
    "skipped steps": {"amp": "scaler"},
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_same_bit_for_bit(case):
    plain, recorded = Case(False, **CASES[case]), Case(True, **CASES[case])
    for number in range(STEPS):
        plain.step(number)
        recorded.step(number)
    a, b = plain.model.state_dict(), recorded.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    real = STEPS - 2 if case == "skipped steps" else STEPS
    assert recorded.recorder.steps_taken == real
    count = len(fb.units(recorded.model))
    table = recorded.recorder.to_pandas()
    assert table["step"].tolist() == [step for step in range(3, real + 1, 3) for _ in range(count)]
    if "StoMPP" in case:
        assert table["frozen"].iloc[-1] == 1
    assert table["gradient"].map(math.isfinite).all()
    recorded.recorder.detach()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in recorded.model.modules())
    assert not recorded.optimizer._optimizer_step_post_hooks or recorded.progression is not None


@pytest.mark.parametrize("case", CASES)
def test_records_equal_a_look_at_every_step(case):
    run = Case(True, **CASES[case])
    looks = GradientNorms(run.model, run.scaler), DeadChannels(run.model, run.scaler)
    flips, expected, real = SignFlips(run.model), [], 0
    for number in range(STEPS):
        for look in looks:
            look.listen()
        run.step(number)
        if run.recorder.steps_taken == real:
            continue  # skipped
        real += 1
        gradient, dead = (look.take().tolist() for look in looks)
        if real % 3:
            continue
        frozen, share = fb.frozen_fraction(run.model), flips.take().tolist()
        for depth, unit in enumerate(fb.units(run.model)):
            weights = torch.cat([torch.empty(0), *(p.detach().flatten() for _, p, _ in unit.weight_quantizers())])
            latent = len(weights) > 0 and CASES[case].get("weight") != "direct"
            saturated = (weights.abs() >= 1).float().mean().item() if latent else math.nan
            positive = (hard(weights) == 1).float().mean().item() if len(weights) else math.nan
            expected.append((frozen[unit.name], share[depth], gradient[depth], saturated, positive, dead[depth]))
    found = run.recorder.to_pandas()[list(FIGURES)].to_numpy().tolist()
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("when", [1, 2, 3, 7, 8])
def test_a_resumed_run_ends_with_the_same_record(when):
    whole = Case(True)
    for number in range(STEPS):
        whole.step(number)
        if number + 1 == when:
            file = io.BytesIO()
            parts = (whole.model, whole.optimizer, whole.progression, whole.recorder)
            torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    resumed = Case(True)
    parts = (resumed.model, resumed.optimizer, resumed.progression, resumed.recorder)
    for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for number in range(when, STEPS):
        resumed.step(number)
    assert resumed.recorder.to_parquet() == whole.recorder.to_parquet()


def test_the_file_is_the_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    run = Case(True)
    assert len(run.recorder) == 0
    assert list(run.recorder.to_pandas()) == ["step", "depth", "unit", *FIGURES]
    for number in range(6):
        run.step(number)
    run.recorder.save(tmp_path / "units.parquet")
    read = pandas.read_parquet(tmp_path / "units.parquet")
    table = run.recorder.to_pandas()
    assert read["unit"].astype(str).tolist() == table["unit"].tolist() == [u.name for u in fb.units(run.model)] * 2
    assert read["depth"].tolist() == table["depth"].tolist()
    run.recorder.save(tmp_path / "units.csv")
    text = pandas.read_csv(tmp_path / "units.csv")
    assert text["unit"].tolist() == table["unit"].tolist()
    for figure in FIGURES:
        assert read[figure].equals(table[figure])
        np.testing.assert_allclose(text[figure], table[figure], rtol=1e-5)
    with pytest.raises(fb.UsageError, match=r"saved as \.parquet or \.csv, found 'units\.txt'"):
        run.recorder.save(tmp_path / "units.txt")


def test_wrong_use_is_one_sentence():
    run = Case(True)
    for every in (0, 1.5):
        with pytest.raises(fb.UsageError, match="every must be a whole number"):
            fb.analysis.Recorder(run.model, every=every)
    with pytest.raises(RuntimeError, match="attached to an optimizer already"):
        run.recorder.attach(run.optimizer)
    other = fb.analysis.Recorder(run.model, every=4)
    with pytest.raises(fb.UsageError, match="every=4, the saved one 3"):
        other.load_state_dict(run.recorder.state_dict())


def test_distance_to_the_binary_network():
    run = Case(False)
    x, model = run.x, run.model.train()
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    found = fb.hardening_distance(model, x)
    assert model.training
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        soft = model(x)
        with fb.hardened(model):
            hard_logits = model(x)
    assert found == pytest.approx(((hard_logits - soft).norm() / soft.norm()).item())
    assert found > 0
    for number in range(8):
        run.step(number)
    assert fb.hardening_distance(model, x) == 0
