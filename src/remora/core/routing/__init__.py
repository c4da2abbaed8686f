"""Routing policies, one a file.

A policy answers `choose(request, candidates, rng) -> candidate | None`. Candidates are the replicas
that may take a request now (running, below their limit, not refused); the router keeps that
list, a policy only picks from it. None, where there are candidates, means that this request
rather waits for another one.

Rules: pure but for what a policy remembers of its own choices. Chance is an argument.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar, cast

from remora.types import ReplicaID
from remora.wire.messages import Envelope


class Candidate(Protocol):
    """What a policy may look at."""

    @property
    def replica_id(self) -> ReplicaID:
        """Which replica it is."""

    @property
    def load(self) -> int:
        """Requests that the replica works on, as far as this router knows."""

    @property
    def limit(self) -> int:
        """Requests of this router that it may work on at a time."""

    @property
    def is_coming(self) -> bool:
        """No candidate yet, but in a moment."""

    @property
    def model_ids(self) -> frozenset[str]:
        """Multiplexed models that the replica holds, as it last said."""

    @property
    def node_id(self) -> str:
        """The node that it runs on."""

    @property
    def availability_zone(self) -> str:
        """The zone of that node; empty: unknown."""


C = TypeVar("C", bound=Candidate)


class Policy(Protocol[C]):
    """Picks a replica for each request.

    Attributes:
        waits_by_model: whether a request waits depends on its model alone: as long as nothing
            else changes, one that waits says the same for all others of that model.
    """

    waits_by_model: ClassVar[bool]

    def choose(self, request: Envelope, candidates: Sequence[C], rng: random.Random) -> C | None:
        """Pick one of `candidates`; None: none of them."""

    def keep(self, members: Sequence[C]) -> None:
        """Take note of all replicas there are now, those that are full as well."""


def among(candidates: Sequence[C], members: Mapping[ReplicaID, Candidate]) -> Mapping[ReplicaID, C]:
    """Give candidates by their ids; no work at all while every member is one. Pure.

    Args:
        candidates: some of the members.
        members: all there are.
    """
    if len(candidates) == len(members):
        return cast("Mapping[ReplicaID, C]", members)
    return {c.replica_id: c for c in candidates}
