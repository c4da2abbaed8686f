"""Consistent hashing: requests of one session go to one replica, for as long as it is there.

Replicas stand on a ring, each at many places; a key belongs to the first replica behind it. When
a replica comes or goes, only the keys next to its places move.

Sources: D. Karger et al., "Consistent Hashing and Random Trees" (1997); for the bound, V. Mirrokni
et al., "Consistent Hashing with Bounded Loads" (2016): whoever carries more than its share times
a factor is passed by.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from operator import attrgetter
from typing import ClassVar

from remora.config import require_number
from remora.core.routing import C, Candidate, among
from remora.types import ReplicaID
from remora.wire.messages import Envelope

#: Sessions whose replicas are remembered.
_MAX_ORDERS = 4096
_load = attrgetter("load")


def place_of(key: str) -> int:
    """Place of a text on the ring; the same in every process. Pure."""
    return int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest())


class Ring:
    """Replicas on a ring."""

    __slots__ = ("_owners", "_places", "size")

    def __init__(self, replicas: Iterable[ReplicaID], num_virtual_nodes: int) -> None:
        replicas = set(replicas)
        points = sorted(
            (place_of(f"{replica}/{number}"), replica)
            for replica in replicas
            for number in range(num_virtual_nodes)
        )
        self.size = len(replicas)
        self._places = [place for place, _ in points]
        self._owners = [replica for _, replica in points]

    def order(self, key: str) -> Iterator[ReplicaID]:
        """Give every replica once, the one that a key belongs to first."""
        owners = self._owners
        start = bisect_right(self._places, place_of(key))
        seen: set[ReplicaID] = set()
        for step in range(len(owners)):
            if len(seen) == self.size:
                return
            owner = owners[(start + step) % len(owners)]
            if owner not in seen:
                seen.add(owner)
                yield owner


class ConsistentHash:
    """Sends requests with the same session id to the same replica.

    Those without one are spread by their request id. When the replica that a key belongs to is
    full, the next `num_fallback_replicas` on the ring may take the request; when they are full
    too, it waits for one of them. One to which the first connection is being made is waited for.
    """

    __slots__ = ("_fallbacks", "_load_factor", "_members", "_num_virtual_nodes", "_orders", "_ring")

    waits_by_model: ClassVar[bool] = False

    def __init__(
        self,
        num_virtual_nodes: int = 100,
        num_fallback_replicas: int = 2,
        load_factor: float | None = None,
    ) -> None:
        """Make the policy.

        Args:
            num_virtual_nodes: places of each replica on the ring; more spread keys more evenly.
            num_fallback_replicas: how many others may take a request; 0: none.
            load_factor: a replica that carries this many times the average load is passed by, and
                so on around the ring; None: only one that is full.
        """
        field = "request_router_kwargs"
        require_number(f"{field}['num_virtual_nodes']", num_virtual_nodes, low=1, whole=True)
        require_number(
            f"{field}['num_fallback_replicas']", num_fallback_replicas, low=0, whole=True
        )
        require_number(f"{field}['load_factor']", load_factor, low=1, or_none=True)
        self._num_virtual_nodes = num_virtual_nodes
        self._fallbacks = num_fallback_replicas
        self._load_factor = load_factor
        self._members: dict[ReplicaID, Candidate] = {}
        self._ring = Ring((), num_virtual_nodes)
        #: What the ring says of sessions that were asked for. Request ids come once.
        self._orders: dict[str, Iterable[ReplicaID]] = {}

    def choose(self, request: Envelope, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Pick the first replica behind the key that may take it; `rng` is not needed."""
        if not candidates:
            return None
        session_id = request.session_id
        order = self._orders.get(session_id) if session_id else self._order(request.request_id)
        if order is None:
            order = self._remember(session_id)
        able = among(candidates, self._members)
        bound: int | None = None
        overloaded: C | None = None
        for replica_id in order:
            candidate = able.get(replica_id)
            if candidate is None:
                if self._members[replica_id].is_coming:
                    return None
                continue
            # Who has nothing to do is below every bound.
            if self._load_factor is None or candidate.load == 0:
                return candidate
            if bound is None:
                bound = self._bound(self._load_factor)
            if candidate.load < bound:
                return candidate
            overloaded = overloaded or candidate
        return overloaded

    def keep(self, members: Sequence[Candidate]) -> None:
        """Put these replicas on the ring."""
        known, self._members = self._members, {m.replica_id: m for m in members}
        if known.keys() != self._members.keys():
            self._ring = Ring(self._members, self._num_virtual_nodes)
            self._orders.clear()

    def _order(self, key: str) -> Iterable[ReplicaID]:
        """Replicas that a key may go to, in order; looked up as far as they are taken."""
        order = self._ring.order(key)
        return order if self._load_factor is not None else islice(order, 1 + self._fallbacks)

    def _remember(self, session_id: str) -> Iterable[ReplicaID]:
        if len(self._orders) >= _MAX_ORDERS:
            self._orders.clear()
        found = self._orders[session_id] = tuple(self._order(session_id))
        return found

    def _bound(self, load_factor: float) -> int:
        """Load below which a replica takes one more request."""
        total: int = sum(map(_load, self._members.values())) + 1
        return math.ceil(load_factor * total / max(1, len(self._members)))
