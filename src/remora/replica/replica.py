"""A replica: one copy of the user's code, and the limit of what it works on at a time.

It counts requests and tells callers of room; what the controller makes of it is its `Life`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from remora.core.request.room import is_called_back
from remora.observe.replica_counts import ReplicaCounts
from remora.observe.tracing import active
from remora.replica.connection import ReplicaConnection
from remora.replica.http_requests import HttpRequests
from remora.replica.life import Life
from remora.replica.notices import Notices
from remora.replica.requests import RequestRunner
from remora.replica.surroundings import OnAnswered, OwnProcess, Place
from remora.replica.user_code import UserCode
from remora.replica.watchdog import LoopWatchdog
from remora.types import Seconds
from remora.wire.framing import MAX_LOAD
from remora.wire.messages import FrameKind

if TYPE_CHECKING:
    from remora.replica.grpc_requests import GrpcRequests
    from remora.replica.websocket_requests import WebSocketRequests

#: What the handlers of open WebSockets have to clean up when the replica stops.
CLOSE_WEBSOCKETS_S: Seconds = 0.5


def _make_runner(replica: Replica) -> RequestRunner:
    tracing = active()
    if tracing is None:
        return RequestRunner(replica)
    # Only here: where nothing is traced, nobody needs it.
    from remora.replica.traced import TracedRunner

    return TracedRunner(replica, tracing)


class Replica:
    """Owns the user's object and counts what it works on.

    Attributes:
        ongoing: requests begun and not ended.
        max_ongoing: how many may be.
        counts: what became of them.
        on_answered: told of each; None: nobody wants to know.
        turns_away: no new requests (not ready yet, draining, or stopping).
        turned_away: callers that are told when there is room again (turned away, or asked).
        control: the control methods, by name.
    """

    def __init__(self, replica_id: str, place: Place | None = None) -> None:
        """Make a replica on the running loop.

        Args:
            replica_id: never used twice.
            place: the process that it runs in; None: one of its own.
        """
        self.loop = asyncio.get_running_loop()
        self.replica_id = replica_id
        self.ongoing = 0
        self.max_ongoing = 1
        self.counts = ReplicaCounts()
        self.on_answered: OnAnswered | None = None
        self.turns_away = True
        self.turned_away: set[ReplicaConnection] = set()
        self.code: UserCode | None = None
        self.threads = ThreadPoolExecutor(1)
        self.requests = _make_runner(self)
        self.http_requests = HttpRequests(self, self.requests)
        self.watchdog = LoopWatchdog(self.loop, lambda: self.ongoing > 0)
        #: Called when a request begins on an idle replica.
        self.on_busy: Callable[[], None] = self.watchdog.arm
        self._busy_listeners: set[Callable[[], object]] = set()
        self.stopped = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connections: set[ReplicaConnection] = set()
        #: What the code promises its callers, packed; None: nothing.
        self.promises: bytes | None = None
        self.notices = Notices(self.loop, self._connections)
        self._life = Life(self, place or OwnProcess())
        self.control = self._life.methods

    # What few replicas are asked for is imported at the first request of its kind: a replica is
    # to be there in tens of milliseconds.

    @cached_property
    def websockets(self) -> WebSocketRequests:
        """Serves WebSockets."""
        from remora.replica.websocket_requests import WebSocketRequests

        return WebSocketRequests(self, self.requests)

    @cached_property
    def grpc_requests(self) -> GrpcRequests:
        """Answers gRPC."""
        from remora.replica.grpc_requests import GrpcRequests

        return GrpcRequests(self, self.requests)

    def accept(self) -> ReplicaConnection:
        """Make the protocol of a new connection."""
        connection = ReplicaConnection(self)
        self._connections.add(connection)
        return connection

    def forget(self, connection: ReplicaConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self.turned_away.discard(connection)

    def announce(
        self,
        *,
        models: Iterable[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell all callers what changed of this replica; see `Notices.announce`."""
        self.notices.announce(models=models, metadata=metadata, stats=stats)

    def tell_busy(self, listener: Callable[[], object], *, wanted: bool) -> None:
        """Call `listener` whenever a request begins on an idle replica, or not any more."""
        if wanted:
            self._busy_listeners.add(listener)
        else:
            self._busy_listeners.discard(listener)
        # Nobody pays for what nobody wants.
        self.on_busy = self._on_busy if self._busy_listeners else self.watchdog.arm

    def _on_busy(self) -> None:
        self.watchdog.arm()
        for listener in self._busy_listeners:
            listener()

    def on_request_ended(self, connection: ReplicaConnection) -> None:
        """A slot is free: tell those who were turned away, or whoever waits for idleness.

        The caller of that request, `connection`, has its answer, which tells of this slot. But
        the answer leaves before the slot is free, so its next request may have been turned away
        in between: then the answer has told it nothing.
        """
        self.ongoing -= 1
        if self.turned_away and not self.turns_away and self.ongoing < self.max_ongoing:
            self.call_back(connection)
        if self.turns_away and self.ongoing == 0:
            self._idle.set()

    def tell_of_room(self, connection: ReplicaConnection) -> None:
        """Tell a caller when there is room for more: now, or once a request ends."""
        self.turned_away.add(connection)
        self.call_back()

    def call_back(self, answered: ReplicaConnection | None = None) -> None:
        """Tell those who wait for room that there is some, if there is.

        Args:
            answered: the caller whose answer tells of it already.
        """
        if self.turns_away or self.ongoing >= self.max_ongoing:
            return
        room = min(self.max_ongoing - self.ongoing, MAX_LOAD)
        told = [
            c
            for c in self.turned_away
            if is_called_back(room, has_answer=c is answered, was_turned_away=c.was_rejected)
        ]
        for connection in told:
            connection.was_rejected = False
            connection.write(FrameKind.FREED, 0, load=room)
        self.turned_away.difference_update(told)

    async def drain(self) -> None:
        """Turn new requests away and wait until those begun have ended."""
        self.turns_away = True
        for connection in self._connections:
            connection.say_bye()
        if self.ongoing:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        """Run the user's shutdown code; the process ends after it."""
        self.turns_away = True
        await self._close_websockets()
        await self._life.end()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.stopped.set()

    def cut_off(self) -> None:
        """End everything at once, as the end of the process would."""
        self.turns_away = True
        self._life.cut_off()
        self.threads.shutdown(wait=False, cancel_futures=True)
        for connection in list(self._connections):
            connection.close()

    async def _close_websockets(self) -> None:
        """End the WebSockets that are still open: their time is up, or no time was given."""
        handlers = [task for one in self._connections for task in one.close_websockets()]
        if not handlers:
            return
        _, late = await asyncio.wait(handlers, timeout=CLOSE_WEBSOCKETS_S)
        for task in late:
            task.cancel()
