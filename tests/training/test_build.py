"""Building: what a user got wrong is one sentence, what we got wrong is not blamed on the user."""

import pytest

from frostbit import UsageError
from frostbit.training import build as building

BAD = {
    "its value": ({"binarize.weight": {"name": "prox_linear", "rho": "much"}}, "quantizer 'prox_linear': "),
    "keep": ({"binarize.keep": ["fcc"]}, "did you mean 'fc'"),
    "model argument": ({"model.args": {"hiden": [8]}}, "did you mean 'hidden'"),
    "its type": ({"model.args": {"hidden": "wide"}}, "needs hidden to be a list of widths"),
    "twice": ({"model.args": {"num_classes": 10}}, "model 'mlp' cannot be made: .*num_classes"),
    "surrogate": ({"progression.ste": {"name": "ste_clp"}}, "did you mean 'ste_clip'"),
    "schedule": ({"progression.schedule": "cubik"}, "did you mean 'cubic'"),
    "order": ({"progression.order": ["layers.linear9"]}, "order names no unit 'layers.linear9'"),
    "batch": ({"train.batch": 4000}, "train.batch is 4000, but there are only 320 training samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_recipe_cannot_mean_is_one_sentence(case, tiny):
    settings, sentence = BAD[case]
    with pytest.raises(UsageError, match=sentence) as caught:
        building.build(tiny(**settings), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", ["load_data", "binarize_", "make_progression"])
def test_a_fault_of_ours_keeps_its_kind(step, tiny, monkeypatch):
    def broken(*_, **__):
        raise TypeError("unsupported operand")

    monkeypatch.setattr(building, step, broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        building.build(tiny(), 0)
