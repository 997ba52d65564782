import pytest

from frostbit.training.recipe import Recipe
from frostbit.training.resolve import resolve
from frostbit.training.settings import flatten

TINY = {
    "name": "tiny",
    "model": {"name": "mlp", "args": {"hidden": [24, 24, 24]}},
    "data": {"name": "digits", "limit_train": 320, "limit_test": 100},
    "train": {"epochs": 4, "batch": 64, "record_every": 2, "threads": 1, "accelerator": "cpu"},
    "binarize": {"min_binary_macs": 0.0},
    "progression": {"refresh": 4},
}


@pytest.fixture(autouse=True)
def threads(one_thread):
    """Every run here is compared bit for bit, or its parts share the cores."""


@pytest.fixture
def tiny():
    def make(method: str = "stompp", **settings: object) -> Recipe:
        return resolve(flatten(TINY), flatten({"method": method, **settings}))

    return make
