"""ONNX in stock onnxruntime and QONNX in the qonnx executor, held against the hardened model by their own checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import frostbit as fb
from frostbit.deploy import onnx as onnx_module
from frostbit.deploy.file import program_of
from tests.deploy import zoo

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def functional() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = zoo.Functional(), torch.randn(3, 3, 9, 11)
    fb.binarize_(model, example_input=x, min_binary_macs=0, weight_scale="mean_abs")
    return zoo.look_trained(model, x), x


def attention() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, tokens = zoo.Attention(), torch.randint(20, (3, 9))
    fb.binarize_(model, example_input=tokens, min_binary_macs=0)
    return model.eval(), tokens


CASES = {
    "binarynet": lambda: zoo.ready("binarynet"),
    "resnet8, padded with -1": lambda: zoo.ready("resnet8", pad_value=-1.0),
    "activation": lambda: zoo.ready("resnet8", "activation"),
    "functional": functional,
    "attention": attention,
}


@pytest.mark.parametrize("export", ["export_onnx", "export_qonnx"])
def test_encoders_of_padded_texts(export: str, tmp_path: Path) -> None:
    pytest.importorskip("qonnx")
    model, ids = zoo.encoder(tmp_path / "checkpoint", "Roberta", 1)
    assert getattr(fb.deploy, export)(model, ids, tmp_path / "net.onnx").parity.agreement == 1


@pytest.mark.parametrize("case", CASES)
def test_onnx_agrees_at_any_batch(case: str, tmp_path: Path) -> None:
    model, x = CASES[case]()
    written = fb.deploy.export_onnx(model, x, tmp_path / "net.onnx")
    assert written.parity.agreement == 1
    onnx.checker.check_model(str(written.path), full_check=True)
    run = session(written.path)
    with torch.no_grad(), fb.hardened(model.eval()):
        for count in (1, 2):
            (found,) = run.run(None, {run.get_inputs()[0].name: x[:count].numpy()})
            np.testing.assert_allclose(found, model(x[:count]).numpy(), rtol=1e-3, atol=1e-4)
    assert run.get_inputs()[0].shape[0] == run.get_outputs()[0].shape[0] == "N"


@pytest.mark.parametrize("case", CASES)
def test_qonnx_agrees(case: str, tmp_path: Path) -> None:
    pytest.importorskip("qonnx")
    model, x = CASES[case]()
    written = fb.deploy.export_qonnx(model, x, tmp_path / "net.onnx", batch=2)
    assert written.parity.agreement == 1
    nodes = onnx.load(str(written.path)).graph.node
    assert {node.domain for node in nodes if node.op_type == "BipolarQuant"} == {"qonnx.custom_op.general"}
    assert not any(node.op_type == "Where" for node in nodes)


def test_zeros_of_either_sign_give_plus_one(tmp_path: Path) -> None:
    model = nn.Sequential(fb.nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0, 1, 1], [-1, -1, -1]])
    x = torch.tensor([[0.0, -0.0, 0.0], [-0.0, -0.0, -1.0]])
    fb.deploy.export_onnx(model, x, tmp_path / "net.onnx")
    assert session(tmp_path / "net.onnx").run(None, {"input": x.numpy()})[0].tolist() == [[3, -3], [1, -1]]
    pytest.importorskip("qonnx")
    assert fb.deploy.export_qonnx(model, x, tmp_path / "net.qonnx").parity.flips == 0


def test_binary_weights_take_a_byte(tmp_path: Path) -> None:
    model = nn.Sequential(fb.nn.Linear(256, 256, bias=False))
    written = fb.deploy.export_onnx(
        model, torch.randn(2, 256), tmp_path / "net.onnx", labels=list(map(str, range(256)))
    )
    assert 256 * 256 < written.file_bytes < 256 * 256 + 5000
    file = onnx.load(str(written.path))
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 17)]
    assert json.loads({p.key: p.value for p in file.metadata_props}["labels"])[255] == "255"


@pytest.mark.parametrize("export", ["export_onnx", "export_qonnx"])
def test_a_file_that_disagrees_is_not_written(export: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qonnx")
    model, x = zoo.ready("resnet8")
    program, lowered = program_of(model, x)
    next(t for t in program.tensors.values() if t.encoding == "int16").data[:] += 3
    for module in ("onnx", "qonnx"):
        monkeypatch.setattr(f"frostbit.deploy.{module}.program_of", lambda *_, **__: (program, lowered))
    with pytest.raises(fb.RunError, match="ONNX graph disagrees with the model: a sign"):
        getattr(fb.deploy, export)(model, x, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_module.importlib.util, "find_spec", lambda name: None if name == "onnx" else object())
    with pytest.raises(fb.UsageError, match=r"needs the package 'onnx': pip install 'frostbit\[export\]'"):
        fb.deploy.export_onnx(nn.Linear(2, 2), torch.randn(2, 2), tmp_path / "net.onnx")
