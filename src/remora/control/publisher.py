"""Sends the routing snapshot to whoever subscribed: the whole once, then what changed.

A slow subscriber gets one difference for many changes; nothing queues up for it.

Rules: decides nothing. One event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from remora.core.snapshot import Snapshot, SnapshotDiff, diff
from remora.wire.control import Ack, Subscription


@dataclass
class _Subscriber:
    name: str
    #: Nothing is acknowledged before the first acknowledgement: it may hold a snapshot that an
    #: earlier controller sent.
    acked: int = -1
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Publisher:
    """Holds the latest snapshot and those who want it."""

    def __init__(self, on_acked: Callable[[int], None]) -> None:
        """Make a publisher.

        Args:
            on_acked: called with a version that every subscriber has applied, whenever that grows.
        """
        self._on_acked = on_acked
        self._latest: Snapshot | None = None
        self._subscribers: dict[int, _Subscriber] = {}
        self._numbers = itertools.count()
        self._told = -1
        #: By the version that it leads from to the latest one: worked out once for everybody.
        self._changes: dict[int, SnapshotDiff] = {}

    @property
    def version(self) -> int:
        """The latest that was published; 0: none yet."""
        return 0 if self._latest is None else self._latest.version

    def publish(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the latest; the same version again changes nothing."""
        if self._latest is not None and self._latest.version == snapshot.version:
            return
        self._latest = snapshot
        self._changes.clear()
        for subscriber in self._subscribers.values():
            subscriber.changed.set()
        self._settle()

    async def subscribe(self, subscription: Subscription) -> AsyncGenerator[SnapshotDiff, None]:
        """Stream differences until the reader closes.

        Nothing comes before the first snapshot is published: a restarted controller keeps
        routers waiting, and routing as before, until it knows what runs.
        """
        number = next(self._numbers)
        subscriber = self._subscribers[number] = _Subscriber(subscription.subscriber)
        sent: Snapshot | None = None
        try:
            while True:
                latest = self._latest
                if latest is None or (sent is not None and sent.version == latest.version):
                    subscriber.changed.clear()
                    await subscriber.changed.wait()
                    continue
                change = self._change(sent, latest)
                sent = latest
                yield change
        finally:
            del self._subscribers[number]
            self._settle()

    def _change(self, sent: Snapshot | None, latest: Snapshot) -> SnapshotDiff:
        known = -1 if sent is None else sent.version
        change = self._changes.get(known)
        if change is None:
            change = self._changes[known] = diff(sent, latest)
        return change

    def ack(self, ack: Ack) -> None:
        """Note that a subscriber has applied a version."""
        for subscriber in self._subscribers.values():
            if subscriber.name == ack.subscriber:
                subscriber.acked = max(subscriber.acked, ack.version)
        self._settle()

    def _settle(self) -> None:
        """Tell how far everybody is."""
        if self._latest is None:
            return
        acked = min(
            (subscriber.acked for subscriber in self._subscribers.values()),
            default=self._latest.version,
        )
        if acked > self._told:
            self._told = acked
            self._on_acked(acked)
