"""What an engine says: heard, and put into the controller's words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from remora.core import events as ev
from remora.engine import base
from remora.errors import EngineError
from remora.types import ReplicaID, Seconds, is_replica

_log = logging.getLogger("remora.controller")
#: An engine begins with its nodes; one that has none yet says nothing.
FIRST_EVENT_S: Seconds = 1.0


def from_engine(event: base.EngineEvent) -> ev.AnyEvent | None:
    """Say in the controller's words what the engine said; None: it concerns no replica."""
    match event:
        case base.ProcessStarted(process_id=process_id) if is_replica(process_id):
            return ev.ProcessStarted(
                replica_id=ReplicaID(process_id),
                address=event.address,
                pid=event.pid,
                node_id=event.node_id,
            )
        case base.ProcessPreparing(process_id=process_id) if is_replica(process_id):
            return ev.ProcessPreparing(replica_id=ReplicaID(process_id), what=event.what)
        case base.ProcessExited(process_id=process_id) if is_replica(process_id):
            return ev.ProcessExited(
                replica_id=ReplicaID(process_id),
                reason=event.reason,
                expected=event.expected,
                refused=event.refused,
            )
        case base.NodeJoined(node=node):
            return ev.NodeJoined(
                node_id=node.node_id,
                resources=dict(node.resources),
                labels=dict(node.labels),
                host=node.host,
                role=node.role,
            )
        case base.NodeRefused(node=node):
            return ev.NodeRefused(
                node_id=node.node_id,
                reason=event.reason,
                is_joining=event.is_joining,
                resources=dict(node.resources),
                labels=dict(node.labels),
                host=node.host,
                role=node.role,
            )
        case base.NodeDraining(node_id=node_id):
            return ev.NodeDraining(node_id=node_id)
        case base.NodeLost(node_id=node_id):
            return ev.NodeLost(node_id=node_id)
        case base.DoorsClosing(node_id=node_id):
            return ev.DoorsChanged(node_id=node_id, closing=True)
        case base.DoorsOpened(node_id=node_id):
            return ev.DoorsChanged(node_id=node_id, closing=False)
    return None


async def is_first_controller(engine: base.Engine) -> bool:
    """Tell whether no controller ran before this one in this instance."""
    processes = await engine.system_processes()
    return any(p.name == "controller" and p.restarts == 0 for p in processes)


class EngineFeed:
    """Hands on what a connected engine says, for as long as it does."""

    def __init__(
        self,
        engine: base.Engine,
        take: Callable[[base.EngineEvent], None],
        post: Callable[[ev.AnyEvent], None],
        on_end: Callable[[], None],
    ) -> None:
        """Begin.

        Args:
            engine: connected.
            take: gets each event.
            post: gets what the controller learns beside that.
            on_end: called when the engine says no more.
        """
        self._engine = engine
        self._take = take
        self._post = post
        self._on_end = on_end
        self._heard = asyncio.Event()
        self._pump = asyncio.create_task(self._follow(), name="engine events")
        self._inventory = asyncio.create_task(self._take_inventory(), name="inventory")

    @property
    def is_over(self) -> bool:
        """Whether the engine says no more."""
        return self._pump.done()

    def raise_failure(self) -> None:
        """Raise what ended it, if anything did."""
        self._pump.result()

    async def wait_first(self) -> None:
        """Wait for what an engine says first: requests are weighed against what there is."""
        try:
            async with asyncio.timeout(FIRST_EVENT_S):
                await self._heard.wait()
        except TimeoutError:
            _log.warning("The engine names no node; whatever is deployed waits for one.")

    async def close(self) -> None:
        """Listen no more."""
        tasks = (self._pump, self._inventory)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _follow(self) -> None:
        async for event in self._engine.events():
            self._heard.set()
            self._take(event)
        self._on_end()

    async def _take_inventory(self) -> None:
        """The engine answers in order: what was alive is reported before this answer."""
        try:
            await self._engine.system_processes()
        except EngineError as error:
            _log.warning("The engine gave no list of its processes: %s", error)
        else:
            self._post(ev.InventoryComplete())
