"""Round robin: everybody in turn."""

from __future__ import annotations

import random
from collections.abc import Sequence

from remora.core.routing import C


class RoundRobin:
    """Visits all candidates of an unchanged list before it visits one again."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = -1

    def __call__(self, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Take the next one; `rng` is not needed."""
        if not candidates:
            return None
        self._turn = (self._turn + 1) % len(candidates)
        return candidates[self._turn]
