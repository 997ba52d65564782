"""Training on Lightning: typed recipes, one module, run folders."""

from frostbit.training.methods import METHODS
from frostbit.training.recipe import Recipe
from frostbit.training.recipe_file import read_yaml
from frostbit.training.resolve import resolve
from frostbit.training.settings import flatten

__all__ = ["METHODS", "Recipe", "flatten", "read_yaml", "resolve"]
