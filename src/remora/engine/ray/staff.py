"""The agents and proxies of the nodes, as one controller has them come and leave.

`staffing` decides; here it is done, and kept in Ray's store for a later controller.

Concurrency: one event loop; what blocks on Ray's head runs in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from remora.engine.base import DoorsClosing, DoorsOpened, EngineEvent
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster, RayNode
from remora.engine.ray.end import ask_agent
from remora.engine.ray.head import Ask, SeeTo
from remora.engine.ray.patience import wait_for_node
from remora.engine.ray.refusals import MOST_PAUSE_S, TRY_NODE_AGAIN_S, Refusals, reason_of_error
from remora.engine.ray.setup import InstanceSetup, NodeRecord, failure_key, find_node, staff_key
from remora.engine.ray.staffing import (
    IDLE,
    Busy,
    Order,
    Phase,
    Staff,
    came,
    decide,
    refused,
    stayed_away,
)
from remora.types import NodeID, Seconds

_log = logging.getLogger("remora.engine")

#: Between two questions to an agent that nobody may need.
_ASK_EVERY_S: Seconds = 1.0
_NO_AGENT, _NO_PROXIES = "has no agent", "has not all its proxies"
#: Proxies that leave have nothing under way. What came in the last moment has so long to end.
_LAST_REQUESTS_S: Seconds = 60.0


class Staffs:
    """The agents and proxies of all nodes that take processes."""

    def __init__(
        self,
        cluster: Cluster,
        setup: InstanceSetup,
        *,
        tell: Callable[[EngineEvent], None],
        ask: Ask,
        see_to: SeeTo,
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
        clock: Callable[[], Seconds] = time.time,
    ) -> None:
        """Make it; it knows of no node.

        Args:
            cluster: of the instance.
            setup: of the instance.
            tell: takes the events.
            ask: for what blocks.
            see_to: for what blocks and must be done.
            spawn: begins a task with a name.
            clock: Unix time.
        """
        self._cluster = cluster
        self._setup = setup
        self._tell = tell
        self._ask = ask
        self._see_to = see_to
        self._spawn = spawn
        self._clock = clock
        self._refusals = Refusals()
        self._staffs: dict[str, Staff] = {}
        #: What the agents said last that nobody may need.
        self._busy: dict[str, Busy] = {}
        self._asking: set[str] = set()
        #: Nodes whose proxies are made, and those where that is under way.
        self._complete: set[str] = set()
        self._completing: set[str] = set()

    def phase(self, node_id: str) -> Phase:
        """How far they are on a node."""
        staff = self._staffs.get(node_id)
        return Phase.AWAY if staff is None else staff.phase

    def trouble(self, node_id: str) -> str:
        """What a node lacks beside processes, for people; empty: nothing."""
        return self._refusals.told(node_id)

    def take(self, node: RayNode, staff: Staff | None = None) -> None:
        """Take charge of a node.

        Args:
            node: it takes processes.
            staff: as an earlier controller left it; None: the agent has just come up.
        """
        if staff is None:
            self._change(node.node_id, Staff(Phase.HERE, self._clock()))
            return
        self._staffs[node.node_id] = staff
        if staff.phase in (Phase.CLOSING, Phase.LEAVING):
            self._tell(DoorsClosing(NodeID(node.node_id)))
        if staff.phase is Phase.LEAVING:
            self._spawn(self._leave(node.node_id), f"the leaving from {node.node_id[:12]}")

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        self._staffs.pop(node_id, None)
        self._busy.pop(node_id, None)
        self._complete.discard(node_id)
        self._refusals.forget(node_id)

    def review(self, node: RayNode, *, is_occupied: bool, record_at: Seconds | None = None) -> None:
        """Decide for a node, and begin to do it.

        Args:
            node: of which this has charge.
            is_occupied: processes of the instance are there, or on their way.
            record_at: when the record of an agent there was read; None: there was none, or nobody
                has looked.
        """
        node_id, now = node.node_id, self._clock()
        staff = known = self._staffs[node_id]
        if record_at is not None and (staff.phase is not Phase.AWAY or record_at > staff.since_s):
            # Else it is that of the one that has left since.
            staff = came(staff, now)
        is_needed = is_occupied or node.is_head or node_id == self._setup.node_id
        if is_needed:
            self._busy.pop(node_id, None)
        elif staff.phase in (Phase.HERE, Phase.CLOSING) and node_id not in self._asking:
            self._asking.add(node_id)
            self._spawn(self._ask_busy(node_id), f"the question to {node_id[:12]}")
        staff, order = decide(
            staff,
            now,
            is_needed=is_needed,
            busy=self._busy.get(node_id),
            min_closing_s=self._setup.min_closing_s,
        )
        if staff != known:
            self._change(node_id, staff)
        if order is not None:
            self._do(order, node)
        self._complete_proxies(node, is_needed=is_needed)

    def _change(self, node_id: str, staff: Staff) -> None:
        self._staffs[node_id] = staff
        # On its way the agent is not there; and before it is asked to leave, that is written first.
        if staff.phase not in (Phase.COMING, Phase.LEAVING):
            what = f"Saving {staff_key(node_id)}"
            self._spawn(self._see_to(what, self._save, node_id), what)

    def _save(self, node_id: str) -> None:
        """Write how far they are now, which may be further than when this was begun."""
        staff = self._staffs.get(node_id)
        if staff is not None and staff.phase is not Phase.COMING:
            self._cluster.put(staff_key(node_id), msgspec.msgpack.encode(staff))

    def _do(self, order: Order, node: RayNode) -> None:
        node_id, short = node.node_id, node.node_id[:12]
        match order:
            case Order.CLOSE:
                _log.info("Node %s has no replicas: its front doors close.", short)
                self._tell(DoorsClosing(NodeID(node_id)))
            case Order.OPEN:
                self._tell(DoorsOpened(NodeID(node_id)))
            case Order.START:
                self._tell(DoorsOpened(NodeID(node_id)))
                self._spawn(self._start(node), f"the agent of {short}")
            case Order.LEAVE:
                self._spawn(self._leave(node_id), f"the leaving from {short}")

    def _complete_proxies(self, node: RayNode, *, is_needed: bool) -> None:
        is_here = self.phase(node.node_id) is Phase.HERE
        if is_here and is_needed and node.node_id not in self._complete | self._completing:
            self._completing.add(node.node_id)
            self._spawn(self._make_proxies(node), f"proxies of {node.node_id[:12]}")

    # ------------------------------------------------------------------------------------- come

    async def _start(self, node: RayNode) -> None:
        node_id = node.node_id
        try:
            # Not in the one thread: a node that is slow to start must not hold up the others.
            await wait_for_node(fleet.ensure_agent, self._cluster, node_id)
        # Border: whatever it is, the node must not stay in this phase for ever.
        except Exception as error:  # noqa: BLE001
            await self._wait_after(node_id, _NO_AGENT, error)
            if (staff := self._staffs.get(node_id)) is not None:
                self._change(node_id, stayed_away(staff, self._clock()))
        else:
            self._refusals.clear(node_id, _NO_AGENT, "has its agent again")
            if (staff := self._staffs.get(node_id)) is not None:
                self._change(node_id, came(staff, self._clock()))
                self._complete_proxies(node, is_needed=True)

    async def _make_proxies(self, node: RayNode) -> None:
        try:
            await wait_for_node(fleet.ensure_proxies, self._cluster, self._setup, node)
            self._refusals.clear(node.node_id, _NO_PROXIES, "has all its proxies")
            if self.phase(node.node_id) is Phase.HERE:
                self._complete.add(node.node_id)
        # Border: as above.
        except Exception as error:  # noqa: BLE001
            # To look again costs little; and a front door without a proxy keeps people waiting.
            await self._wait_after(node.node_id, _NO_PROXIES, error, TRY_NODE_AGAIN_S)
        finally:
            self._completing.discard(node.node_id)

    async def _wait_after(
        self, node_id: str, lacks: str, error: Exception, most_s: Seconds = MOST_PAUSE_S
    ) -> None:
        """Say what a node lacks, if that is new, and wait until it may be tried again."""
        pause_s = self._refusals.note(node_id, lacks, reason_of_error(error))
        await self.wait_after_failure(node_id, min(pause_s, most_s))

    async def wait_after_failure(self, node_id: str, pause_s: Seconds) -> None:
        """Wait until a node may be tried again, and forget then why its agent did not come."""
        key = failure_key(fleet.agent_name(node_id))
        # Others may still wait for this agent, and read there why it does not come.
        await asyncio.sleep(pause_s)
        await self._see_to(f"Forgetting {key}", self._cluster.delete, key)

    # ------------------------------------------------------------------------------------ leave

    async def _ask_busy(self, node_id: str) -> None:
        """Learn who needs the agent of a node."""
        try:
            record = await self._ask(find_node, self._cluster, node_id)
            # Nobody needs an agent that has left.
            self._busy[node_id] = IDLE if record is None else await self._ask_agent(record, "busy")
        # Border: an agent that is not asked again stays for ever.
        except Exception as error:  # noqa: BLE001
            self._busy.pop(node_id, None)
            _log.debug("Node %s does not say who needs it: %r", node_id[:12], error)
        await asyncio.sleep(_ASK_EVERY_S)
        self._asking.discard(node_id)

    async def _ask_agent(self, record: NodeRecord, method: str) -> Busy:
        return await ask_agent(record, self._setup.token, method, reply=Busy)

    async def _leave(self, node_id: str) -> None:
        """Have agent and proxies leave; a later controller goes on where this one is killed."""
        self._busy.pop(node_id, None)
        try:
            # In the thread of all that is saved, lest something older is written after it.
            await self._ask(self._save, node_id)
            record = await self._ask(find_node, self._cluster, node_id)
            # Without a record it has agreed already.
            if record is not None and (busy := await self._ask_agent(record, "depart")) != IDLE:
                _log.debug("Node %s is needed after all: %s", node_id[:12], busy)
                self._return(node_id)
                return
        # Border: whatever it is, the node must not stay in this phase for ever.
        except Exception as error:  # noqa: BLE001
            _log.warning("The agent of node %s does not leave: %r", node_id[:12], error)
            # It may have agreed, and only its answer was lost: then its proxies end.
            self._complete.discard(node_id)
            self._return(node_id)
            return
        await self._end(node_id)

    def _return(self, node_id: str) -> None:
        if (staff := self._staffs.get(node_id)) is not None:
            self._change(node_id, refused(staff))

    async def _end(self, node_id: str) -> None:
        """Leave nothing of agent and proxies that have been told to end."""
        while True:
            try:
                await wait_for_node(fleet.remove, self._cluster, node_id, _LAST_REQUESTS_S)
                break
            # Border: as above.
            except Exception as error:  # noqa: BLE001
                _log.warning("What node %s leaves behind is not removed: %s", node_id[:12], error)
                await asyncio.sleep(TRY_NODE_AGAIN_S)
        self._complete.discard(node_id)
        if (staff := self._staffs.get(node_id)) is not None:
            _log.info("Node %s has neither agent nor proxies any more.", node_id[:12])
            self._change(node_id, stayed_away(staff, self._clock()))
