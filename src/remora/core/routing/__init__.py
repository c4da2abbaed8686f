"""Routing policies, one a file.

A policy is a pure function `choose(candidates, rng) -> candidate | None`. Candidates are the
replicas that may take a request now (running, below their limit, not refused); the router keeps
that list, a policy only picks from it. State that a policy needs between calls is an object
with that method.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a policy may look at."""

    @property
    def load(self) -> int:
        """Requests that the replica works on, as far as this router knows."""


C = TypeVar("C", bound=Candidate)

#: `choose(candidates, rng)`; None only when there is no candidate.
Policy = Callable[[Sequence[C], random.Random], C | None]
