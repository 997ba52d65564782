"""Training on Lightning: typed recipes, one module, run folders."""

from frostbit.training.methods import METHODS
from frostbit.training.recipe import Recipe
from frostbit.training.resolve import flatten, read_yaml, resolve

__all__ = ["METHODS", "Recipe", "flatten", "read_yaml", "resolve"]
