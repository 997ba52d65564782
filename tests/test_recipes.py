"""Every committed recipe can be read, at every scale, and every arm of it is complete."""

from pathlib import Path

import pytest

from frostbit import models
from frostbit.cli.compare import arm_recipes
from frostbit.progression import SCHEDULES
from frostbit.training.resolve import at_scale, read_recipe_file

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    stated = read_recipe_file(path)
    assert stated["name"] == path.stem
    for scale in ("full", *stated.get("scales", {})):
        for arm, recipe in arm_recipes(at_scale(stated, scale), {"methods": None, "arms": None}, {}).items():
            assert recipe.model.name in models.list(), arm
            if recipe.progression is not None:
                assert recipe.progression.schedule in {None, *SCHEDULES}, arm
    if "paper.values" in stated:
        assert set(stated["paper.values"]) <= set(stated["arms"])
