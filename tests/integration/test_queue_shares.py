"""One limit for all queues of a deployment: a real controller, several routers, real sockets.

The replicas are fakes that nobody can call, so whatever is not refused waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.rig import until
from tests.integration.test_control_client import Instance, running
from tests.unit.control.rig import app, deployment

from remora.control import queue_leases
from remora.control.client import ControlClient
from remora.errors import BackPressureError
from remora.home import Home
from remora.router.call import CallState, UnaryCall
from remora.router.client import RoutingClient
from remora.router.router import Router
from remora.types import DeploymentID
from remora.wire.messages import CallKind, Envelope

MODEL = DeploymentID("Model")
LIMIT = 10


class Caller:
    """A process that calls: a routing client and the calls that it made."""

    def __init__(self, home: Home, name: str) -> None:
        self.client = RoutingClient(home, name)
        self.client.start()
        self.calls: list[UnaryCall] = []

    @property
    def router(self) -> Router:
        return self.client.router(MODEL)

    @property
    def share(self) -> int | None:
        return self.router.backlog.share.share

    def call(self, number: int = 1) -> None:
        for _ in range(number):
            envelope = Envelope("1", "default", "Model", "__call__", CallKind.UNARY)
            self.calls.append(self.router.call(envelope, b""))

    @property
    def waiting(self) -> int:
        assert self.router.num_waiting == sum(c.state is CallState.QUEUED for c in self.calls)
        return self.router.num_waiting

    @property
    def refused(self) -> int:
        return sum(call.done() for call in self.calls)


@pytest.fixture
async def instance(remora_home: Path) -> AsyncIterator[Instance]:
    made = Instance(Home.locate())
    made.engine.controller_restarts = 0
    await made.start()
    async with ControlClient(made.home) as client:
        await client.deploy([app("default", deployment(max_queued_requests=LIMIT))])
        await running(client)
    yield made
    await made.kill()
    made.sock.close()


@pytest.fixture
async def callers(instance: Instance) -> AsyncIterator[list[Caller]]:
    made = [Caller(instance.home, name) for name in ("proxy-1", "proxy-2", "script")]
    for caller in made:
        await caller.client.wait_synced(5)
    yield made
    for caller in made:
        await caller.client.close()


async def test_a_router_that_is_alone_has_the_whole_queue_at_once(callers: list[Caller]) -> None:
    alone = callers[0]
    # Nobody answers at the address of the replica: only then is who waits for it a queue.
    assert alone.router.num_waiting == 0
    await until(lambda: not any(link.is_coming for link in alone.router.links))
    alone.call(LIMIT + 5)
    assert (alone.waiting, alone.refused) == (LIMIT, 5)
    await until(lambda: alone.share == LIMIT)
    assert alone.waiting == LIMIT


async def test_all_routers_together_let_no_more_wait_than_the_limit(callers: list[Caller]) -> None:
    assert [caller.router.num_waiting for caller in callers] == [0, 0, 0]
    await until(lambda: sorted(caller.share or 0 for caller in callers) == [3, 3, 4])
    for _ in range(LIMIT):
        for caller in callers:
            caller.call()
            assert sum(each.waiting for each in callers) <= LIMIT
        await asyncio.sleep(0)
    await until(lambda: sum(caller.waiting for caller in callers) + _refused(callers) == 3 * LIMIT)
    assert sum(caller.waiting for caller in callers) == LIMIT
    for caller in callers:
        with pytest.raises(BackPressureError, match="max_queued_requests is 10") as refusal:
            await caller.calls[-1]
        assert refusal.value.retry_after_s == 1


async def test_places_that_one_router_does_not_use_go_to_another(callers: list[Caller]) -> None:
    busy, idle = callers[:2]
    assert busy.router.num_waiting == idle.router.num_waiting == 0
    await until(lambda: busy.share == idle.share == LIMIT // 2)
    while busy.waiting < LIMIT:
        before = busy.share
        busy.call(LIMIT - busy.waiting)
        await until(lambda b=before: busy.share != b or busy.waiting == LIMIT)  # type: ignore[misc]
    assert idle.share == 0
    idle.call()
    assert idle.refused == 1
    for call in busy.calls:
        call.cancel()
    await until(lambda: (idle.share or 0) >= LIMIT // 2)
    idle.call(LIMIT // 2)
    assert idle.waiting == LIMIT // 2


async def test_the_places_of_a_router_that_dies_go_to_the_others(callers: list[Caller]) -> None:
    dying, other = callers[:2]
    dying.call(LIMIT)
    await until(lambda: dying.share == LIMIT)
    assert other.router.num_waiting == 0
    await until(lambda: other.share is not None)
    other.call(LIMIT)
    await until(lambda: dying.waiting + other.waiting == LIMIT)
    await dying.client.close()
    await until(lambda: other.share == LIMIT)


async def test_what_came_before_the_first_share_and_is_too_much_is_refused(
    callers: list[Caller],
) -> None:
    first, late = callers[:2]
    first.call(LIMIT)
    await until(lambda: first.share == LIMIT)
    late.call(3)
    assert late.waiting == 3
    await until(lambda: late.refused == 3)
    assert first.waiting == LIMIT


async def test_a_new_controller_goes_on_from_what_the_routers_hold(
    instance: Instance, callers: list[Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_leases, "THAW_AFTER_S", 0.3)
    held, other = callers[:2]
    held.call(LIMIT)
    await until(lambda: held.share == LIMIT)
    assert other.router.num_waiting == 0
    await until(lambda: other.share is not None)
    await instance.kill()
    instance.engine.controller_restarts = 1
    held.call()
    assert held.refused + held.waiting == LIMIT + 1
    await instance.start()
    total: list[int] = []

    def settled() -> bool:
        other.call()
        total.append(held.waiting + other.waiting)
        return other.waiting > 0

    held.calls[0].cancel()
    await until(settled)
    assert max(total) <= LIMIT


async def test_without_a_limit_nobody_is_told_anything(remora_home: Path) -> None:
    instance = Instance(Home.locate())
    await instance.start()
    async with ControlClient(instance.home) as client:
        await client.deploy([app("default", deployment())])
        await running(client)
    caller = Caller(instance.home, "script")
    await caller.client.wait_synced(5)
    caller.call(100)
    await until(lambda: not caller.client._shares._needed.is_set())
    assert (caller.waiting, caller.share) == (100, None)
    await caller.client.close()
    await instance.kill()
    instance.sock.close()


def _refused(callers: list[Caller]) -> Any:
    return sum(caller.refused for caller in callers)
