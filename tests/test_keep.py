"""Keep rules: which layers stay real."""

from __future__ import annotations

import pytest
from torch import nn

from frostbit import keep
from frostbit.errors import UsageError


def layers() -> list[tuple[str, nn.Module]]:
    """Return a ResNet's weight layers in order of execution."""
    return [
        ("stem", nn.Conv2d(3, 4, 3)),
        ("block1.conv1", nn.Conv2d(4, 4, 3)),
        ("block1.conv2", nn.Conv2d(4, 8, 3, stride=2, groups=4)),
        ("block1.downsample.0", nn.Conv2d(4, 8, 1, stride=2)),
        ("block2.conv1", nn.Conv2d(8, 8, 1, groups=2)),
        ("block2.shortcut", nn.Conv2d(8, 8, 1)),
        ("fc", nn.Linear(8, 2)),
    ]


SHORTCUTS = {"block1.downsample.0", "block2.shortcut"}
EVERYTHING = {name for name, _ in layers()}
RULES = [
    (None, set()),
    ("none", set()),
    (keep.none, set()),
    ([], set()),
    (keep.downsample, SHORTCUTS),
    ("first_last", {"stem", "fc"}),
    (keep.first_last, {"stem", "fc"}),
    ("first_last_downsample", {"stem", "fc"} | SHORTCUTS),
    (keep.first_last_downsample, {"stem", "fc"} | SHORTCUTS),
    ("first_last_depthwise", {"stem", "block1.conv2", "fc"} | SHORTCUTS),
    (keep.depthwise, {"block1.conv2"}),
    (keep.FirstLast(also=lambda module, name: "conv1" in name), {"stem", "fc", "block1.conv1", "block2.conv1"}),
    ("fc", {"fc"}),
    ("block1.*", {"block1.conv1", "block1.conv2", "block1.downsample.0"}),
    (["stem", "*.conv2"], {"stem", "block1.conv2"}),
    ({"stem"}, {"stem"}),
    ("*", EVERYTHING),
    (lambda module, name: isinstance(module, nn.Linear), {"fc"}),
]


@pytest.mark.parametrize(("spec", "kept"), RULES, ids=range(len(RULES)))
def test_rules_names_and_globs(spec: keep.Spec, kept: set[str]) -> None:
    rule = keep.resolve(spec, layers())
    assert {name for name, module in layers() if rule(module, name)} == kept


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("block1.conv3", "keep: 'block1.conv3' matches no convertible layer, did you mean 'block1.conv"),
        (["stem", "head"], "keep: 'head' matches no"),
        ("first_lst", "did you mean 'first_last'"),
        ("block9.*", "matches no convertible layer"),
        (5, "keep must be a rule .* found 5"),
        ([3], r"keep must be a rule .* found \[3\]"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(spec: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        keep.resolve(spec, layers())


def test_the_first_and_last_are_those_of_the_order_of_execution() -> None:
    rule = keep.resolve("first_last", list(reversed(layers())))
    assert rule(nn.Linear(1, 1), "fc")
    single = keep.resolve("first_last", layers()[:1])
    assert single(nn.Linear(1, 1), "stem")
    assert not keep.resolve("first_last", [])(nn.Linear(1, 1), "stem")


def test_only_pointwise_convolutions_count_as_shortcuts() -> None:
    assert keep.downsample(nn.Conv1d(2, 2, 1, stride=2), "x")
    assert keep.downsample(nn.Conv3d(2, 2, 1), "a.skip.0")
    assert not keep.downsample(nn.Conv2d(2, 2, (1, 3), stride=2), "downsample.0")
    assert not keep.downsample(nn.Conv2d(2, 2, 1), "conv3")
    assert not keep.downsample(nn.Linear(2, 2), "downsample")


def test_embeddings_count_as_first():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    both = nn.Sequential(nn.Embedding(9, 4), model)
    ordered = [(name, module) for name, module in both.named_modules() if not list(module.children())]
    rule = keep.first_last.for_layers(ordered)
    assert [name for name, module in ordered if rule(module, name)] == ["0", "1.0", "1.3"]
