"""`get_replica_context` inside and outside a replica."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from remora.calls.lookup import handle_to_current_app
from remora.context import (
    ReplicaContext,
    ReplicaID,
    ReplicaRank,
    get_replica_context,
    set_replica_context,
)
from remora.errors import RayServeException
from remora.types import DeploymentID


@pytest.fixture(autouse=True)
def _outside() -> Iterator[None]:
    """No replica, whatever ran in this process before."""
    set_replica_context(None)
    yield
    set_replica_context(None)


@pytest.fixture
def context(_outside: None) -> ReplicaContext:
    made = ReplicaContext(
        ReplicaID("app/D#x1"), DeploymentID("D", "app"), rank=ReplicaRank(2, 0, 2)
    )
    set_replica_context(made)
    return made


def test_outside_a_replica_it_is_an_error() -> None:
    with pytest.raises(RayServeException):
        get_replica_context()


def test_says_where_we_are(context: ReplicaContext) -> None:
    found = get_replica_context()
    assert found is context
    assert (found.app_name, found.deployment, found.replica_tag) == ("app", "D", "x1")
    assert found.rank.rank == 2


def test_the_id_of_a_replica_knows_its_parts(context: ReplicaContext) -> None:
    found = pickle.loads(pickle.dumps(get_replica_context().replica_id))
    assert found == "app/D#x1"
    assert (found.unique_id, found.deployment_id) == ("x1", DeploymentID("D", "app"))
    assert type(found.to_full_id_str()) is str


def test_a_handle_without_application_means_the_current_one(context: ReplicaContext) -> None:
    assert handle_to_current_app("E", None).app_name == "app"
    assert handle_to_current_app("E", "other").app_name == "other"


def test_a_handle_without_application_needs_a_replica() -> None:
    with pytest.raises(RayServeException, match="app_name"):
        handle_to_current_app("E", None)
