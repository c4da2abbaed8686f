"""Handles that call replicas of a rig, on the test's own loop."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from tests.integration.rig import DEPLOYMENT, FakeClient, Node, Rig

from remora.handle import DeploymentHandle, forget_routers
from remora.router import process as routing


async def handle_to(rig: Rig, *nodes: Node, **fields: Any) -> DeploymentHandle[Any]:
    """A handle to the deployment that these replicas are of."""
    forget_routers()
    client = FakeClient(rig)
    client._routers[DEPLOYMENT] = await rig.routed(*nodes, **fields)
    routing.adopt_client(cast(Any, client))
    handle: DeploymentHandle[Any] = DeploymentHandle(DEPLOYMENT.name, DEPLOYMENT.app_name)
    handle._init()
    return handle


async def served(rig: Rig, code: Any, *args: Any, max_ongoing: int = 5) -> tuple[Node, Any]:
    """A replica and a handle to it."""
    node = await rig.node(code, *args, max_ongoing=max_ongoing)
    return node, await handle_to(rig, node)


async def turns(count: int = 20) -> None:
    """Let what is under way go on."""
    for _ in range(count):
        await asyncio.sleep(0)
