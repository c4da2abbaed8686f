"""What is under way with each replica, in two lanes.

Engine commands keep their order. Of calls over the replica's connection there is one at a time, and
a later one takes the place of an earlier one: a drain does not wait for a health check that hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from remora.control.replica_control import Connect, ReplicaControl
from remora.errors import ConnectionLostError
from remora.types import ReplicaID


@dataclass
class _Lane:
    """What is under way with one replica."""

    link: ReplicaControl | None = None
    #: Held while the link is opened, or two calls would open one each.
    opens_link: asyncio.Lock = field(default_factory=asyncio.Lock)
    call: asyncio.Task[None] | None = None
    command: asyncio.Task[None] | None = None


class Lanes:
    """The lanes of all replicas."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._lanes: dict[ReplicaID, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def replicas(self) -> list[ReplicaID]:
        """Those that something is or was under way with."""
        return list(self._lanes)

    def knows(self, replica_id: ReplicaID) -> bool:
        """Something is or was under way with it."""
        return replica_id in self._lanes

    def forget(self, replica_id: ReplicaID) -> None:
        """Its process is gone: end the call, and the connection."""
        lane = self._lanes.pop(replica_id, None)
        if lane is None:
            return
        if lane.call is not None:
            lane.call.cancel()
        if lane.link is not None:
            lane.link.close()

    def forget_unlinked(self, replica_id: ReplicaID) -> None:
        """Drop the lanes of a replica that was never connected to."""
        lane = self._lanes.get(replica_id)
        if lane is not None and lane.link is None:
            del self._lanes[replica_id]

    async def close(self) -> None:
        """End all that is done."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let something be done that no replica's lane waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _lane(self, replica_id: ReplicaID) -> _Lane:
        return self._lanes.setdefault(replica_id, _Lane())

    def cancel_call(self, replica_id: ReplicaID) -> None:
        """Nobody waits any more for what the replica is asked now."""
        lane = self._lanes.get(replica_id)
        if lane is not None and lane.call is not None:
            lane.call.cancel()

    def call(self, replica_id: ReplicaID, work: Coroutine[Any, Any, None]) -> None:
        """Ask the replica something, in place of what it is asked now."""
        self.cancel_call(replica_id)
        self._lane(replica_id).call = self.spawn(work)

    def command(self, replica_id: ReplicaID, work: Coroutine[Any, Any, None]) -> None:
        """Let the engine do something, after what it was told before about this replica."""
        lane = self._lane(replica_id)
        before = lane.command

        async def in_order() -> None:
            if before is not None and not before.done():
                await asyncio.wait([before])
            await work

        lane.command = self.spawn(in_order())

    async def link(self, replica_id: ReplicaID, address: str) -> ReplicaControl:
        """The connection to a replica, opened if need be.

        Raises:
            ConnectionLostError: there is none to be had, or the replica was forgotten meanwhile.
        """
        lane = self._lane(replica_id)
        async with lane.opens_link:
            if lane.link is None or not lane.link.is_open:
                link = await self._connect(address)
                if self._lanes.get(replica_id) is not lane:
                    link.close()
                    raise ConnectionLostError(f"Replica {replica_id} is gone")
                lane.link = link
            return lane.link
