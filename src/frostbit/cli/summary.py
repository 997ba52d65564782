"""``frostbit summary``."""

from __future__ import annotations

from collections.abc import Sequence

from frostbit.cli.options import make_parser, parse
from frostbit.cli.train import choose_arm, read_recipe
from frostbit.training.resolve import resolve

# channels, size and classes of data sets whose images are not needed to describe a network for them
SHAPES = {"digits": (1, 8, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}


def run(argv: Sequence[str]) -> int:
    """Print what a recipe's network consists of, and what became binary in it."""
    import torch

    from frostbit import models

    parser = make_parser(
        "summary",
        "Layers, 1-bit and 32-bit parameters, bytes and multiply-accumulates of a network. "
        f"Networks: {', '.join(models.list())}.",
        usage="[recipe.yaml | --model NAME] [options]",
        without=["seeds"],
    )
    parser.add_argument("recipe", nargs="?", type=str | None, help="recipe file (YAML)")
    parser.add_argument("--config", type=str | None, help="the same, as an option")
    parser.add_argument("--scale", type=str | None, help="full, or one of the recipe's smaller scales, e.g. cpu")
    parser.add_argument("--arm", type=str | None, help="which arm of the recipe")
    own, given = parse(parser, argv)

    from frostbit.summarize import summary
    from frostbit.training.build import check_shape, example_batch, load_data, make_net

    _, layers = choose_arm(read_recipe(own), own["arm"], given)
    recipe = resolve(*layers, strict=given)
    if recipe.data.name in SHAPES and recipe.data.path is None:
        channels, size, classes = SHAPES[recipe.data.name]
        size = recipe.data.size or recipe.model.input_size or size
        check_shape(recipe, recipe.data.name, size, classes)
        vocabulary = None
        example = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    else:
        data = load_data(recipe)
        check_shape(recipe, data.name, data.input_shape[-1], len(data.classes))
        vocabulary = data.vocabulary
        example = example_batch(recipe, data, 16)[0]
    net, report = make_net(recipe, example, vocabulary=vocabulary)
    if report is not None:
        print(report, end="\n\n")
    print(summary(net, example))
    return 0
