"""Round robin: everybody in turn."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

from remora.core.routing import C, Candidate, among
from remora.core.routing.multiplex import ModelAffinity
from remora.types import ReplicaID
from remora.wire.messages import Envelope


class RoundRobin:
    """Visits all candidates in the order of their ids before it visits one again.

    The cursor is the id of the last one, not a place in a list: replicas that are full for a
    while, come or go do not make it skip others.
    """

    __slots__ = ("_last", "_members", "_models", "_order")

    waits_by_model: ClassVar[bool] = True

    def __init__(self) -> None:
        self._last = ReplicaID("")
        self._models = ModelAffinity()
        self._members: dict[ReplicaID, Candidate] = {}
        #: Their ids in order.
        self._order: list[ReplicaID] = []

    def choose(self, request: Envelope, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Take the next one; `rng` is not needed."""
        if not candidates:
            return None
        model_id = request.multiplexed_model_id
        if model_id:
            candidates = self._models.narrow(model_id, candidates)
            if not candidates:
                return None
            chosen = self._next_of_few(candidates)
            self._models.note(model_id, chosen)
        else:
            chosen = self._next(candidates)
        self._last = chosen.replica_id
        return chosen

    def keep(self, members: Sequence[Candidate]) -> None:
        """Note which replicas there are."""
        self._models.keep(members)
        self._members = {m.replica_id: m for m in members}
        self._order = sorted(self._members)

    def _next(self, candidates: Sequence[C]) -> C:
        """Go on from the cursor to the first that may take a request: rarely more than a step."""
        able = among(candidates, self._members)
        order = self._order
        start = bisect_right(order, self._last)
        for index in range(start, start + len(order)):
            chosen = able.get(order[index % len(order)])
            if chosen is not None:
                return chosen
        return self._next_of_few(candidates)

    def _next_of_few(self, candidates: Sequence[C]) -> C:
        last = self._last
        # Those after the cursor come before those up to it.
        return min(candidates, key=lambda c: (c.replica_id <= last, c.replica_id))
