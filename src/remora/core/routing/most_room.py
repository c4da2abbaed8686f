"""Most room: the replica that has the most free slots.

Replicas enforce their limit themselves and tell of room as it comes, so what a router knows of
free slots is as exact as a queue of tokens in a process of its own would be, without the way there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from remora.core.routing import C
from remora.wire.messages import Envelope


class MostRoom:
    """Of all candidates the one with the most free slots; equal ones win by chance."""

    __slots__ = ()

    waits_by_model: ClassVar[bool] = False

    def choose(self, request: Envelope, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Pick one; None only when there is no candidate."""
        if not candidates:
            return None
        room = [c.limit - c.load for c in candidates]
        most = max(room)
        best = [place for place, has in enumerate(room) if has == most]
        return candidates[best[int(rng.random() * len(best))]]

    def keep(self, members: Sequence[C]) -> None:
        """Nothing to note: candidates are enough."""
