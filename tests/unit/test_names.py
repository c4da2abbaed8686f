"""Names that are looked for at the top of the package, and found elsewhere."""

from __future__ import annotations

from importlib import import_module

import pytest

import remora


@pytest.mark.parametrize("name", sorted(remora._MODULES))
def test_modules_are_there_by_their_names_without_an_import(name: str) -> None:
    assert getattr(remora, name) is import_module(f"remora.{name}")
    assert name in dir(remora)


def test_everything_that_is_promised_at_the_top_is_there() -> None:
    assert [name for name in remora.__all__ if not hasattr(remora, name)] == []


@pytest.mark.parametrize("name", sorted(remora._ELSEWHERE))
def test_a_name_that_is_elsewhere_says_where(name: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(remora, name)
    module = str(caught.value).partition("from ")[2].partition(" ")[0]
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "config",
            "AggregationFunction DeploymentID GangPlacementStrategy GangRuntimeFailurePolicy",
        ),
        ("request_router", "ReplicaID ReplicaResult"),
    ],
)
def test_names_that_examples_import_are_there(module: str, names: str) -> None:
    found = import_module(f"remora.{module}")
    assert [name for name in names.split() if not hasattr(found, name)] == []
