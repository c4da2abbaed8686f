"""The nodes of a cluster, looked at twice a second: who came, who drains, who is gone.

A node takes processes once its agent is up; it is told of then. Its proxies follow by themselves, and
are tried again until they are made.

Concurrency: one event loop; what blocks on Ray's head is handed to `ask`, or runs in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from ray.exceptions import RayError

from remora.engine.base import EngineEvent, Node, NodeDraining, NodeJoined, NodeLost
from remora.engine.ray import cluster as rays
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.setup import InstanceSetup, NodeRecord, failure_key
from remora.errors import RemoraError
from remora.types import NodeID, Seconds

_log = logging.getLogger("remora.engine")
T = TypeVar("T")

_LOOK_EVERY_S: Seconds = 0.5
#: A node whose agent could not be started is tried again after this long.
_TRY_NODE_AGAIN_S: Seconds = 5.0


class Ask(Protocol):
    """Does what blocks on Ray's head, one after the other."""

    def __call__(self, call: Callable[..., T], /, *args: Any) -> Awaitable[T]:
        """Do it in another thread."""


class SeeTo(Protocol):
    """Does what must be done on Ray's head, now or later."""

    def __call__(self, what: str, call: Callable[..., None], /, *args: Any) -> Awaitable[None]:
        """Try it until it works; `what` is for people."""


class NodeWatch:
    """The nodes as one controller knows them.

    Attributes:
        nodes: told as joined, by id.
    """

    def __init__(
        self,
        cluster: Cluster,
        setup: InstanceSetup,
        *,
        tell: Callable[[EngineEvent], None],
        ask: Ask,
        see_to: SeeTo,
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        """Make it; `begin` tells of the nodes that are ready, `watch` of what changes.

        Args:
            cluster: of the instance.
            setup: of the instance.
            tell: takes the events.
            ask: for what blocks.
            see_to: for what blocks and must be done.
            spawn: begins a task with a name.
        """
        self.nodes: dict[str, RayNode] = {}
        self._cluster = cluster
        self._setup = setup
        self._tell = tell
        self._ask = ask
        self._see_to = see_to
        self._spawn = spawn
        self._draining: set[str] = set()
        #: Nodes whose agent and proxies are being started, or could not be.
        self._joining: set[str] = set()
        #: Nodes whose proxies are made.
        self._complete: set[str] = set()

    async def begin(self) -> None:
        """Tell of the nodes whose agents are there; forget those that went while nobody looked."""
        ready = {key.partition("/")[2] for key in await self._ask(self._cluster.keys, "node/")}
        alive = await self._ask(rays.nodes)
        for node in alive:
            if node.node_id in ready:
                self._join(node)
                self._begin_to_complete(node)
        for node_id in ready - {node.node_id for node in alive}:
            self._spawn(self._forget_node(node_id), f"the end of {node_id[:12]}")

    async def watch(self) -> None:
        """Look for ever; return when the program has ended that the instance belongs to."""
        job = self._setup.bound_job
        while True:
            try:
                nodes = {node.node_id: node for node in await self._ask(rays.nodes)}
                is_over = bool(job) and await self._ask(rays.is_over, job)
            # Border: Ray's client raises what it likes when its head is away.
            except Exception as error:  # noqa: BLE001
                _log.warning("Ray's head does not say which nodes there are: %r", error)
                await asyncio.sleep(_TRY_NODE_AGAIN_S)
                continue
            if is_over:
                return
            self._compare(nodes)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _compare(self, nodes: dict[str, RayNode]) -> None:
        for node_id in self.nodes.keys() - nodes.keys():
            del self.nodes[node_id]
            self._draining.discard(node_id)
            self._complete.discard(node_id)
            self._tell(NodeLost(NodeID(node_id)))
            self._spawn(self._forget_node(node_id), f"the end of {node_id[:12]}")
        for node in nodes.values():
            if node.draining:
                if node.node_id in self.nodes and node.node_id not in self._draining:
                    self._draining.add(node.node_id)
                    self._tell(NodeDraining(NodeID(node.node_id)))
            elif node.node_id not in self.nodes or node.node_id not in self._complete:
                self._begin_to_complete(node)

    def _join(self, node: RayNode) -> None:
        self.nodes[node.node_id] = node
        node_id = NodeID(node.node_id)
        self._tell(NodeJoined(Node(node_id, dict(node.resources), labels=dict(node.labels))))
        if node.draining:
            self._draining.add(node.node_id)
            self._tell(NodeDraining(NodeID(node.node_id)))

    def _begin_to_complete(self, node: RayNode) -> None:
        if node.node_id not in self._joining:
            self._joining.add(node.node_id)
            self._spawn(self._complete_node(node), f"agent and proxies of {node.node_id[:12]}")

    async def _complete_node(self, node: RayNode) -> None:
        """See that a node has its agent and its proxies, then tell that it takes processes."""
        try:
            # Not in the one thread: a node that is slow to start must not hold up the others.
            await asyncio.to_thread(fleet.ensure_agent, self._cluster, node.node_id)
            if node.node_id not in self.nodes:
                self._join(node)
            await asyncio.to_thread(fleet.ensure_proxies, self._cluster, self._setup, node)
            self._complete.add(node.node_id)
        except (RemoraError, RayError) as error:
            lacks = (
                "has not all its proxies" if node.node_id in self.nodes else "takes no processes"
            )
            _log.warning("Node %s %s yet: %s", node.node_id[:12], lacks, error)
            key = failure_key(fleet.agent_name(node.node_id))
            await self._see_to(f"Forgetting {key}", self._cluster.delete, key)
            await asyncio.sleep(_TRY_NODE_AGAIN_S)
        finally:
            self._joining.discard(node.node_id)

    async def _forget_node(self, node_id: str) -> None:
        await self._see_to(f"Forgetting node {node_id[:12]}", self._forget, node_id)

    def _forget(self, node_id: str) -> None:
        """Leave nothing of a node that is gone. Blocks; may be called again."""
        self._cluster.delete(NodeRecord.key(node_id))
        mark = f"@{node_id[:12]}"
        for name in self._cluster.names():
            if name.endswith(mark):
                self._cluster.kill(name)
