"""Two gloo processes against one with the same global batch."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
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


def train(norm: bool, order: str, rank: int, world: int) -> tuple[dict, list]:
    torch.manual_seed(0)
    model = Block(norm).double()
    fb.binarize_(model, min_binary_macs=0)
    progression = fb.StoMPP(model, STEPS, order=order, refresh=3)
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
    return model.state_dict(), masks


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
