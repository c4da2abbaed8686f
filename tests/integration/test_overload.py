"""What a refusal says, and whom it meets."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.http_client import ask
from tests.integration.rig import Rig, call, envelope, until
from tests.integration.test_retries import App, Upload

from remora.errors import BackPressureError, MethodNotFoundError
from remora.router.pinned import call_each
from remora.transport.packing import pack_call


async def test_a_refusal_over_http_says_when_to_come_back(rig: Rig) -> None:
    node = await rig.node(Upload, max_ongoing=1)
    door = await rig.door(node, max_queued_requests=2)
    held = [asyncio.create_task(ask(door)) for _ in range(3)]
    await until(lambda: node.target.begun == 1 and door.router.num_waiting == 2)
    # As if the queue had stood still for 19.8 seconds.
    door.router.backlog._rate.end(0.0)
    door.router.backlog._rate.begin(asyncio.get_running_loop().time() - 19.8)
    refused = await ask(door)
    assert (refused.status, refused.headers["retry-after"]) == (503, "40")
    node.target.gate.set()
    assert [answer.status for answer in await asyncio.gather(*held)] == [200] * 3


async def test_a_queue_that_drains_is_worth_coming_back_to_soon(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    node.target.gate.set()
    router = await rig.routed(node, max_queued_requests=50)
    calls = [call(router, "once") for _ in range(60)]
    refused = [pending for pending in calls if pending.done()]
    assert len(refused) == 9
    with pytest.raises(BackPressureError, match="Try again in 1 s") as error:
        await refused[0]
    assert error.value.retry_after_s == 1
    assert (router.num_requests, router.counts.refused["queue_full"]) == (60, 9)
    await asyncio.gather(*(pending for pending in calls if pending not in refused))


async def test_a_call_that_is_turned_away_takes_its_place_and_the_last_one_is_refused(
    rig: Rig,
) -> None:
    node = await rig.node(App, max_ongoing=1)
    first = await rig.routed(node, max_queued_requests=1)
    second = await rig.routed(node, max_queued_requests=1)
    running = call(first, "once")
    await until(lambda: node.target.begun == 1)
    # Both find the replica open; what the second one sends comes back.
    came_back, queued = call(second, "once"), call(second, "once")
    with pytest.raises(BackPressureError):
        await queued
    assert second.num_waiting == 1
    node.target.gate.set()
    assert list(await asyncio.gather(running, came_back)) == ["", ""]


async def test_a_call_that_has_waited_keeps_its_place_when_it_is_turned_away(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    router = await rig.routed(node, max_queued_requests=1)
    running, queued = call(router, "once"), call(router, "once")
    await until(lambda: node.target.begun == 1)
    node.replica.turns_away = True
    node.target.gate.set()
    await running
    await until(lambda: router.num_waiting == 1)
    node.replica.turns_away = False
    node.replica.call_back()
    assert await queued == ""


async def test_those_who_wait_stay_when_the_share_shrinks_and_a_call_comes_back(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    first = await rig.routed(node)
    second = await rig.routed(node, max_queued_requests=5)
    second.take_share(5, 1)
    running = call(first, "once")
    await until(lambda: node.target.begun == 1)
    came_back, *queued = [call(second, "once") for _ in range(4)]
    second.take_share(1, 2)
    await until(lambda: second.num_waiting == 4)
    assert not any(pending.done() for pending in queued)
    node.target.gate.set()
    assert list(await asyncio.gather(running, came_back, *queued)) == [""] * 5


async def test_a_call_to_every_replica_that_is_turned_away_costs_nobody_a_place(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    first = await rig.routed(node)
    second = await rig.routed(node, max_queued_requests=2)
    second.take_share(2, 1)
    running = call(first, "once")
    await until(lambda: node.target.begun == 1)
    (pinned,) = call_each(second, envelope("once"), pack_call((), {})[1])
    queued = [call(second, "once") for _ in range(2)]
    # Fewer may wait than do.
    second.take_share(1, 2)
    await until(lambda: second.num_pinned == 1)
    second.take_share(0, 3)
    node.target.gate.set()
    assert list(await asyncio.gather(running, pinned, *queued)) == [""] * 4


async def test_the_first_calls_of_a_new_caller_are_no_queue(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=20)
    router = rig.router()
    router.update(rig.route(node, max_queued_requests=5))
    # Nothing lies between the snapshot and these: the connection is still under way.
    calls = [call(router, "once") for _ in range(25)]
    assert [pending.done() for pending in calls] == [False] * 25
    refused = call(router, "once")
    with pytest.raises(BackPressureError):
        await refused
    router.take_share(5, 1)
    await until(lambda: node.target.begun == 20)
    assert router.num_waiting == 5
    node.target.gate.set()
    await asyncio.gather(*calls)


async def test_what_a_replica_once_said_of_others_is_forgotten(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.router.members.BELIEVED_S", 0.02)
    node = await rig.node(App, max_ongoing=20)
    first, second = await rig.routed(node), await rig.routed(node)
    held = [call(first, "once") for _ in range(3)]
    await until(lambda: node.target.begun == 3)
    with pytest.raises(MethodNotFoundError):
        await call(second, "missing")  # an answer like any other
    (link,) = second.members.links.values()
    assert link.load == 3
    await until(lambda: link.load == 0)
    node.target.gate.set()
    await asyncio.gather(*held)
