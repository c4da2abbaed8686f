"""The REST API on Ray: what it does on one machine, in the actor that comes when it is first asked."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.instances import Instance
from tests.e2e.test_rest import (
    FindAdmin,
    client,
    test_a_config_is_put_served_and_deleted,
    test_it_comes_back_when_it_dies,
    test_the_client_of_ray_serves_users,
)

from remora.engine.ray.cluster import Cluster
from remora.engine.ray.sockets import is_default_admin, listen_admin

__all__ = [
    "client",
    "test_a_config_is_put_served_and_deleted",
    "test_it_comes_back_when_it_dies",
    "test_the_client_of_ray_serves_users",
]


@pytest.fixture
def shared(instance: Instance) -> Instance:
    return instance


@pytest.fixture
def served(instance: Instance) -> Instance:
    return instance


@pytest.fixture
def wanted() -> dict[str, Any]:
    """A config whose code is on the path of every node, as Ray's users have it."""
    app = {"name": "rest", "route_prefix": "/rest", "import_path": "rest_server:app"}
    return {"applications": [app]}


@pytest.fixture
def find_admin(instance: Instance) -> FindAdmin:
    def find() -> list[int]:
        actors = Cluster().actors().values()
        return [actor.pid for actor in actors if actor.name.startswith("admin@") and actor.pid]

    return find


def test_where_rays_dashboard_has_the_default_port_the_next_one_is_taken() -> None:
    # Whoever has it, this test among them: two never get the same.
    first, second = (listen_admin("127.0.0.1", 8265) for _ in range(2))
    with first, second:
        ports = [each.getsockname()[1] for each in (first, second)]
    assert len(set(ports)) == 2
    assert min(ports) >= 8265
    assert is_default_admin("127.0.0.1", 8265)
    assert not is_default_admin("127.0.0.1", 8266)
