"""What a progression measures and decides on several processes: the same everywhere, and the same as one would."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

import frostbit as fb

STEPS, UNITS = 30, 5
PACES = ("gradient", "flips", "recovery")
ACTIONS = ("reset", "rescale")


def train(parallel: str, rank: int, world: int, pace: str = "equal", action: str = "keep") -> tuple[list, dict]:
    """Return the windows at the end and the weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(6, 8)]
    for _ in range(UNITS):
        layers += [nn.ReLU(), nn.Linear(8, 8)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 4)).double()
    fb.binarize_(model, example_input=torch.randn(64, 6, dtype=torch.float64), min_binary_macs=0)
    progression = fb.StoMPP(model, STEPS, refresh=3, ste="ste_clip", pace=pace)
    outer: nn.Module = model
    if parallel == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif parallel == "ddp":
        outer = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    progression.attach(optimizer)
    fb.Moments(progression, optimizer, action, at="both")
    data = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(16, 6, generator=data, dtype=torch.float64)
        rows = slice(rank * 16 // world, (rank + 1) * 16 // world)
        loss = nn.functional.cross_entropy(outer(x[rows]), x[rows, :4].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        progression.observe(loss)
        optimizer.step()
    weights = {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()
    }
    return [(window.unit, window.start, window.stop) for window in progression.windows], weights


def cases() -> list[dict[str, Any]]:
    """All paces and all actions on moments, with both ways to be parallel."""
    options: list[dict[str, str]] = [{"pace": pace} for pace in PACES]
    options += [{"action": action} for action in ACTIONS]
    return [{"parallel": parallel, **option} for parallel in ("ddp", "fsdp") for option in options]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([train(rank=rank, world=2, **case) for case in cases()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[list[tuple[list, dict]]]:
    """What each of two processes found, for each case."""
    folder: Path = tmp_path_factory.mktemp("two")
    spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("index", range(len(cases())), ids=["-".join(case.values()) for case in cases()])
def test_two_processes_decide_as_one(index, two):
    case = cases()[index]
    windows, weights = two[0][index]
    assert windows == two[1][index][0]
    assert [stop for _, _, stop in windows][-1] == STEPS
    assert all(torch.equal(weights[name], two[1][index][1][name]) for name in weights)
    expected_windows, expected = train("none", 0, 1, **{k: v for k, v in case.items() if k != "parallel"})
    assert windows == expected_windows
    if "pace" in case:
        assert windows != train("none", 0, 1)[0]
    assert all((weights[name] - expected[name]).abs().max() < 1e-9 for name in expected)
