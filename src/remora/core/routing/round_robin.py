"""Round robin: everybody in turn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from remora.core.routing import C
from remora.core.routing.multiplex import ModelAffinity
from remora.types import ReplicaID
from remora.wire.messages import Envelope


class RoundRobin:
    """Visits all candidates in the order of their ids before it visits one again.

    The cursor is the id of the last one, not a place in a list: replicas that are full for a
    while, come or go do not make it skip others.
    """

    __slots__ = ("_last", "_models")

    waits_by_model: ClassVar[bool] = True

    def __init__(self) -> None:
        self._last = ReplicaID("")
        self._models = ModelAffinity()

    def choose(self, request: Envelope, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Take the next one; `rng` is not needed."""
        if not candidates:
            return None
        model_id = request.multiplexed_model_id
        if model_id:
            candidates = self._models.narrow(model_id, candidates)
            if not candidates:
                return None
        last = self._last
        # Those after the cursor come before those up to it.
        chosen = min(candidates, key=lambda c: (c.replica_id <= last, c.replica_id))
        self._last = chosen.replica_id
        if model_id:
            self._models.note(model_id, chosen)
        return chosen

    def keep(self, members: Sequence[C]) -> None:
        """Note which replicas there are."""
        self._models.keep(members)
