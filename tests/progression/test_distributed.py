"""Two gloo processes (DDP, FSDP2) against one with the same global batch."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

import frostbit as fb

STEPS = 5


class Block(nn.Module):
    """A small residual network; fixed layers of its own keep this test independent of the model zoo."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.input_shape = (3, 6, 6)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y)) + x
        return self.head(y.mean((2, 3)))


def train(
    norm: bool, order: str, rank: int, world: int, ste: str | None = None, clip: bool = False
) -> tuple[dict, list]:
    torch.manual_seed(0)
    model = Block(norm).double()
    fb.binarize_(model, min_binary_macs=0, latent_clip=1.0 if clip else None)
    progression = fb.StoMPP(model, STEPS, order=order, refresh=3, ste=ste)
    parallel = model if world == 1 else nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    progression.attach(optimizer)
    data = torch.Generator().manual_seed(1)
    masks = []
    for _ in range(STEPS):
        x = torch.randn(8, 3, 6, 6, generator=data, dtype=torch.float64)
        y = torch.randint(4, (8,), generator=data)
        rows = slice(rank * 8 // world, (rank + 1) * 8 // world)
        masks.append(copy.deepcopy(progression.state_dict()["fields"]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(x[rows]), y[rows]).backward()
        optimizer.step()
        fb.clip_latents_(model)
    return model.state_dict(), masks


def train_sharded(rank: int) -> dict:
    torch.manual_seed(0)
    model = Block(norm=False).double()
    fb.binarize_(model, min_binary_macs=0, latent_clip=1.0)
    progression = fb.StoMPP(model, STEPS, refresh=3, ste="ste_clip")
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model.conv1, model.conv2):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    progression.attach(optimizer)
    data = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(8, 3, 6, 6, generator=data, dtype=torch.float64)
        y = torch.randint(4, (8,), generator=data)
        rows = slice(rank * 4, rank * 4 + 4)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        fb.clip_latents_(model)
    return {name: value.full_tensor() for name, value in model.state_dict().items()}


def sharded_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    weights = train_sharded(rank)
    if rank == 0:
        torch.save(weights, f"{folder}/sharded.pt")
    dist.destroy_process_group()


def test_fsdp2_equals_one_process(tmp_path: Path):
    spawn(sharded_worker, (str(tmp_path),), nprocs=2)
    one = train(False, "forward", 0, 1, ste="ste_clip", clip=True)[0]
    weights = torch.load(tmp_path / "sharded.pt")
    assert weights.keys() == one.keys()
    assert all((weights[name] - one[name]).abs().max() < 1e-10 for name in one)


def worker(rank: int, folder: str, norm: bool, order: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(train(norm, order, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("norm", "order"), [(False, "forward"), (False, "reverse"), (True, "forward")])
def test_two_processes_equal_one(tmp_path: Path, norm: bool, order: str):
    spawn(worker, (str(tmp_path), norm, order), nprocs=2)
    one, masks_of_one = train(norm, order, 0, 1)
    for rank in (0, 1):
        weights, masks = torch.load(tmp_path / f"{rank}.pt")
        assert len(masks) == len(masks_of_one) == STEPS
        for theirs, mine in zip(masks, masks_of_one, strict=True):
            assert theirs.keys() == mine.keys()
            assert all(torch.equal(theirs[key]["mask"], mine[key]["mask"]) for key in mine)
        if not norm:
            for name, value in one.items():
                assert (weights[name] - value).abs().max() < 1e-10, name
