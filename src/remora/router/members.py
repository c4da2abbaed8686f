"""Which replicas a router knows, and which of them may take a request now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from remora.core.snapshot import DeploymentRoute
from remora.router.link import ReplicaLink
from remora.types import ReplicaID, Seconds

if TYPE_CHECKING:
    from remora.router.router import Router


#: What a replica said of others' requests is believed for so long, and up to twice that. A replica
#: that is passed over says nothing new; Ray Serve believes a length of a queue for 10 s.
BELIEVED_S: Seconds = 1.0


class Members:
    """The replicas of one deployment, as one router sees them.

    Attributes:
        links: all of the snapshot.
        open: those that may take a request now, in no order. Always the same list; who is in it
            knows his place, so that coming and going takes no time.
    """

    __slots__ = ("_ageing", "_doubted", "_router", "links", "open")

    def __init__(self, router: Router) -> None:
        self._router = router
        self.links: dict[ReplicaID, ReplicaLink] = {}
        self.open: list[ReplicaLink] = []
        self._ageing: asyncio.TimerHandle | None = None
        #: Replicas that have said nothing since the timer began.
        self._doubted: set[ReplicaLink] = set()

    def update(self, route: DeploymentRoute) -> None:
        """Begin with those that are new, part from those that are gone."""
        wanted = {replica.replica_id: replica for replica in route.replicas}
        for replica_id in [known for known in self.links if known not in wanted]:
            link = self.links.pop(replica_id)
            self.shut(link)
            link.retire()
        for replica_id, replica in wanted.items():
            if replica_id not in self.links:
                link = self.links[replica_id] = ReplicaLink(self._router, replica)
                link.begin()

    def room_coming(self) -> int:
        """How many requests those can take whose first connection is under way."""
        limit = self._router.max_ongoing
        return sum([limit for link in self.links.values() if link.is_coming])

    def note_others(self, link: ReplicaLink) -> None:
        """A replica has told of requests of others: forget them if it tells nothing more."""
        self._doubted.discard(link)
        if self._ageing is None:
            self._ageing = self._router.loop.call_later(BELIEVED_S, self._age)

    def _age(self) -> None:
        self._ageing = None
        for link in self._doubted:
            link.load = link.outstanding
        self._doubted = {link for link in self.links.values() if link.load > link.outstanding}
        if self._doubted:
            self._ageing = self._router.loop.call_later(BELIEVED_S, self._age)

    def limit_to(self, max_ongoing: int) -> None:
        """Each takes so many requests now."""
        for link in self.links.values():
            link.limit = max_ongoing

    def retire_all(self) -> None:
        """Part from all."""
        if self._ageing is not None:
            self._ageing.cancel()
            self._ageing = None
        for link in self.links.values():
            self.shut(link)
            link.retire()
        self.links.clear()

    def reconsider(self, link: ReplicaLink) -> None:
        """Open a link or shut it, as its state says."""
        may_take = (
            not link.gone
            and not link.full
            and not link.leaving
            and link.channel is not None
            and link.outstanding < link.limit
        )
        if not may_take:
            self.shut(link)
        elif link.position < 0:
            link.position = len(self.open)
            self.open.append(link)
            # Those that can go nowhere else come first.
            link.serve_pinned()

    def shut(self, link: ReplicaLink) -> None:
        """Take a link out of the open ones."""
        position = link.position
        if position < 0:
            return
        last = self.open.pop()
        if last is not link:
            self.open[position] = last
            last.position = position
        link.position = -1
