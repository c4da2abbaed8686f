"""Keeps the shares of a process's routers in step with the controller's books.

A stream brings shares; claims go back whenever a router has told of a need, one at a time and
not faster than a person could notice. While no controller is there, routers go by what they
have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from remora.errors import ConnectionLostError, RemoraError
from remora.observe.background import run_beside
from remora.transport.channel import Channel
from remora.transport.control import call_control, stream_control
from remora.types import DeploymentID, Seconds
from remora.wire.control import QueueClaim, QueueShares

if TYPE_CHECKING:
    from remora.router.router import Router

_log = logging.getLogger("remora.router")
#: Between two claims: under overload needs change with every request.
_BETWEEN_CLAIMS_S: Seconds = 0.01

_Claims = dict[DeploymentID, tuple[int, int, int]]


class ShareKeeper:
    """The queue shares of one routing client."""

    def __init__(self, subscriber: str, routers: Callable[[], Iterable[Router]]) -> None:
        """Make a keeper.

        Args:
            subscriber: who claims.
            routers: all that there are now.
        """
        self._subscriber = subscriber
        self._routers = routers
        self._needed = asyncio.Event()
        self._told: _Claims = {}

    def add(self, router: Router) -> None:
        """A router that is new; its share comes with the answer to its first claim."""
        router.backlog.tell = self._needed.set
        self._needed.set()

    async def follow(self, channel: Channel) -> None:
        """Take shares and send claims until the connection ends."""
        for router in self._routers():
            router.backlog.share.reset()
        self._needed.clear()
        self._told = self._claims()
        first = QueueClaim(self._subscriber, self._told)
        loop = asyncio.get_running_loop()
        claiming = run_beside(loop, self._claim(channel), "the claims of queues")
        try:
            async for message in stream_control(channel, "queue", first, QueueShares):
                self._apply(message)
        except ConnectionLostError:
            pass
        except RemoraError as error:
            _log.warning("The controller leases no queue shares to %s: %s", self._subscriber, error)
        finally:
            claiming.cancel()

    def _apply(self, message: QueueShares) -> None:
        for router in self._routers():
            lease = message.shares.get(router.deployment)
            if lease is not None:
                router.take_share(*lease)
        # The controller gives away what was taken here only when it hears that it is free.
        self._needed.set()

    async def _claim(self, channel: Channel) -> None:
        try:
            while True:
                await self._needed.wait()
                self._needed.clear()
                claims = self._claims()
                if changed := {k: v for k, v in claims.items() if self._told.get(k) != v}:
                    await call_control(channel, "claim", QueueClaim(self._subscriber, changed))
                self._told = claims
                await asyncio.sleep(_BETWEEN_CLAIMS_S)
        except (ConnectionLostError, RemoraError):
            pass  # Whoever reads the stream hears of it.

    def _claims(self) -> _Claims:
        return {
            router.deployment: router.backlog.share.next_claim(router.num_waiting)
            for router in self._routers()
            if router.backlog.share.limit >= 0
        }
