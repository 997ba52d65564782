"""Packed files: the interpreter and the engine agree with the hardened model, sizes are what the summary says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostbit as fb
import frostbit_runtime
from frostbit.deploy import parity
from frostbit.deploy.file import packed_bytes, program_of
from tests.deploy import zoo
from tests.nn import zoo as others

QUICK = ("binarynet", "mlp", "resnet8")


def check(model: nn.Module, x: Any, path: Path, flips: int = 0, **options: Any) -> fb.deploy.Saved:
    """Save; then the engine, in other batch sizes, must equal the interpreter bit for bit."""
    saved = fb.deploy.save(model, x, path, **options)
    assert saved.parity.flips <= flips
    assert saved.payload_bytes <= saved.file_bytes == path.stat().st_size
    program, network = frostbit_runtime.read(path), fb.deploy.load(path)
    inputs = [x] if isinstance(x, Tensor) else list(x.values()) if isinstance(x, dict) else list(x)
    for count in (1, len(inputs[0])):
        arrays = [parity.array_of(each[:count]) for each in inputs]
        expected, found = frostbit_runtime.interpret(program, *arrays), network(*arrays)
        for a, b in zip(*(y if isinstance(y, tuple) else (y,) for y in (expected, found)), strict=True):
            assert np.array_equal(a, b)
    return saved


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(
    ("placement", "options"),
    [("input", {}), ("activation", {"weight_scale": "mean_abs", "pad_value": -1.0}), ("input", {"input": None})],
    ids=["input", "activation, scaled, padded with -1", "weights only"],
)
def test_every_family(name: str, placement: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, x = zoo.ready(name, placement, **options)
    saved = check(model, x, tmp_path / "net.safetensors")
    assert saved.parity.agreement == 1


@pytest.mark.parametrize(("name", "options"), [("vit_tiny", {"weight_scale": "mean_abs"}), ("xnornet", {})])
def test_families_of_their_own_make(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Tokens, whose batch is read by len(); poolings between sums and norms, padding beyond half a kernel."""
    model, x = zoo.ready(name, **options)
    check(model, x, tmp_path / "net.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(fb.models.list()) - {*QUICK, "bert"}))
@pytest.mark.parametrize("placement", ["input", "activation"])
def test_every_model(name: str, placement: str, tmp_path: Path) -> None:
    try:
        model, x = zoo.ready(name, placement, pad_value=1.0)
    except fb.UsageError as error:
        pytest.skip(f"{name} with placement {placement!r}: {error}")
    check(model, x, tmp_path / "net.safetensors", flips=10**6)
    assert packed_bytes(model, x)


def test_a_float_model_is_packed_too(tmp_path: Path) -> None:
    model = zoo.tiny("resnet8")
    x = zoo.batch_for(model)
    saved = check(zoo.look_trained(model, x), x, tmp_path / "net.safetensors")
    assert saved.parity.signs == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"keep": None, "weight_scale": "mean_abs"}, {"input": None}],
    ids=["first and last real", "all binary, scaled", "weights only"],
)
def test_what_users_write(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 9, 11)
    model = zoo.Functional()
    fb.binarize_(model, example_input=x, min_binary_macs=0, **options)
    check(zoo.look_trained(model, x), x, tmp_path / "net.safetensors")


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_borders_of_every_kind(mode: str, tmp_path: Path) -> None:
    class Bordered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, (2, 1, 0, 3), mode=mode)

    x = torch.randn(3, 2, 5, 4)
    check(Bordered(), x, tmp_path / "net.safetensors")
    network = fb.deploy.load(tmp_path / "net.safetensors")
    assert np.array_equal(network(x.numpy()), Bordered()(x))


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_of_any_length(need_weights: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = zoo.Attention(need_weights), torch.randint(20, (3, 9))
    fb.binarize_(model, example_input=tokens, min_binary_macs=0, weight_scale="mean_abs" if need_weights else None)
    check(model, tokens, tmp_path / "net.safetensors")
    network = fb.deploy.load(tmp_path / "net.safetensors")
    longer = torch.randint(20, (2, 12))
    with torch.no_grad(), fb.hardened(model.eval()):
        np.testing.assert_allclose(network(longer.numpy()), model(longer), rtol=1e-4, atol=1e-4)
    with pytest.raises(frostbit_runtime.InputError):
        network(torch.randint(20, (2, 14)).numpy())


def test_other_peoples_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for model, x, options in (
        (others.ResNet(), others.IMAGES, {"placement": "activation"}),  # one in-place ReLU called twice
        (others.ViT(), others.IMAGES, {}),
        (nn.Sequential(nn.Linear(8, 8), others.attention(), nn.Linear(8, 8)), others.TOKENS, {"keep": "first_last"}),
    ):
        fb.binarize_(model, example_input=x, min_binary_macs=0, **options)
        check(model.eval(), x, tmp_path / "net.safetensors", flips=20)


@pytest.mark.parametrize(("kind", "padding"), [("Bert", 0), ("Roberta", 1), ("DistilBert", 0), ("Electra", 0)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_encoders_of_padded_texts(kind: str, padding: int, tmp_path: Path) -> None:
    model, ids = zoo.encoder(tmp_path / "checkpoint", kind, padding)
    check(model, ids, tmp_path / "net.safetensors", flips=3)
    network = fb.deploy.load(tmp_path / "net.safetensors")
    assert network.inputs[0].shape == (None, None)
    small = fb.deploy.save(model, ids, tmp_path / "small.safetensors", rest="float16", real_weights="int8")
    assert small.payload_bytes < frostbit_runtime.read(tmp_path / "net.safetensors").nbytes
    longer = torch.cat([ids, torch.full((len(ids), 3), padding)], 1)
    assert np.array_equal(network(longer.numpy()), network(ids.numpy()))
    with torch.no_grad(), fb.hardened(model):
        np.testing.assert_allclose(network(longer.numpy()), model(longer), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_transformers_with_a_padding_mask(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    batch = {"input_ids": torch.randint(50, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.int64)}
    batch["attention_mask"][1, 6:] = 0
    fb.binarize_(model, example_input=batch, min_binary_macs=0)
    check(model, batch, tmp_path / "net.safetensors", flips=3)
    program = frostbit_runtime.read(tmp_path / "net.safetensors")
    assert [item.shape for item in program.inputs] == [(None, None)] * 2


def test_a_finished_progression_and_one_on_the_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.tiny("resnet8")
    x = zoo.batch_for(model)
    fb.binarize_(model)
    progression = fb.StoMPP(model, total_steps=80)
    for _ in range(40):
        progression.step()
    zoo.look_trained(model, x)
    with pytest.warns(UserWarning, match="not fully binary yet"):
        check(model, x, tmp_path / "half.safetensors")
    for _ in range(40):
        progression.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check(model, x, tmp_path / "done.safetensors")
    assert (tmp_path / "half.safetensors").read_bytes() == (tmp_path / "done.safetensors").read_bytes()


def test_proximal_weights_of_plain_layers_become_bits(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False))
    for layer in (model[0], model[2]):
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", fb.quantizers.create("bnn++"))
    saved = check(model, torch.randn(4, 6), tmp_path / "net.safetensors")
    assert saved.payload_bytes == 6 + 2 * 4 * 8 + 4


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = fb.nn.Linear(6, 4), fb.nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
            y = self.a(x)
            return {"sums": y, "label": "text", "rest": [self.b(y * scale), x.reshape(x.shape[0], 2, 3).sum(-1)]}

    x = (torch.randn(4, 6), torch.randn(4, 1))
    check(Two(), x, tmp_path / "net.safetensors")
    assert len(frostbit_runtime.read(tmp_path / "net.safetensors").outputs) == 3


@pytest.mark.parametrize(
    "options",
    [{"rest": "float16"}, {"real_weights": "int8"}, {"rest": "float16", "real_weights": "int8"}],
    ids=["float16", "int8", "both"],
)
def test_encodings(options: dict[str, Any], tmp_path: Path) -> None:
    model, x = zoo.ready("resnet8")
    exact = fb.deploy.save(model, x, tmp_path / "exact.safetensors")
    saved = check(model, x, tmp_path / "net.safetensors", flips=10**6, **options)
    assert saved.payload_bytes == fb.summary(model, x, **options).bytes < exact.payload_bytes
    found = {t.encoding for t in frostbit_runtime.read(tmp_path / "net.safetensors").tensors.values()}
    assert found == {"bits", "int16", options.get("rest", "float32"), options.get("real_weights", "float16")}


def test_unknown_encodings_and_labels_are_refused(tmp_path: Path) -> None:
    model, x = zoo.ready("mlp")
    with pytest.raises(fb.UsageError, match="unknown encoding for rest 'float61': did you mean 'float16'"):
        fb.deploy.save(model, x, tmp_path / "net.safetensors", rest="float61")
    with pytest.raises(fb.UsageError, match="names of 10 classes, found 2"):
        fb.deploy.save(model, x, tmp_path / "net.safetensors", labels=["cat", "dog"])
    assert list(tmp_path.iterdir()) == []


def test_accumulators_of_few_bits(tmp_path: Path) -> None:
    """Before a sign they are part of the comparison; elsewhere only what saturates can be packed."""
    model = zoo.tiny("binarynet")
    x = zoo.batch_for(model)
    exact = {"conv1": {"accumulator_bits": None}, "fc9": {"accumulator_bits": 8}}
    fb.binarize_(model, accumulator_bits=4, overrides=exact)
    assert model.conv4.accumulator(36).step > 1
    check(zoo.look_trained(model, x), x, tmp_path / "net.safetensors")
    kinds = [op.kind for op in frostbit_runtime.read(tmp_path / "net.safetensors").ops]
    assert (kinds.count("threshold"), kinds.count("clip")) == (7, 1)

    model = zoo.tiny("resnet8")
    fb.binarize_(model, accumulator_bits=3)
    with pytest.raises(fb.UsageError, match=r"'layer1.0.conv2' rounds numbers down, as an accumulator of few bits"):
        fb.deploy.save(model, zoo.batch_for(model), tmp_path / "other.safetensors")


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(fb.nn.Linear(16, 16, bias=False), fb.nn.Linear(16, 16, bias=False))
    model[1].weight = model[0].weight
    saved = check(model, torch.randn(2, 16), tmp_path / "net.safetensors")
    assert saved.payload_bytes == 16 * 16 // 8


def test_minus_zero_counts_as_plus_one(tmp_path: Path) -> None:
    """In weights, in inputs, and where a norm lands on zero."""
    model = nn.Sequential(fb.nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), fb.nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[-0.0, 0.0, 1.0], [-0.0, -1, -1], [-1, -1, -1], [1, -1, 0.0]])
        model[1].weight[:] = torch.tensor([1.0, -1.0, 0.0, -0.0])
        model[2].weight[:] = -0.0
    x = torch.tensor([[-0.0, 0.0, -1.0], [-0.0, -0.0, -0.0], [1.0, -1.0, -0.0]])
    check(model, x, tmp_path / "net.safetensors")
    first = x.ge(0).float() * 2 - 1
    weight = model[0].weight.detach().ge(0).float() * 2 - 1
    middle = (first @ weight.T) * torch.tensor([1.0, -1.0, 0.0, 0.0]) >= 0
    expected = (middle.float() * 2 - 1).sum(1, keepdim=True).expand(-1, 2)
    assert np.array_equal(fb.deploy.load(tmp_path / "net.safetensors")(x.numpy()), expected.numpy())


def test_a_file_that_disagrees_never_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.ready("resnet8")
    right, graph = program_of(model, x)
    scale = next(op.tensors["scale"] for op in right.ops if op.kind == "affine" and "layer2" in op.name)
    at = next(op.tensors["at"] for op in right.ops if op.kind == "threshold")
    for name in (scale, at):
        right.tensors[name].data[:] += 2
        monkeypatch.setattr("frostbit.deploy.file.program_of", lambda *_, **__: (right, graph))
        with pytest.raises(fb.RunError, match="the file disagrees with the model"):
            fb.deploy.save(model, x, tmp_path / "net.safetensors")
        right.tensors[name].data[:] -= 2
    assert list(tmp_path.iterdir()) == []
    fb.deploy.save(model, x, tmp_path / "net.safetensors")


def test_saving_leaves_the_model_as_it_was_and_the_file_knows_where_it_comes_from(tmp_path: Path) -> None:
    model, x = zoo.ready("mlp")
    model.train()
    before = others.fingerprint(model)
    about = {
        "labels": list("abcdefghij"),
        "preprocess": {"size": 5, "channels": 1, "mean": [0.5], "std": [0.5]},
        "run": {"seed": 3},
    }
    saved = fb.deploy.save(model, x, tmp_path / "deep" / "net.safetensors", **about)
    others.assert_untouched(model, before)
    assert model.training
    model.eval()
    info = frostbit_runtime.read(saved.path).info
    assert {key: info[key] for key in about} == about
    assert info["float_bytes"] == saved.float_bytes == fb.summary(model, x).float_bytes
    assert info["producer"] == "frostbit"
    assert f"{saved.ratio:.1f} times" in str(saved)


def test_a_model_on_the_way_to_a_full_disk(tmp_path: Path) -> None:
    model, x = zoo.ready("mlp")
    (tmp_path / "file").write_text("")
    with pytest.raises(fb.RunError, match="cannot write"):
        fb.deploy.save(model, x, tmp_path / "file" / "net.safetensors")
