"""The shell around the books of queues: who follows, who comes back, who goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from remora.control.queue_leases import QueueLeases
from remora.core.snapshot import DeploymentRoute, Snapshot
from remora.types import DeploymentID
from remora.wire.control import QueueClaim, QueueShares

APP = DeploymentID("App")
OTHER = DeploymentID("Other")


def leases(limit: int) -> QueueLeases:
    route = DeploymentRoute((), 1, max_queued_requests=limit)
    made = QueueLeases()
    made.limit(Snapshot(1, {}, {APP: route, OTHER: route}))
    return made


def follow(
    made: QueueLeases, name: str, held: int, wanted: int
) -> AsyncGenerator[QueueShares, None]:
    return made.follow(QueueClaim(name, {APP: (held, wanted, 0)}))


async def told(stream: AsyncGenerator[QueueShares, None]) -> tuple[int, int]:
    async with asyncio.timeout(5):
        return (await anext(stream)).shares[APP]


async def test_a_router_that_is_back_before_its_old_stream_has_ended_is_told_its_share() -> None:
    made = leases(10)
    old = follow(made, "a", 0, 10)
    assert await told(old) == (10, 1)
    new = follow(made, "a", 10, 10)
    assert await told(new) == (10, 1)
    # The end of the old stream takes nothing from the new one.
    await old.aclose()
    other = follow(made, "b", 0, 10)
    assert await told(other) == (0, 1)
    assert await told(new) == (5, 2)


async def test_its_places_are_not_given_away_while_it_comes_back() -> None:
    made = leases(10)
    assert await told(follow(made, "a", 0, 10)) == (10, 1)
    other = follow(made, "b", 0, 10)
    assert await told(other) == (0, 1)
    assert await told(follow(made, "a", 10, 10)) == (5, 1)
    made.claim(QueueClaim("a", {APP: (5, 10, 1)}))
    assert await told(other) == (5, 2)


async def test_a_router_that_goes_leaves_its_places_to_the_others() -> None:
    made = leases(10)
    first = follow(made, "a", 0, 10)
    assert await told(first) == (10, 1)
    other = follow(made, "b", 0, 10)
    assert await told(other) == (0, 1)
    await first.aclose()
    assert await told(other) == (10, 2)
