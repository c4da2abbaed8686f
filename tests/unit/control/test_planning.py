"""What a plan finds out about the replicas that run."""

from __future__ import annotations

import asyncio
import threading

from tests.unit.control.rig import app, deployment, rig

from remora.control.planning import replica_bytes
from remora.core.state import ControllerState
from remora.engine.base import Node
from remora.testing import FakeEngine
from remora.testing.virtual_time import run
from remora.types import LOCAL_NODE, DeploymentID, NodeID


async def on_two_nodes() -> ControllerState:
    nodes = [Node(LOCAL_NODE, {"CPU": 4.0}), Node(NodeID("other"), {"CPU": 4.0})]
    async with rig(FakeEngine(nodes)) as r:
        await r.deploy(app("default", deployment(resources={"CPU": 1.0}, num_replicas=8)))
        await r.until_settled()
        return r.controller.state


def test_memory_is_measured_on_this_node_only_and_beside_the_loop() -> None:
    state = run(on_two_nodes())
    replicas = state.applications["default"].deployments["Model"].replicas.values()
    here = {each.pid for each in replicas if each.node_id == LOCAL_NODE}
    assert len(here) == 4
    asked: list[int] = []

    def measure(pid: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        asked.append(pid)
        return 1000 * len(asked)

    found = asyncio.run(replica_bytes(state, LOCAL_NODE, measure))
    assert found == {DeploymentID("Model"): 1500}
    assert set(asked) <= here
    assert asyncio.run(replica_bytes(state, NodeID("third"), measure)) == {}
    assert len(asked) == 2
