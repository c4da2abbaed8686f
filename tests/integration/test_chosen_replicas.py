"""Calls to a replica that was chosen before, and to every replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.integration.handles import handle_to, served
from tests.integration.rig import Node, Rig, call, envelope, until
from tests.integration.test_custom_routers import ByArgument, setup_of

from remora.calls.selection import ReplicaSelection
from remora.core.snapshot import DeploymentRoute
from remora.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
    RequestTimeoutError,
)
from remora.handle import DeploymentHandle
from remora.request_context import RequestContext, current
from remora.router.pinned import call_each
from remora.transport.packing import pack_call


class App:
    def __init__(self, name: str = "") -> None:
        self.name = name
        self.gate = asyncio.Event()
        self.seen: list[Any] = []

    async def who(self, x: Any = None) -> list[Any]:
        self.seen.append(x)
        return [self.name, x]

    async def held(self) -> str:
        self.seen.append("held")
        await self.gate.wait()
        return self.name

    async def count(self, n: int) -> AsyncIterator[Any]:
        for i in range(n):
            yield self.name, i

    async def total(self, items: Any) -> int:
        return sum([x async for x in items])

    async def fail_on(self, name: str) -> str:
        if self.name == name:
            raise ZeroDivisionError(name)
        return self.name


async def three(rig: Rig, max_ongoing: int = 2) -> tuple[list[Node], Any]:
    nodes = [await rig.node(App, name, max_ongoing=max_ongoing) for name in "abc"]
    return nodes, await handle_to(rig, *nodes)


def named(nodes: list[Node], selection: ReplicaSelection) -> Node:
    return next(n for n in nodes if n.replica.replica_id == selection.replica_id)


# ------------------------------------------------------------------------ choose and dispatch


async def test_a_call_goes_to_the_chosen_replica(rig: Rig) -> None:
    nodes, handle = await three(rig)
    for i in range(12):
        async with handle.choose_replica() as selection:
            node = named(nodes, selection)
            assert await handle.who.dispatch(selection, i) == [node.target.name, i]


async def test_a_selection_says_which_replica_it_is(rig: Rig) -> None:
    node, handle = await served(rig, App)
    async with handle.choose_replica() as selection:
        assert isinstance(selection, ReplicaSelection)
        assert selection.replica_id == node.replica.replica_id
        assert selection.address == f"unix:{node.path}"
        assert selection.to_dict() == {
            "replica_id": selection.replica_id,
            "node_ip": "127.0.0.1",
            "port": None,
            "node_id": selection.node_id,
            "availability_zone": None,
            "replica_metadata": {},
        }


async def test_a_request_router_sees_what_is_going_to_be_dispatched(rig: Rig) -> None:
    nodes = [await rig.node(App, name) for name in "abc"]
    handle = await handle_to(rig, *nodes, policy=setup_of(ByArgument))
    for name in ("r1", "r2", "r0"):
        later = handle.held.remote("r0")
        async with handle.choose_replica(name, later, x=later) as selection:
            assert selection.replica_id == f"default/App#{name}"
        later.cancel()


async def test_a_slot_is_kept_on_that_replica_alone_and_given_back(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=2)
    async with handle.choose_replica(), handle.choose_replica():
        assert node.replica.ongoing == 2
        late = handle.who.remote("late")
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert node.target.seen == []
    assert await late == ["", "late"]
    await until(lambda: node.replica.ongoing == 0)


async def test_a_slot_becomes_the_call_without_a_gap(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=1)
    async with handle.choose_replica() as selection:
        waiting = handle.who.remote("behind")
        response = handle.held.dispatch(selection)
    await until(lambda: node.target.seen)
    assert node.replica.ongoing == 1
    node.target.gate.set()
    assert await response == ""
    assert await waiting == ["", "behind"]
    assert node.target.seen == ["held", "behind"]
    await until(lambda: node.replica.ongoing == 0)


async def test_streams_and_composed_arguments_can_be_dispatched(rig: Rig) -> None:
    node, handle = await served(rig, App, "a", max_ongoing=2)
    async with handle.choose_replica() as selection:
        stream = handle.options(stream=True).count.dispatch(selection, 3)
        assert [x async for x in stream] == [("a", 0), ("a", 1), ("a", 2)]
    async with handle.choose_replica() as selection:
        items = handle.options(stream=True).count.remote(0)
        assert await handle.total.dispatch(selection, items) == 0
    async with handle.choose_replica() as selection:
        answer = await handle.who.dispatch(selection, handle.who.remote(1))
        assert answer == ["a", ["a", 1]]
    await until(lambda: node.replica.ongoing == 0)


async def test_a_selection_is_good_for_one_call_inside_its_block(rig: Rig) -> None:
    _, handle = await served(rig, App)
    async with handle.choose_replica() as selection:
        await handle.who.dispatch(selection)
        with pytest.raises(RuntimeError, match="dispatched to already"):
            handle.who.dispatch(selection)
    async with handle.choose_replica() as other:
        pass
    with pytest.raises(RuntimeError, match="has ended"):
        handle.who.dispatch(other)


async def test_a_selection_of_another_deployment_is_refused(rig: Rig) -> None:
    _, handle = await served(rig, App)
    stranger: DeploymentHandle[Any] = DeploymentHandle("Other", handle.app_name)
    async with handle.choose_replica() as selection:
        with pytest.raises(ValueError, match=r"default/App.*default/Other"):
            stranger.dispatch(selection)
        with pytest.raises(TypeError, match="ReplicaSelection"):
            handle.dispatch("a")
        # It is still good for its own.
        assert await handle.who.dispatch(selection) == ["", None]


async def test_a_selection_stays_in_its_loop(rig: Rig) -> None:
    _, handle = await served(rig, App)
    async with handle.choose_replica() as selection:
        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(handle.dispatch, selection)
        assert await handle.who.dispatch(selection, 1) == ["", 1]


async def test_a_replica_that_is_gone_is_told(rig: Rig) -> None:
    nodes, handle = await three(rig)
    async with handle.choose_replica() as selection:
        named(nodes, selection).die()
        await until(lambda: selection._slot is not None and selection._slot._error is not None)
        with pytest.raises(ReplicaUnavailableError, match=selection.replica_id):
            await handle.who.dispatch(selection)


async def test_a_full_deployment_makes_the_choice_wait(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=1)
    async with handle.choose_replica():
        with pytest.raises(RequestTimeoutError):
            async with handle.options(timeout_s=0.05).choose_replica():
                pass
    await until(lambda: node.replica.ongoing == 0)
    async with handle.choose_replica() as selection:
        assert await handle.who.dispatch(selection, 2) == ["", 2]


async def test_the_queue_limit_holds_for_choices(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    handle = await handle_to(rig, node, max_queued_requests=0)
    async with handle.choose_replica():
        with pytest.raises(BackPressureError):
            async with handle.choose_replica():
                pass


async def test_a_slot_ends_with_its_deadline(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=1)
    async with handle.options(timeout_s=0.05).choose_replica() as selection:
        await until(lambda: node.replica.ongoing == 0)
        with pytest.raises(RequestTimeoutError):
            await handle.who.dispatch(selection)


async def test_a_slot_ends_with_its_caller(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=1)
    async with handle.choose_replica():
        assert node.replica.ongoing == 1
        handle._router.disconnect()
        await until(lambda: node.replica.ongoing == 0)


async def test_a_slot_ends_with_the_request_that_reserved_it(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=1)
    context = RequestContext("r")
    current.set(context)
    async with handle.choose_replica() as selection:
        context.cancel_children()
        await until(lambda: node.replica.ongoing == 0)
        with pytest.raises(RequestCancelledError):
            await handle.who.dispatch(selection)
    assert not context.children


async def test_a_cancelled_choice_leaves_no_slot(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=1)

    async def choose() -> None:
        async with handle.choose_replica():
            await asyncio.Event().wait()

    for turns in (0, 1, 2, 50):
        task = asyncio.ensure_future(choose())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: node.replica.ongoing == 0)


async def test_a_dispatch_whose_argument_fails_gives_the_slot_back(rig: Rig) -> None:
    node, handle = await served(rig, App, "a", max_ongoing=2)
    async with handle.choose_replica() as selection:
        with pytest.raises(ZeroDivisionError):
            await handle.who.dispatch(selection, handle.fail_on.remote("a"))
        await until(lambda: node.replica.ongoing == 0)
    async with handle.choose_replica() as selection:
        response = handle.who.dispatch(selection, 1)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await response
        await until(lambda: node.replica.ongoing == 0)


async def test_a_drain_waits_for_a_slot_and_for_its_call(rig: Rig) -> None:
    node, handle = await served(rig, App, max_ongoing=2)
    async with handle.choose_replica() as selection:
        draining = asyncio.ensure_future(node.replica.drain())
        await until(lambda: node.replica.turns_away)
        assert await handle.who.dispatch(selection, "last") == ["", "last"]
    await asyncio.wait_for(draining, 5)


# -------------------------------------------------------------------------------- broadcast


async def test_a_broadcast_reaches_every_replica(rig: Rig) -> None:
    nodes, handle = await three(rig)
    response = handle.broadcast("who", 7)
    assert sorted(await response.results_async()) == [["a", 7], ["b", 7], ["c", 7]]
    assert await response.results_async() == await response.results_async()
    assert [node.target.seen for node in nodes] == [[7], [7], [7]]


async def test_a_broadcast_waits_for_room_on_each_replica(rig: Rig) -> None:
    nodes, handle = await three(rig, max_ongoing=1)
    busy = [handle.held.remote() for _ in nodes]
    await until(lambda: all(node.target.seen for node in nodes))
    response = handle.broadcast("who")
    with pytest.raises(TimeoutError, match="runs on"):
        await response.results_async(timeout_s=0.01)
    for node in nodes:
        node.target.gate.set()
    assert sorted(x[0] for x in await response.results_async(timeout_s=5)) == ["a", "b", "c"]
    await asyncio.gather(*(r._wait() for r in busy))


async def test_a_broadcast_turned_away_by_other_callers_comes_again(rig: Rig) -> None:
    node = await rig.node(App, "a", max_ongoing=1)
    other = await handle_to(rig, node)
    held = other.held.remote()
    await until(lambda: node.target.seen)
    handle = await handle_to(rig, node)
    response = handle.broadcast("who", 1)
    await until(lambda: node.replica.turned_away)
    node.target.gate.set()
    assert await response.results_async() == [["a", 1]]
    await held


async def test_failures_are_raised_or_returned(rig: Rig) -> None:
    _, handle = await three(rig)
    with pytest.raises(ZeroDivisionError):
        await handle.broadcast("fail_on", "b").results_async()
    found = await handle.broadcast("fail_on", "b").results_async(return_exceptions=True)
    assert [x if isinstance(x, str) else type(x) for x in found] == ["a", ZeroDivisionError, "c"]


async def test_a_broadcast_is_cancelled_everywhere(rig: Rig) -> None:
    nodes, handle = await three(rig)
    response = handle.broadcast("held")
    await until(lambda: all(node.replica.ongoing for node in nodes))
    response.cancel()
    assert response.cancelled()
    with pytest.raises(RequestCancelledError):
        await response.results_async()
    await until(lambda: not any(node.replica.ongoing for node in nodes))


async def test_broadcasts_given_up_are_not_kept_behind_a_busy_replica(rig: Rig) -> None:
    node, router = await rig.pair(App, "a", max_ongoing=1)
    running = call(router, "held")
    await until(lambda: node.target.seen)
    kept, *given_up = [
        pending
        for _ in range(300)
        for pending in call_each(router, envelope("who"), pack_call((), {})[1])
    ]
    for pending in given_up:
        pending.cancel()
    (link,) = router.links
    assert router.num_pinned == 1
    assert len(link.pinned._calls) < 100
    node.target.gate.set()
    assert [await running, await kept] == ["a", ["a", None]]
    assert router.num_pinned == 0


async def test_whoever_awaits_a_broadcast_and_is_cancelled_cancels_it(rig: Rig) -> None:
    nodes, handle = await three(rig)
    waiting = asyncio.ensure_future(handle.broadcast("held").results_async())
    await until(lambda: all(node.replica.ongoing for node in nodes))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not any(node.replica.ongoing for node in nodes))


async def test_a_broadcast_ends_with_its_deadline_and_its_request(rig: Rig) -> None:
    nodes, handle = await three(rig)
    with pytest.raises(RequestTimeoutError):
        await handle.options(timeout_s=0.05).broadcast("held").results_async()
    await until(lambda: not any(node.replica.ongoing for node in nodes))
    context = RequestContext("r")
    current.set(context)
    response = handle.broadcast("held")
    await until(lambda: all(node.replica.ongoing for node in nodes))
    context.cancel_children()
    with pytest.raises(RequestCancelledError):
        await response.results_async()


async def test_a_replica_that_leaves_before_it_has_room_is_told(rig: Rig) -> None:
    nodes, handle = await three(rig, max_ongoing=1)
    busy = [handle.held.remote() for _ in nodes]
    await until(lambda: all(node.target.seen for node in nodes))
    response = handle.broadcast("who")
    await asyncio.sleep(0)
    handle._router.update(rig.route(*nodes[:2]))
    for node in nodes:
        node.target.gate.set()
    found = await response.results_async(return_exceptions=True)
    assert [type(x) for x in found] == [list, list, ReplicaUnavailableError]
    await asyncio.gather(*(r._wait() for r in busy))


async def test_a_broadcast_to_no_replica_is_empty_or_says_why(rig: Rig) -> None:
    _, handle = await three(rig)
    handle._router.update(DeploymentRoute((), 1))
    assert await handle.broadcast("who").results_async() == []
    handle._router.update(DeploymentRoute((), 1, unavailable="it failed"))
    with pytest.raises(DeploymentUnavailableError, match="it failed"):
        await handle.broadcast("who").results_async()


async def test_a_broadcast_wants_a_name_and_no_stream(rig: Rig) -> None:
    _, handle = await three(rig)
    with pytest.raises(TypeError, match="name of a method"):
        handle.broadcast(handle.who)
    with pytest.raises(TypeError, match="stream"):
        handle.broadcast("total", (i for i in range(3)))
    with pytest.raises(RuntimeError, match="results_async"):
        handle.broadcast("who").results()
    with pytest.raises(TypeError, match="generator"):
        await handle.broadcast("count", 3).results_async()


async def test_a_script_broadcasts_from_its_thread(rig: Rig) -> None:
    _, handle = await three(rig)
    from remora.router import process as routing

    def script() -> Any:
        return handle.broadcast("who", 1).results(timeout_s=5)

    routing.use_own_loop(asyncio.get_running_loop())
    try:
        assert [x[0] for x in await asyncio.to_thread(script)] == ["a", "b", "c"]
    finally:
        routing._process.own_loop = None
