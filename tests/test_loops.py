"""The library without its own trainer: documented loops, transformers' Trainer, accelerate."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import frostbit as fb

ROOT = Path(__file__).resolve().parent.parent


def examples() -> list:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = []
    for page in pages:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append(pytest.param(code, id=f"{page.stem}-{number}"))
    return found


@pytest.mark.parametrize("code", examples())
def test_documented_examples_run_as_written(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def small() -> nn.Module:
    torch.manual_seed(0)
    model = fb.models.create("mlp", hidden=(32, 32, 32))
    fb.binarize_(model, min_binary_macs=0)
    return model


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    progression = fb.StoMPP(model, total_steps=6).attach(optimizer)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(12):
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.randint(10, (8,)))
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        assert progression.steps_taken == (step + 1) // 2
    assert progression.done


def test_transformers_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = WithLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    progression = fb.StoMPP(model.net, total_steps=8, ste="ste_clip").attach(optimizer)
    data = [{"x": torch.randn(1, 8, 8), "labels": torch.tensor(i % 10)} for i in range(64)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=8, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    assert progression.steps_taken == 8
    assert fb.is_hard(model)
