# mypy: disable-error-code="assignment, no-redef"
"""The Ray engine keeps what every engine promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from ray.cluster_utils import Cluster as RayCluster
from tests.contract.test_engine_contract import *  # noqa: F403

from remora.config import HTTPOptions
from remora.engine.base import Engine
from remora.engine.ray import cluster as rays
from remora.engine.ray import engine as engine_module
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.engine import RayEngine
from remora.engine.ray.setup import InstanceSetup

NAMESPACE = "contract"


ENGINES = ("ray",)
# What only the embedded engine does by itself, Ray does in ways of its own: see docs/engines.md.
for _name, _test in list(globals().items()):
    if any(mark.name == "of_one_machine" for mark in getattr(_test, "pytestmark", ())):
        del globals()[_name]


@pytest.fixture
def many() -> int:
    """Few: each takes half a second of a processor to start."""
    return 2


@pytest.fixture
async def engine(
    cluster: RayCluster, remora_home: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    """An engine in this process, on the cluster that all tests share."""
    # On a busy machine a worker of Ray takes long, which is nobody's subject here.
    monkeypatch.setattr(engine_module, "_SLOW_S", 60.0)
    ours = Cluster(NAMESPACE)
    InstanceSetup(
        home=str(remora_home),
        node_id=rays.this_node(),
        token="secret",
        http=msgspec.to_builtins(HTTPOptions(host=None)),
    ).save(ours)
    fleet.ensure_agent(ours, rays.this_node())
    made = RayEngine(NAMESPACE)
    yield made
    await made.close()
    for name in ours.names():
        # The agent may serve the next test, too.
        if not name.startswith("agent@"):
            ours.kill(name)
    for key in (*ours.keys("store/"), *ours.keys("process/"), *ours.keys("ending")):
        ours.delete(key)
