"""Recipes: layers of settings, presets, and one sentence for everything that cannot be."""

import dataclasses
import re

import pytest
import yaml

from frostbit.errors import UsageError
from frostbit.training.methods import METHODS
from frostbit.training.recipe import Recipe
from frostbit.training.recipe_file import at_scale, read_recipe_file, read_yaml
from frostbit.training.resolve import resolve
from frostbit.training.settings import SETTINGS, changed, differences, flatten, overlay, to_dict


def asked_for(method):
    """What a method needs beside its name: one learns from a teacher."""
    return {"method": method} | ({"distill.teacher": "float"} if "distill" in METHODS[method] else {})


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resolves_to_its_preset(method):
    recipe = resolve(asked_for(method))
    for section, answers in METHODS[method].items():
        config = getattr(recipe, section)
        assert (config is None) == (answers is None)
        for key, value in (answers or {}).items():
            assert getattr(config, key) == value


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_recipe_survives_a_file(method, tmp_path):
    recipe = resolve({**asked_for(method), "optimizer.name": "adam", "progression.soft_hardness": [1, 2]})
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(to_dict(recipe)))
    again = resolve(flatten(read_yaml(path)))
    assert to_dict(again) == to_dict(recipe)
    assert not changed(recipe, again)


def test_later_layers_win_and_explicit_beats_the_preset():
    recipe = resolve(
        flatten({"method": "ste", "train": {"epochs": 3}}),
        flatten({"method": "stompp", "binarize.weight": "approx_sign"}),
        strict={"train.epochs": 7},
    )
    assert recipe.train.epochs == 7
    assert recipe.binarize.weight == "approx_sign"
    assert recipe.binarize.input == "ste_clip"
    assert recipe.progression.ste is None


def test_a_shared_setting_passes_over_an_arm_without_that_section_but_a_typed_one_is_refused():
    shared = {"progression.refresh": 7, "binarize.placement": "activation"}
    assert resolve(shared, {"method": "ste"}).progression is None
    assert resolve(shared, {"method": "ste"}).binarize.placement == "activation"
    assert resolve(shared, {"method": "float"}).binarize is None
    assert resolve(shared, {"method": "stompp"}).progression.refresh == 7
    with pytest.raises(UsageError, match=r"progression\.refresh means nothing here: method 'ste'"):
        resolve({"method": "ste"}, strict=shared)


def test_a_null_section_forgets_what_was_said_inside_and_can_be_opened_again():
    said = {"progression.refresh": 7, "progression.order": "reverse"}
    assert overlay(said, {"progression": None}) == {"progression": None}
    assert overlay(said, {"progression": None}, {"progression.kind": "anneal"}) == {"progression.kind": "anneal"}


def test_values_that_were_parsed_before_are_nobody_elses():
    stated = {"seeds": [1, 2], "model.args": {"depth": [1]}}
    first = resolve(stated)
    first.seeds.append(3)
    first.model.args["depth"].append(2)
    again = resolve(stated)
    assert again.seeds == [1, 2]
    assert again.model.args == {"depth": [1]}
    assert resolve({"train.epochs": 1}).train.epochs == 1  # and 1 as a number is not what "1" or True would be
    with pytest.raises(UsageError, match="whole number"):
        resolve({"train.epochs": True})


def test_fields_of_other_choices_are_cleared():
    adam = resolve({"optimizer.name": "adam"})
    assert (adam.optimizer.momentum, adam.optimizer.betas) == (None, (0.9, 0.999))
    assert resolve({"schedule.name": "cosine"}).schedule.gamma is None
    anneal = resolve({"method": "stompp", "progression.kind": "anneal"})
    assert (anneal.progression.order, anneal.progression.refresh) == ("global", None)
    for typed in (
        {"optimizer.name": "adam", "optimizer.momentum": 0.5},
        {"method": "bnn++", "progression.refresh": 50},
        {"method": "stompp", "progression.end": 50},
        {"schedule.name": "constant", "schedule.final_lr": 0.1},
    ):
        with pytest.raises(UsageError, match=f"{list(typed)[-1]} means nothing here"):
            resolve(strict=typed)
    sgd = resolve(strict={"optimizer.name": "sgd", "optimizer.momentum": 0.5})
    assert sgd.optimizer.momentum == 0.5


BAD = {
    "section": ({"trian": {"epochs": 3}}, "recipe has no setting 'trian': did you mean 'train'?"),
    "field": ({"train": {"epoch": 3}}, "did you mean 'train.epochs'?"),
    "wrong section": ({"refresh": 3}, "did you mean 'progression.refresh'?"),
    "type": ({"train": {"epochs": "many"}}, "train.epochs must be a whole number, found 'many'"),
    "fraction": ({"train.epochs": 2.5}, "train.epochs must be a whole number, found 2.5"),
    "flag": ({"data.augment.flip": "perhaps"}, "data.augment.flip must be true or false"),
    "list": ({"seeds": 3}, "seeds must be a list, each a whole number, found 3"),
    "no seeds": ({"seeds": []}, "at least one"),
    "method": ({"method": "stomp"}, "unknown method 'stomp': did you mean 'stompp'?"),
    "choice": ({"train.precision": "bf61"}, "unknown train.precision 'bf61': did you mean 'bf16'?"),
    "optimizer": ({"optimizer.name": "adm"}, "unknown optimizer 'adm': did you mean 'adam'?"),
    "schedule": ({"schedule.name": "cosin"}, "did you mean 'cosine'?"),
    "strategy": ({"train.strategy": "dpd"}, "did you mean 'ddp'?"),
    "low": ({"train.batch": 0}, "train.batch must be at least 1, found 0"),
    "zero": ({"optimizer.lr": 0}, "optimizer.lr must be above 0, found 0"),
    "ascent": ({"schedule.name": "cosine", "schedule.final_lr": -0.1}, "schedule.final_lr must be at least 0"),
    "negative step": (
        {"schedule.name": "step", "schedule.milestones": [1], "schedule.gamma": -0.1},
        "schedule.gamma must be at least 0",
    ),
    "share": ({"data.val_fraction": 1.0}, "[0, 1)"),
    "not a group": ({"train": 3}, "train must be a group of settings, found 3"),
    "null group": ({"train": None}, "train must be a group of settings"),
    "milestones": ({"schedule.name": "step"}, "schedule.milestones"),
    "folder name": ({"name": "a/b"}, "found 'a/b'"),
    "float freezes": ({"method": "float", "progression.kind": "stompp"}, "a float network cannot freeze"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes_get_one_sentence(case):
    settings, sentence = BAD[case]
    with pytest.raises(UsageError) as error:
        resolve(flatten(settings))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [1", "not valid YAML at line"),
        ("- 1", "must hold a mapping"),
        (None, "No such file"),
        (b"\xff\xfe\x00", "it is not text"),
    ],
)
def test_unreadable_recipe_files(tmp_path, content, sentence):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=sentence):
        read_yaml(path)


def test_yaml_numbers_and_words_are_taken_as_meant():
    recipe = resolve(flatten(yaml.safe_load("{train: {precision: 32}, optimizer: {lr: 1e-3}}")))
    assert (recipe.train.precision, recipe.optimizer.lr) == ("32", 0.001)


def test_differences_name_sections_once_and_compare_inside_them_only_where_they_exist():
    arms = {name: to_dict(resolve({"method": name})) for name in ("float", "ste", "stompp", "stompp+ste")}
    table = differences(arms)
    assert table["progression"] == {"float": False, "ste": False, "stompp": True, "stompp+ste": True}
    assert table["progression.ste"] == {"stompp": None, "stompp+ste": "ste_clip"}
    assert "progression.refresh" not in table
    assert not [name for name in table if name.startswith(("train", "data", "optimizer"))]


def test_changed_ignores_what_does_not_make_another_run():
    base = resolve({"method": "ste"})
    filled = dataclasses.replace(base, model=dataclasses.replace(base.model, num_classes=10, input_size=8))
    moved = resolve({"method": "ste", "data.path": "elsewhere", "train.threads": 2})
    assert not changed(filled, base)
    assert not changed(base, moved)
    assert changed(base, resolve({"method": "ste", "train.epochs": 3})) == {"train.epochs": (20, 3)}
    assert changed(base, resolve({"method": "stompp"}))["progression.schedule"] == (None, "cubic")


def test_every_setting_says_what_it_is():
    assert all(setting.help for setting in SETTINGS.values())
    assert {name.partition(".")[0] for name in SETTINGS} == {f.name for f in dataclasses.fields(Recipe)}


SCALED = {
    "name": "study",
    "train.epochs": 200,
    "arms": {"a": {"optimizer.lr": 0.1, "train.batch": 8}, "b": None},
    "scales": {"cpu": {"train": {"epochs": 3}, "seeds": [4], "arms": {"a": {"optimizer": {"lr": 0.2}}}}},
}


def test_a_scale_wins_over_the_recipe_and_its_arms_over_the_arms():
    stated = flatten(SCALED)
    assert at_scale(stated, None) == at_scale(stated, "full") == stated
    small = at_scale(stated, "cpu")
    assert small["arms"] == {"a": {"optimizer.lr": 0.2, "train.batch": 8}, "b": {}}
    recipe = resolve(small)
    assert (recipe.name, recipe.scale, recipe.train.epochs, recipe.seeds) == ("study-cpu", "cpu", 3, [4])
    assert stated["arms"]["a"] == SCALED["arms"]["a"]  # the recipe itself stays as it was


@pytest.mark.parametrize(
    ("scales", "scale", "sentence"),
    [
        ({"cpu": {}}, "cpo", "the recipe has no scale 'cpo': did you mean 'cpu'?"),
        ({"cpu": {"train.epoch": 3}}, "cpu", "scale 'cpu' has no setting 'train.epoch'"),
        ({"cpu": {"arms": {"aa": {}}}}, "cpu", "changes an arm that the recipe lacks, 'aa': did you mean 'a'?"),
    ],
)
def test_a_scale_that_cannot_be(scales, scale, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        at_scale(flatten({**SCALED, "scales": scales}), scale)


def test_a_recipe_holds_what_its_base_says_where_it_is_silent(tmp_path):
    (tmp_path / "base").mkdir()
    base = {"train": {"epochs": 200, "batch": 256}, "scales": {"cpu": {"train.epochs": 3, "data.size": 16}, "hour": {}}}
    (tmp_path / "base" / "all.yaml").write_text(yaml.safe_dump(base))
    own = {"base": "base/all.yaml", "train.batch": 8, "scales": {"cpu": {"data": {"size": 8}}}, "arms": {"a": {}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    stated = read_recipe_file(tmp_path / "own.yaml")
    assert (stated["train.epochs"], stated["train.batch"], stated["arms"]) == (200, 8, {"a": {}})
    assert stated["scales"] == {"cpu": {"train.epochs": 3, "data.size": 8}, "hour": {}}


@pytest.mark.parametrize(
    ("base", "sentence"),
    [("own.yaml", "based on itself"), ("none.yaml", "cannot read the recipe"), (3, "base must be the path")],
)
def test_a_base_that_cannot_be(tmp_path, base, sentence):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"base": base}))
    with pytest.raises(UsageError, match=sentence):
        read_recipe_file(tmp_path / "own.yaml")
