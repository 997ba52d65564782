"""The table: what becomes of each ATen operator that a packed network may contain. Importing this fills it."""

from frostbit.deploy.aten import activations, arithmetic, attention, constants, layers, moving, norms, pooling

__all__ = ["activations", "arithmetic", "attention", "constants", "layers", "moving", "norms", "pooling"]
