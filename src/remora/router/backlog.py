"""What a router knows of its own queue beside the calls in it: its share, its pace, its refusals.

The decisions are those of `core.queue_shares` and `core.drain_rate`; this class gives them the
time and passes on that the controller should hear of a need. Nothing of it is touched by a call
that finds a replica at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from remora.core.request.drain_rate import DrainRate
from remora.core.request.queue_shares import HeldShare
from remora.core.snapshot import DeploymentRoute
from remora.errors import BackPressureError
from remora.observe.routing_counts import RoutingCounts


def _nobody() -> None:
    """Without a controller there is nobody to tell."""


class Backlog:
    """Beside the queue of one router.

    Attributes:
        share: how many may wait.
        tell: called when the controller should hear what this router holds and needs; cheap,
            because it is called often.
        on_first: called when something begins to wait where nothing did.
    """

    __slots__ = ("_counts", "_loop", "_rate", "on_first", "share", "tell")

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: RoutingCounts) -> None:
        self._loop = loop
        self._counts = counts
        self._rate = DrainRate()
        self.share = HeldShare()
        self.tell: Callable[[], None] = _nobody
        self.on_first: Callable[[], object] = _nobody

    def limit_to(self, max_queued: int, num_waiting: int) -> None:
        """The deployment's limit is this; -1: none. Those who wait may stay."""
        if max_queued != self.share.limit:
            self.share.limit_to(max_queued, num_waiting)
            self.tell()

    def on_joined(self, num_waiting: int) -> None:
        """One more waits: now `num_waiting` do."""
        if num_waiting == 1:
            self._rate.begin(self._loop.time())
            self.on_first()
        if self.share.on_joined(num_waiting):
            self.tell()

    def on_sent(self, num_sent: int, num_waiting: int) -> None:
        """Replicas have taken some: now `num_waiting` wait."""
        self._rate.drain(self._loop.time(), num_sent)
        self.on_left(num_waiting)

    def on_left(self, num_waiting: int) -> None:
        """Some wait no more, for whatever reason: now `num_waiting` do."""
        if num_waiting == 0:
            self._rate.end(self._loop.time())
        if self.share.on_left(num_waiting):
            self.tell()

    def refuse(self, route: DeploymentRoute, num_waiting: int) -> BackPressureError:
        """Make the refusal of one that may not wait: what the user set as its time wins."""
        self._counts.refused["queue_full"] += 1
        if self.share.on_refused():
            self.tell()
        retry_after_s = route.backpressure_retry_after_s
        if retry_after_s is None:
            retry_after_s = self._rate.retry_after_s(num_waiting, self._loop.time())
        return BackPressureError(
            num_waiting,
            route.max_queued_requests,
            route.backpressure_status,
            retry_after_s,
            self.share.share,
        )
