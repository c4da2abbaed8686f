"""The nodes of a cluster, looked at twice a second: who came, who drains, who is gone.

A node takes processes once its agent has been up: that shows that it is fit. Until then, and when it
refuses a process later, it is told of with the reason. Whether agent and proxies stay is another
question (`staff.py`).

Concurrency: one event loop; what blocks on Ray's head is handed to `ask`, or runs in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from remora.engine.base import (
    EngineEvent,
    Node,
    NodeDraining,
    NodeJoined,
    NodeLost,
    NodeRefused,
)
from remora.engine.ray import cluster as rays
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.head import Ask, SeeTo
from remora.engine.ray.patience import wait_for_node
from remora.engine.ray.refusals import TRY_NODE_AGAIN_S, Refusals, reason_of_error
from remora.engine.ray.setup import InstanceSetup, find_staff, staff_key
from remora.engine.ray.staff import Staffs
from remora.engine.ray.staffing import Staff
from remora.types import NodeID, Seconds

_log = logging.getLogger("remora.engine")

_LOOK_EVERY_S: Seconds = 0.5
#: What is told of a node whose first agent is on its way.
JOINING = "its agent is being started"
_UNFIT = "takes no processes"
_FIT_AGAIN = "takes processes now"


class NodeWatch:
    """The nodes as one controller knows them.

    Attributes:
        nodes: shown to be fit once, by id.
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
        occupied: Callable[[], Collection[str]],
        own_id: str = "",
    ) -> None:
        """Make it; `begin` tells of the nodes that are ready, `watch` of what changes.

        Args:
            cluster: of the instance.
            setup: of the instance.
            tell: takes the events.
            ask: for what blocks.
            see_to: for what blocks and must be done.
            spawn: begins a task with a name.
            occupied: says on which nodes processes are, or are about to be.
            own_id: the node of this process.
        """
        self._own_id = own_id
        self.nodes: dict[str, RayNode] = {}
        self._cluster = cluster
        self._setup = setup
        self._tell = tell
        self._ask = ask
        self._see_to = see_to
        self._spawn = spawn
        self._occupied = occupied
        self._staffs = Staffs(cluster, setup, tell=tell, ask=ask, see_to=see_to, spawn=spawn)
        self._draining: set[str] = set()
        #: Nodes whose first agent is being started, or could not be.
        self._joining: set[str] = set()
        #: Nodes that were fit, and have refused a process since.
        self._distrusted: set[str] = set()
        self._refusals = Refusals()
        self._alive: dict[str, RayNode] = {}

    @property
    def fit(self) -> dict[str, RayNode]:
        """The nodes that take new processes, by id."""
        return {
            node_id: node
            for node_id, node in self.nodes.items()
            if node_id not in self._distrusted and node_id not in self._draining
        }

    @property
    def unfit(self) -> list[str]:
        """The other nodes of the cluster, as far as they are known: nothing is to lie there."""
        return sorted((self._alive.keys() - self.nodes.keys()) | self._distrusted)

    def choose(self) -> str:
        """Choose the node of a process for which nobody has; empty: none takes any.

        The controller's own, if it can be: it is never one that is there for a while only.
        """
        fit, own = self.fit, self._own_id
        return own if own in fit else min(fit, default="")

    async def begin(self) -> None:
        """Tell of the nodes that take processes; forget those that went while nobody looked."""
        known = await self._ask(self._ids, "staff/") | await self._ask(self._ids, "node/")
        alive = await self._ask(rays.nodes)
        self._alive = {node.node_id: node for node in alive}
        for node in alive:
            if node.node_id in known:
                self._join(node, await self._ask(find_staff, self._cluster, node.node_id))
        for node_id in known - self._alive.keys():
            self._spawn(self._forget_node(node_id), f"the end of {node_id[:12]}")
        self._compare(self._alive)

    def _ids(self, prefix: str) -> set[str]:
        return {key.removeprefix(prefix) for key in self._cluster.keys(prefix)}

    async def watch(self) -> None:
        """Look for ever; return when the program has ended that the instance belongs to."""
        job = self._setup.bound_job
        while True:
            try:
                read_at = time.time()
                records = await self._ask(self._ids, "node/")
                nodes = {node.node_id: node for node in await self._ask(rays.nodes)}
                is_over = bool(job) and await self._ask(rays.is_over, job)
            # Border: Ray's client raises what it likes when its head is away.
            except Exception as error:  # noqa: BLE001
                _log.warning("Ray's head does not say which nodes there are: %r", error)
                await asyncio.sleep(TRY_NODE_AGAIN_S)
                continue
            if is_over:
                return
            self.look(nodes, records, read_at)
            await asyncio.sleep(_LOOK_EVERY_S)

    def look(self, nodes: dict[str, RayNode], records: Collection[str], read_at: Seconds) -> None:
        """Act on what there is.

        Args:
            nodes: that live, by id.
            records: nodes with an agent that is up.
            read_at: when these were read, Unix time.
        """
        self._compare(nodes)
        occupied = self._occupied()
        for node_id, node in self.nodes.items():
            record_at = read_at if node_id in records else None
            self._staffs.review(node, is_occupied=node_id in occupied, record_at=record_at)

    def expect(self, node_id: str) -> None:
        """A process is about to be started on a node: see that agent and proxies are there."""
        if (node := self.nodes.get(node_id)) is not None:
            self._staffs.review(node, is_occupied=True)

    def _compare(self, nodes: dict[str, RayNode]) -> None:
        gone = (self._alive.keys() | self.nodes.keys()) - nodes.keys()
        self._alive = nodes
        for node_id in gone:
            if self.nodes.pop(node_id, None) is not None:
                self._staffs.forget(node_id)
            self._draining.discard(node_id)
            self._distrusted.discard(node_id)
            self._refusals.forget(node_id)
            self._tell(NodeLost(NodeID(node_id)))
            self._spawn(self._forget_node(node_id), f"the end of {node_id[:12]}")
        for node in nodes.values():
            if node.draining:
                if node.node_id in self.nodes and node.node_id not in self._draining:
                    self._draining.add(node.node_id)
                    self._tell(NodeDraining(NodeID(node.node_id)))
            elif node.node_id not in self.nodes and node.node_id not in self._joining:
                self._joining.add(node.node_id)
                if not self._refusals.is_noted(node.node_id, _UNFIT):
                    self._tell(NodeRefused(_told(node), JOINING, is_joining=True))
                self._spawn(self._start(node), f"the first agent of {node.node_id[:12]}")

    def _join(self, node: RayNode, staff: Staff | None = None) -> None:
        self.nodes[node.node_id] = node
        self._tell(NodeJoined(_told(node)))
        if node.draining:
            self._draining.add(node.node_id)
            self._tell(NodeDraining(NodeID(node.node_id)))
        self._staffs.take(node, staff)

    async def _start(self, node: RayNode) -> None:
        """See that an agent can be up on a node that is new, then tell that it takes processes."""
        try:
            # Not in the one thread: a node that is slow to start must not hold up the others.
            await wait_for_node(fleet.ensure_agent, self._cluster, node.node_id)
            if node.node_id in self._alive:
                self._refusals.clear(node.node_id, _UNFIT, _FIT_AGAIN)
                self._join(node)
        # Border: whatever it is, the node is tried again, and people read why.
        except Exception as error:  # noqa: BLE001
            if node.node_id in self._alive:
                await self._refuse(node, reason_of_error(error))
        finally:
            self._joining.discard(node.node_id)

    async def _refuse(self, node: RayNode, reason: str) -> None:
        """Say that a node takes no processes, and wait until it may be tried again."""
        pause_s = self._refusals.note(node.node_id, _UNFIT, reason)
        self._tell(NodeRefused(_told(node), reason))
        await self._staffs.wait_after_failure(node.node_id, pause_s)

    def trouble(self, node_id: str) -> str:
        """What a node lacks that takes processes, for people; empty: nothing."""
        return self._staffs.trouble(node_id)

    def distrust(self, node_id: str, reason: str) -> None:
        """A process could not start on a node that was fit: none is sent there for a while."""
        node = self.nodes.get(node_id)
        if node is None or node_id in self._distrusted:
            return
        self._distrusted.add(node_id)
        self._spawn(self._trust_later(node, reason), f"the pause of {node_id[:12]}")

    async def _trust_later(self, node: RayNode, reason: str) -> None:
        await self._refuse(node, reason)
        # Whether it is fit again the next process shows.
        if node.node_id in self._distrusted:
            self._distrusted.discard(node.node_id)
            self._tell(NodeJoined(_told(node)))
            if node.node_id in self._draining:
                self._tell(NodeDraining(NodeID(node.node_id)))

    def trust(self, node_id: str) -> None:
        """A process is up on a node: it is fit."""
        if node_id not in self._distrusted:
            self._refusals.clear(node_id, _UNFIT, _FIT_AGAIN)

    async def _forget_node(self, node_id: str) -> None:
        await self._see_to(f"Forgetting node {node_id[:12]}", self._forget, node_id)

    def _forget(self, node_id: str) -> None:
        """Leave nothing of a node that is gone. Blocks; may be called again."""
        self._cluster.delete(staff_key(node_id))
        fleet.remove(self._cluster, node_id)


def _told(node: RayNode) -> Node:
    """Say what a node offers."""
    return Node(
        NodeID(node.node_id),
        dict(node.resources),
        labels=dict(node.labels),
        host=node.host,
        role="head" if node.is_head else "",
    )
