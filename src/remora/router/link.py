"""A router's connection to one replica, and what the router knows of its load."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from remora.core.request.promises import NO_PROMISES
from remora.core.request.room import limit_called_back, limit_turned_away
from remora.core.snapshot import ReplicaRoute
from remora.errors import ConnectionLostError, ProtocolError, ReplicaUnavailableError
from remora.observe.background import run_beside
from remora.router.call import Call
from remora.router.pinned_queue import PinnedQueue
from remora.router.reconnect import waits
from remora.transport.channel import Channel, connect
from remora.types import Seconds
from remora.wire.codec import unpack
from remora.wire.messages import Promises, ReplicaNotice

if TYPE_CHECKING:
    from remora.router.router import Router

_log = logging.getLogger("remora.router")
#: How long a request waits for the first connection to the replica that it is meant for.
FIRST_CONNECT_S: Seconds = 1.0


class ReplicaLink:
    """One replica as seen from one router.

    Attributes:
        outstanding: requests this router has sent and that have not ended.
        load: those and the requests of other routers, as of the replica's last answer.
        limit: how many may be outstanding; see `core.room`.
        full: the replica turned us away and has not called us back.
        leaving: the replica said goodbye: it never has room again.
        promises: what the replica's code says of itself; kept when the replica is gone.
        is_coming: the first connection is under way, and not for long.
        model_ids: multiplexed models that the replica holds, as it last said.
        metadata: what its code said of itself once.
        stats: what its code last said of itself.
        pinned: calls for this replica alone that wait until it has room.
        position: index in the router's list of open links; -1: not in it.
    """

    __slots__ = (
        "_coming",
        "_task",
        "address",
        "availability_zone",
        "channel",
        "full",
        "gone",
        "is_coming",
        "leaving",
        "limit",
        "load",
        "metadata",
        "model_ids",
        "node_id",
        "outstanding",
        "pinned",
        "position",
        "promises",
        "replica_id",
        "router",
        "stats",
    )

    def __init__(self, router: Router, route: ReplicaRoute) -> None:
        self.router = router
        self.replica_id = route.replica_id
        self.address = route.address
        self.node_id = route.node_id
        self.availability_zone = route.availability_zone
        self.model_ids: frozenset[str] = frozenset()
        self.metadata: dict[str, Any] = {}
        self.stats: dict[str, Any] = {}
        self.channel: Channel | None = None
        self.outstanding = 0
        self.load = 0
        self.limit = router.max_ongoing
        self.full = False
        self.leaving = False
        self.gone = False
        self.is_coming = False
        self._coming: asyncio.TimerHandle | None = None
        self.position = -1
        self.pinned = PinnedQueue()
        self.promises = NO_PROMISES
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Connect for the first time, which takes a moment: some requests wait for that."""
        self.is_coming = True
        self._coming = self.router.loop.call_later(FIRST_CONNECT_S, self._end_coming)
        self.start()

    def _end_coming(self) -> None:
        """Nobody waits for the first connection any more: it is there, or it takes too long."""
        if self.is_coming:
            self.is_coming = False
            self.router.pump()
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None

    def start(self) -> None:
        """Connect in the background; the router is told when requests can be sent."""
        loop = self.router.loop
        self._task = run_beside(loop, self._connect(), f"the link to {self.address}")

    async def _connect(self) -> None:
        wait_s = waits()
        while not self.gone:
            channel: Channel | None = None
            try:
                channel = await connect(self.address, name=self.router.name, owner=self)
                await channel.wait_greeted()
            except asyncio.CancelledError:
                if channel is not None:
                    channel.close()
                raise
            except ConnectionLostError:
                # The snapshot says it runs: it is about to vanish from it, or back soon.
                self._end_coming()
                await asyncio.sleep(next(wait_s))
                continue
            self.channel = channel
            self.limit = self.router.max_ongoing
            self.full = self.leaving = False
            self.load = self.outstanding
            self.router.on_link_ready(self)
            self._end_coming()
            return

    def retire(self) -> None:
        """The replica left the snapshot: finish what is under way, send nothing new."""
        self.gone = True
        self._fail_pinned()
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Let go of the connection once a retired link has nothing under way."""
        if self.gone and self.outstanding == 0:
            self.close()

    def close(self) -> None:
        """Let go of the connection now; requests under way are lost."""
        self.gone = True
        self.is_coming = False
        self._end_coming()
        if self._task is not None:
            self._task.cancel()
        if self.channel is not None:
            self.channel.close()

    def on_lost_one(self) -> None:
        """A request has ended without an answer that says how busy the replica is."""
        self.outstanding -= 1
        self.load -= 1

    def on_turned_away(self) -> None:
        """The replica is full or leaving: wait for an answer, or for its call."""
        self.on_lost_one()
        self.full = True
        self.limit = limit_turned_away(self.outstanding)

    def on_freed(self, room: int) -> None:
        """The replica has room again."""
        self.full = False
        self.limit = limit_called_back(self.limit, self.outstanding, room, self.router.max_ongoing)
        self.router.on_link_ready(self)

    def on_bye(self) -> None:
        """The replica takes no new requests: nobody need wait for what it holds."""
        self.leaving = True
        self.model_ids = frozenset()
        self.router.on_link_unready(self)
        self._fail_pinned()

    def wait_pinned(self, call: Call) -> None:
        """Let a call that is for this replica alone wait until it has room."""
        if self.gone or self.leaving:
            call.fail(ReplicaUnavailableError(self.replica_id))
        else:
            self.pinned.add(call)

    def serve_pinned(self) -> None:
        """Send what waits for this replica alone, for as long as it has room."""
        while self.position >= 0 and (call := self.pinned.take()) is not None:
            self.router.send(call, self)

    def _fail_pinned(self) -> None:
        while (call := self.pinned.take()) is not None:
            call.fail(ReplicaUnavailableError(self.replica_id))

    def on_promises(self, promises: bytes) -> None:
        """The replica says what its code promises."""
        self.promises = unpack(promises, Promises)

    def on_notice(self, meta: bytes) -> None:
        """The replica tells of itself."""
        try:
            notice = unpack(meta, ReplicaNotice)
        except ProtocolError as error:
            _log.warning("%s sent an unreadable notice: %s", self.replica_id, error)
            return
        self.model_ids = frozenset(() if self.leaving else notice.models)
        self.metadata = notice.metadata
        self.stats = notice.stats

    def _forget_notice(self) -> None:
        self.model_ids = frozenset()
        self.metadata = {}
        self.stats = {}

    def on_lost(self, error: ConnectionLostError) -> None:
        """The connection is gone, and with it all that was outstanding."""
        if self.channel is None:
            # Lost before the greeting: `_connect` sees it, and tries again after a while.
            return
        self.channel = None
        self._forget_notice()
        self.router.on_link_unready(self)
        if not self.gone:
            self.start()
