"""Leases the places in queues to routers: the shell around `core.queue_shares`.

Each deployment with a limit has books; each router that follows gets a message when its share
changes. A router whose connection ends has ended with all that waited in it.

Rules: decides nothing. One event loop. Nothing here is saved: after a restart routers say what
they hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from remora.core.request.queue_shares import Ledger
from remora.core.snapshot import Snapshot
from remora.types import DeploymentID, Seconds
from remora.wire.control import QueueClaim, QueueShares

#: Routers come back to a restarted controller within a second; it gives nothing away before.
THAW_AFTER_S: Seconds = 3.0


class _Follower:
    """A router's side of the books, for all deployments."""

    def __init__(self) -> None:
        #: The last claim on each deployment, with or without books.
        self.claims: dict[DeploymentID, tuple[int, int, int]] = {}
        self.news: dict[DeploymentID, tuple[int, int]] = {}
        self.has_news = asyncio.Event()


class QueueLeases:
    """The books of all queues."""

    def __init__(self) -> None:
        self._ledgers: dict[DeploymentID, Ledger] = {}
        self._followers: dict[str, _Follower] = {}
        self._frozen = False

    def freeze(self) -> None:
        """Give nothing away for a while: a controller before this one has leased places out."""
        self._frozen = True
        asyncio.get_running_loop().call_later(THAW_AFTER_S, self._thaw)

    def limit(self, snapshot: Snapshot) -> None:
        """Keep books for every deployment of a snapshot that has a limit."""
        limits = {
            deployment: route.max_queued_requests
            for deployment, route in snapshot.deployments.items()
            if route.max_queued_requests >= 0
        }
        for gone in self._ledgers.keys() - limits.keys():
            del self._ledgers[gone]
        for deployment, limit in limits.items():
            ledger = self._ledgers.get(deployment)
            if ledger is None:
                ledger = self._ledgers[deployment] = Ledger(limit, frozen=self._frozen)
                for name, follower in self._followers.items():
                    if deployment in follower.claims:
                        ledger.claim(name, *follower.claims[deployment])
            ledger.limit = limit
            self._step(deployment, ledger)

    async def follow(self, claim: QueueClaim) -> AsyncGenerator[QueueShares, None]:
        """Stream the shares of one router until it goes; `claim` says what it holds already."""
        name = claim.subscriber
        if name in self._followers:
            # It is back before its old stream has ended: what it holds, it says anew. Its places
            # are not given to others in between.
            self._drop(name)
        follower = self._followers[name] = _Follower()
        self.claim(claim)
        self._step_all()
        try:
            while True:
                await follower.has_news.wait()
                follower.has_news.clear()
                news, follower.news = follower.news, {}
                yield QueueShares(news)
        finally:
            if self._followers.get(name) is follower:
                del self._followers[name]
                self._drop(name)
                self._step_all()

    def claim(self, claim: QueueClaim) -> None:
        """Note what a router holds and needs."""
        follower = self._followers.get(claim.subscriber)
        if follower is None:
            return  # It has gone meanwhile.
        follower.claims.update(claim.claims)
        for deployment, what in claim.claims.items():
            ledger = self._ledgers.get(deployment)
            if ledger is not None:
                ledger.claim(claim.subscriber, *what)
                self._step(deployment, ledger)

    def _drop(self, name: str) -> None:
        for ledger in self._ledgers.values():
            ledger.leave(name)

    def _thaw(self) -> None:
        self._frozen = False
        for ledger in self._ledgers.values():
            ledger.thaw()
        self._step_all()

    def _step_all(self) -> None:
        for deployment, ledger in self._ledgers.items():
            self._step(deployment, ledger)

    def _step(self, deployment: DeploymentID, ledger: Ledger) -> None:
        for name, lease in ledger.step().items():
            follower = self._followers[name]
            follower.news[deployment] = lease
            follower.has_news.set()
