"""Names: filed once, found again, and answered with the nearest valid one."""

from __future__ import annotations

import pytest

from frostbit.errors import RunError, UsageError
from frostbit.registry import Registry, check_choice, nearest


def test_a_wrong_name_gets_the_nearest_or_all() -> None:
    assert nearest("cubik", ["linear", "cubic"]) == "did you mean 'cubic'?"
    assert nearest("zzz", ["linear", "cubic"]) == "known: cubic, linear"


def test_a_choice_is_returned_or_refused() -> None:
    assert check_choice("order", "forward", ["forward", "reverse"]) == "forward"
    with pytest.raises(UsageError, match=r"unknown order 'foward': did you mean 'forward'\?"):
        check_choice("order", "foward", iter(["forward", "reverse"]))
    for wrong in (None, 3, ["forward"]):
        with pytest.raises(UsageError, match="unknown order"):
            check_choice("order", wrong, ["forward", "reverse"])


def test_a_registry_files_and_finds() -> None:
    registry: Registry[list[int]] = Registry("list")

    @registry.register("pair")
    def pair(x: int) -> list[int]:
        return [x, x]

    registry.register("single")(lambda x: [x])
    assert pair(3) == [3, 3]  # the decorator returns the factory itself
    assert registry.get("pair")(2) == [2, 2]
    assert registry.list() == ["pair", "single"]
    assert registry.list("p*") == ["pair"]
    assert "pair" in registry
    assert "pear" not in registry
    assert list(registry) == ["pair", "single"]
    with pytest.raises(UsageError, match="unknown list 'pear': did you mean 'pair'"):
        registry.get("pear")
    with pytest.raises(ValueError, match="list 'pair' is registered already"):
        registry.register("pair")(pair)


def test_the_two_kinds_of_failure_are_pythons_own_too() -> None:
    assert issubclass(UsageError, ValueError)
    assert issubclass(RunError, RuntimeError)
