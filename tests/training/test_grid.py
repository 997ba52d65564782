"""Arms that span a grid: their names, their settings at every scale, and what is refused."""

import pytest
import yaml

from frostbit.errors import UsageError
from frostbit.training.recipe_file import at_scale, read_recipe_file

RECIPE = {
    "name": "spanned",
    "grid": {
        "order": {"progression.order": ["forward", "global"]},
        "rate": {"optimizer.lr": ["1e-3", 0.05], "train.epochs": [3, 4]},
        "net": {"bnn": {"method": "stompp"}, "bwn": {"method": "stompp-bwn", "progression.tail": 2}},
    },
    "arms": {
        "plain": {"method": "float"},
        "{net}-{order}": {"progression.refresh": 7},
        "lr-{rate}": {"train.epochs": 9},
    },
    "scales": {
        "cpu": {
            "grid": {"order": {"progression.refresh": [1, 2]}, "net": {"bwn": {"progression.tail": 1}}},
            "arms": {"plain": {"optimizer.lr": 1}, "lr-{rate}": {"train.batch": 8}, "bwn-global": {"train.batch": 4}},
        },
        "tiny": {"train.epochs": 1},
    },
}


def read(tmp_path, recipe, name="recipe.yaml"):
    (tmp_path / name).write_text(yaml.safe_dump(recipe, sort_keys=False))
    return read_recipe_file(tmp_path / name)


def test_arms_are_spanned_last_axis_fastest_and_win_over_their_points(tmp_path):
    arms = read(tmp_path, RECIPE)["arms"]
    assert list(arms) == ["plain", "bnn-forward", "bnn-global", "bwn-forward", "bwn-global", "lr-1e-3", "lr-0.05"]
    assert arms["plain"] == {"method": "float"}
    assert arms["bnn-global"] == {"method": "stompp", "progression.order": "global", "progression.refresh": 7}
    assert arms["bwn-forward"] == {
        "method": "stompp-bwn", "progression.tail": 2, "progression.order": "forward", "progression.refresh": 7
    }  # fmt: skip
    assert arms["lr-1e-3"] == {"optimizer.lr": "1e-3", "train.epochs": 9}
    assert arms["lr-0.05"] == {"optimizer.lr": 0.05, "train.epochs": 9}


def test_a_scale_changes_points_by_position_or_name_and_keeps_the_arms_names(tmp_path):
    stated = read(tmp_path, RECIPE)
    full, cpu, tiny = (at_scale(stated, scale)["arms"] for scale in ("full", "cpu", "tiny"))
    assert list(full) == list(cpu) == list(tiny)
    assert {name: arm for name, arm in tiny.items()} == full
    changes = {
        "plain": {"optimizer.lr": 1},
        "bnn-forward": {"progression.refresh": 1},
        "bnn-global": {"progression.refresh": 2},
        "bwn-forward": {"progression.refresh": 1, "progression.tail": 1},
        "bwn-global": {"progression.refresh": 2, "progression.tail": 1, "train.batch": 4},
        "lr-1e-3": {"train.batch": 8},
        "lr-0.05": {"train.batch": 8},
    }
    assert cpu == {name: full[name] | changes[name] for name in full}


def test_a_base_may_hold_the_grid_and_a_recipe_another_axis_of_that_name(tmp_path):
    read(tmp_path, RECIPE, "base.yaml")
    own = {"base": "base.yaml", "grid": {"order": {"progression.order": ["reverse"]}}, "scales": {"cpu": {}}}
    base = dict(RECIPE, scales={})
    read(tmp_path, base, "base.yaml")
    arms = read(tmp_path, own)["arms"]
    assert [name for name in arms if "-reverse" in name] == ["bnn-reverse", "bwn-reverse"]
    assert not any("forward" in name for name in arms)


def changed(**changes):
    return {**RECIPE, "scales": {}, **changes}


REFUSED = {
    "unknown axis": (changed(arms={"{ordre}": {}}), "grid has no axis 'ordre', as in arm '{ordre}': did you mean 'ord"),
    "unused axis": (changed(arms={"{order}-{net}": {}}), "no arm's name holds {rate}, so the axis spans nothing"),
    "one name twice": (
        changed(arms={**RECIPE["arms"], "bnn-global": {}}), "two arms named 'bnn-global'"
    ),
    "lengths": (changed(grid={"a": {"optimizer.lr": [1, 2], "train.epochs": [1]}}), "as many values for each setting"),
    "empty": (changed(grid={"a": {"optimizer.lr": []}}), "as many values for each setting, at least one"),
    "no axis": (changed(grid={"a": [1, 2]}), "axis 'a' must be {setting: [values]} or {point: {settings}}"),
    "no grid at all": ({"name": "a", "arms": {"{order}": {}}}, "grid has no axis 'order'"),
    "no grid": (changed(grid=3), "grid must hold axes, found 3"),
    "equal values": (changed(grid={"a": {"optimizer.lr": [1, 1]}}), "must list 1 values, one a point, found 2"),
    "unknown setting": (
        changed(grid={**RECIPE["grid"], "order": {"progression.ordr": ["forward"]}}),
        "no setting 'progression.ordr': did you mean 'progression.order'",
    ),
    "scale: unknown axis": (
        changed(scales={"cpu": {"grid": {"ordre": {"train.batch": [1, 2]}}}}), "lacks, 'ordre': did you mean 'order'"
    ),
    "scale: unknown point": (
        changed(scales={"cpu": {"grid": {"net": {"bnm": {"train.batch": 1}}}}}), "no point 'bnm' in the recipe: did you"
    ),
    "scale: too few": (
        changed(scales={"cpu": {"grid": {"order": {"train.batch": [1]}}}}), "must list 2 values, one a point, found 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_spans_nothing_is_refused(case, tmp_path):
    recipe, message = REFUSED[case]
    with pytest.raises(UsageError) as error:
        read(tmp_path, recipe)
    assert message in str(error.value)
