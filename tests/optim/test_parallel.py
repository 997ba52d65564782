"""Two gloo processes against one with the same global batch: DDP, and FSDP2 with sharded weights and moments."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

import frostbit as fb
from frostbit.optim import Bop2ndOrder, CaseOptimizer

STEPS = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.Linear(5, 3))
    fb.binarize_(model, weight="direct", keep="first_last", example_input=torch.randn(8, 6), min_binary_macs=0)
    return model


def whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)
    return tensor.detach().clone() if full is None else full().detach()


def train(kind: str, rank: int, world: int) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    model = network()
    parallel: nn.Module = model
    if kind == "ddp" and world > 1:
        parallel = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp" and world > 1:
        fully_shard(model)
    rule = (Bop2ndOrder, {"gamma": 0.05, "sigma": 0.05, "threshold": 0.01})
    optimizer = CaseOptimizer(model, {"binary": rule}, default=(torch.optim.SGD, {"lr": 0.1}))
    data = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x, y = torch.randn(8, 6, generator=data), torch.randint(3, (8,), generator=data)
        rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(x[rows]), y[rows]).backward()
        optimizer.step()
    binary = dict(fb.binary_parameters(model))
    moments = {name: whole(optimizer.state[p]["v"]) for name, p in binary.items()}
    flips = sum(optimizer.flips(p) for p in binary.values())
    return {name: whole(p) for name, p in model.named_parameters()}, moments, flips


def worker(rank: int, folder: str, kind: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(train(kind, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_equal_one(tmp_path: Path, kind: str) -> None:
    torch.set_num_threads(1)
    spawn(worker, (str(tmp_path), kind), nprocs=2)
    weights, moments, flips = train(kind, 0, 1)
    assert flips > 20
    total = 0
    for rank in (0, 1):
        theirs, their_moments, their_flips = torch.load(tmp_path / f"{rank}.pt")
        total += their_flips
        for name, value in weights.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-5, msg=name)
        for name, value in moments.items():
            assert torch.equal(theirs[name].abs(), torch.ones_like(value))
            torch.testing.assert_close(their_moments[name], value, rtol=1e-4, atol=1e-9)
    assert total == (flips if kind == "fsdp" else 2 * flips)  # a shard counts its own
