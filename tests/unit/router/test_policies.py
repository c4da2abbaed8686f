"""What a process knows of its own place goes into the policies that ask for it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from remora.config import PolicySetup
from remora.router.policies import built_in
from remora.transport.membership import Membership, join, mine
from remora.wire.messages import CallKind, Envelope


class Candidate:
    """A replica on a node, in a zone."""

    load = outstanding = 0
    model_ids: frozenset[str] = frozenset()

    def __init__(self, replica_id: str, node_id: str, availability_zone: str) -> None:
        self.replica_id = replica_id
        self.node_id = node_id
        self.availability_zone = availability_zone


@pytest.fixture(autouse=True)
def place() -> Iterator[None]:
    before = mine()
    join(Membership("here", zone="west"))
    yield
    join(before)


def test_replicas_near_by_are_preferred_by_node_and_then_by_zone() -> None:
    here, near, far = (
        Candidate("1", "here", "west"),
        Candidate("2", "next", "west"),
        Candidate("3", "other", "east"),
    )
    envelope = Envelope("", "", "", "m", CallKind.UNARY)
    rng = random.Random(1)
    for members, expected in (([far, near, here], here), ([far, near], near), ([far], far)):
        policy = built_in(PolicySetup())
        policy.keep(members)
        assert {policy.choose(envelope, members, rng) for _ in range(20)} == {expected}
