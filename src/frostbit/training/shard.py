"""FSDP2: every process keeps a shard of each parameter, of its gradient and of its optimizer state."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from frostbit.errors import UsageError
from frostbit.nn import BinaryLayer
from frostbit.training.optimizers import PLAIN_OPTIMIZERS
from frostbit.training.recipe import Recipe


def check_sharding(recipe: Recipe) -> None:
    """Refuse what cannot be sharded.

    Raises:
        UsageError: an optimizer that looks at whole weights, or one device.
    """
    config = recipe.optimizer
    if config.name not in PLAIN_OPTIMIZERS or config.grad_at == "latent" or config.step_from == "quantized":
        raise UsageError(
            f"train.strategy fsdp shards latent weights under {', '.join(PLAIN_OPTIMIZERS)}: method {recipe.method!r} "
            "moves them by a rule of its own, use ddp"
        )
    if recipe.train.devices < 2:
        raise UsageError(f"train.strategy fsdp needs train.devices of at least 2, found {recipe.train.devices}")


def shard_(net: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a converted network in place, block by block.

    A block is gathered when its forward begins, so a layer's weight is whole where it is quantized and masked: masks
    are the same as without sharding, and nothing of them is communicated.

    Args:
        net: the network. Its blocks are the members of its outermost lists and sequences that hold binary layers;
            what is left is gathered for the whole of a step.
        mesh: one-dimensional, the processes that share the parameters.
    """
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the outermost blocks below a module."""
    found = []
    for child in module.children():
        inside = isinstance(module, nn.ModuleList | nn.Sequential) and not isinstance(child, BinaryLayer)
        if inside and any(isinstance(part, BinaryLayer) for part in child.modules()):
            found.append(child)
        else:
            found += _blocks(child)
    return found
