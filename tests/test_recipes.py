"""Every committed recipe can be read, at every scale, and every arm of it is complete."""

import re
from pathlib import Path

import pytest
import torch

from frostbit import models
from frostbit.checkpoints import find_checkpoint
from frostbit.cli.compare import arm_recipes
from frostbit.progression import SCHEDULES
from frostbit.training.build import make_net
from frostbit.training.recipe_file import at_scale, read_recipe_file

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    stated = read_recipe_file(path)
    smallest = list(stated.get("scales", {}) or ["full"])[-1]
    built = set()
    assert stated["name"] == path.stem
    for scale in ("full", *stated.get("scales", {})):
        for arm, recipe in arm_recipes(at_scale(stated, scale), {"methods": None, "arms": None}, {}).items():
            assert recipe.model.name in models.list(), arm
            key = repr((recipe.model, recipe.binarize))
            if scale == smallest and recipe.init_from is None and key not in built:
                built.add(key)
                recipe.model.num_classes, recipe.model.input_size = 10, recipe.data.size or 32
                if "in_channels" in models.arguments(recipe.model.name):
                    make_net(recipe, torch.randn(2, 3, recipe.model.input_size, recipe.model.input_size))
                elif find_checkpoint(recipe.model.args["checkpoint"]) != recipe.model.args["checkpoint"]:
                    make_net(recipe, torch.randint(1, 1000, (2, 8)), vocabulary=(1000, 0))
            if recipe.progression is not None:
                assert recipe.progression.schedule in {None, *SCHEDULES}, arm
    if "paper.values" in stated:
        assert set(stated["paper.values"]) <= set(stated["arms"])
    for scale, verdict in (stated.get("paper.verdict") or {}).items():
        assert scale in {"full", *stated.get("scales", {})}
        assert not re.search(r"(?<![A-Za-z])\d", verdict), "figures come from result files, not from a sentence"
