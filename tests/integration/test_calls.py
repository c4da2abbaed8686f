"""Handle calls end to end: answers, errors, limits, queues, cancellation, deadlines."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
from tests.integration.rig import Rig, call, envelope, stream, until

from remora.core.snapshot import DeploymentRoute
from remora.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    MethodNotFoundError,
    RemoteError,
    RequestCancelledError,
    RequestTimeoutError,
)
from remora.request_context import current
from remora.transport.packing import pack_call
from remora.wire.codec import pack
from remora.wire.framing import encode
from remora.wire.messages import FrameKind
from remora.wire.parcel import raw


class OddError(Exception):
    pass


class NeedsTwoError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class App:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.thread_gate = threading.Event()
        self.running = 0
        self.most = 0
        self.order: list[Any] = []
        self.stopped: list[Any] = []
        self.child_router: Any = None

    async def echo(self, x: Any) -> Any:
        return x

    def plain(self, x: Any) -> Any:
        return x

    async def held(self, x: Any) -> Any:
        self.order.append(x)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
            return x
        except asyncio.CancelledError:
            self.stopped.append(x)
            raise
        finally:
            self.running -= 1

    def plain_held(self) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        self.thread_gate.wait(5)
        self.running -= 1
        return 1

    def plain_held_gen(self) -> Any:
        yield self.plain_held()

    async def cleans_up(self) -> None:
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.append("begun")
            await self.gate.wait()
            self.stopped.append("cleaned up")

    async def parent(self, x: Any) -> Any:
        context = current.get()
        assert context is not None
        child = call(self.child_router, "held", x)
        context.add_child(child)
        self.order.append(x)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped.append(x)
            raise

    async def nap(self, seconds: float) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1

    async def fail(self, kind: str) -> None:
        if kind == "odd":
            raise OddError("so odd")
        if kind == "two":
            raise NeedsTwoError(1, 2)
        if kind == "lock":
            raise OddError(threading.Lock())
        if kind == "mute":
            raise MuteError
        if kind == "surrogate":
            raise OddError("half a \udc80 character")
        if kind == "exit":
            raise SystemExit(3)
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "generator exit":
            raise GeneratorExit
        if kind == "local":

            class LocalError(Exception):
                pass

            raise LocalError("made here")

    async def unpicklable(self) -> Any:
        return threading.Lock()

    async def gen(self, n: int) -> Any:
        for i in range(n):
            yield i

    def plain_gen(self, n: int) -> Any:
        yield from range(n)


async def test_answers_values_of_all_kinds(rig: Rig) -> None:
    _, router = await rig.pair(App)
    for value in (None, 1, "text", b"x" * 200_000, {"a": [1, 2]}, (1,)):
        assert await call(router, "echo", value) == value
        assert await call(router, "plain", value) == value


async def test_arrays_travel_both_ways(rig: Rig) -> None:
    _, router = await rig.pair(App)
    array: Any = np.arange(100_000, dtype=np.float64).reshape(1000, 100)
    back = await call(router, "echo", {"a": array, "b": [array[:10]], "c": array[:, ::2]})
    np.testing.assert_array_equal(back["a"], array)
    np.testing.assert_array_equal(back["b"][0], array[:10])
    np.testing.assert_array_equal(back["c"], array[:, ::2])


@pytest.mark.parametrize(
    ("kind", "expected", "text"),
    [
        ("odd", OddError, "so odd"),
        ("two", NeedsTwoError, "3"),
        ("lock", RemoteError, "OddError: <unlocked"),
        ("surrogate", OddError, "half a"),
        ("exit", RemoteError, "SystemExit: 3"),
        ("interrupt", RemoteError, "KeyboardInterrupt"),
        ("local", Exception, "made here"),
    ],
)
async def test_errors_come_back(
    rig: Rig, kind: str, expected: type[BaseException], text: str
) -> None:
    node, router = await rig.pair(App)
    with pytest.raises(expected) as caught:
        await asyncio.wait_for(call(router, "fail", kind), 5)
    if text:
        assert text in str(caught.value)
        assert "in fail" in "".join(caught.value.__notes__)
    await until(lambda: node.replica.ongoing == 0)
    assert await call(router, "echo", 1) == 1


@pytest.mark.parametrize(
    ("kind", "expected"), [("mute", MuteError), ("generator exit", RemoteError)]
)
async def test_errors_that_cannot_be_described_come_back_too(
    rig: Rig, kind: str, expected: type[Exception]
) -> None:
    node, router = await rig.pair(App)
    with pytest.raises(expected):
        await asyncio.wait_for(_wait(call(router, "fail", kind)), 5)
    await until(lambda: node.replica.ongoing == 0)


async def test_unpicklable_answer_is_an_error(rig: Rig) -> None:
    _, router = await rig.pair(App)
    with pytest.raises(TypeError, match=r"What \S+\.unpicklable returns cannot be pickled: .*lock"):
        await call(router, "unpicklable")


async def test_unknown_method_is_named(rig: Rig) -> None:
    _, router = await rig.pair(App)
    with pytest.raises(MethodNotFoundError, match=r"ecco.*echo"):
        await call(router, "ecco", 1)


@pytest.mark.parametrize("method", ("gen", "plain_gen"))
async def test_generator_called_for_one_answer_is_a_type_error(rig: Rig, method: str) -> None:
    _, router = await rig.pair(App)
    with pytest.raises(TypeError, match="stream=True"):
        await call(router, method, 3)


@pytest.mark.parametrize("method", ("echo", "plain"))
async def test_plain_method_called_for_a_stream_is_a_type_error(rig: Rig, method: str) -> None:
    _, router = await rig.pair(App)
    with pytest.raises(TypeError, match="no generator"):
        await anext(stream(router, method, 3))


async def test_never_more_than_max_ongoing_with_three_routers(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=3)
    routers = [await rig.routed(node) for _ in range(3)]
    calls = [call(router, "nap", 0.0005 * (i % 4)) for i in range(100) for router in routers]
    await asyncio.wait_for(asyncio.gather(*map(_wait, calls)), 10)
    assert node.target.most == 3
    assert node.replica.ongoing == 0
    assert all(router.num_waiting == 0 for router in routers)


async def _wait(pending: Any) -> Any:
    return await pending


async def test_a_turned_away_router_is_woken_without_polling(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    first, second = await rig.routed(node), await rig.routed(node)
    holding = call(first, "held", "a")
    await until(lambda: node.target.running == 1)
    waiting = call(second, "echo", "b")
    await until(lambda: second.num_waiting == 1 and node.replica.turned_away)
    loop = asyncio.get_running_loop()
    freed_at = loop.time()
    node.target.gate.set()
    assert await holding == "a"
    assert await waiting == "b"
    assert loop.time() - freed_at < 0.1


async def test_few_refusals_for_each_answer_when_many_routers_wait(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=20)
    routers = [await rig.routed(node) for _ in range(3)]
    calls = [call(router, "nap", 0.002) for _ in range(200) for router in routers]
    await asyncio.wait_for(asyncio.gather(*map(_wait, calls)), 10)
    assert node.target.most == 20
    refused = sum(router.counts.retried["turned_away"] for router in routers)
    assert refused <= 2.2 * len(calls)


async def test_waiting_calls_are_served_in_order(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    first, second = await rig.routed(node), await rig.routed(node, max_ongoing_requests=3)
    holding = call(first, "held", "x")
    await until(lambda: node.target.running == 1)
    # Three are sent at once and turned away at once; the others have waited all along.
    calls = [call(second, "held", i) for i in range(8)]
    await until(lambda: second.num_waiting == 8)
    node.target.gate.set()
    await asyncio.wait_for(asyncio.gather(holding_wait(holding), *map(_wait, calls)), 5)
    assert node.target.order == ["x", *range(8)]


async def holding_wait(pending: Any) -> Any:
    return await pending


async def test_full_queue_is_refused_with_its_numbers(rig: Rig) -> None:
    node = await rig.node(App, max_ongoing=1)
    router = await rig.routed(
        node, max_queued_requests=2, backpressure_status=429, backpressure_retry_after_s=7
    )
    calls = [call(router, "held", i) for i in range(3)]
    await until(lambda: node.target.running == 1)
    with pytest.raises(BackPressureError) as caught:
        await call(router, "held", 3)
    assert (caught.value.num_queued_requests, caught.value.max_queued_requests) == (2, 2)
    assert (caught.value.http_status, caught.value.retry_after_s) == (429, 7)
    calls[1].cancel()
    late = call(router, "held", 4)
    node.target.gate.set()
    assert [await calls[0], await calls[2], await late] == [0, 2, 4]
    assert node.target.order == [0, 2, 4]


async def test_cancelled_while_queued_never_starts(rig: Rig) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    first, second = call(router, "held", 1), call(router, "held", 2)
    await until(lambda: node.target.running == 1)
    second.cancel()
    second.cancel()
    with pytest.raises(RequestCancelledError):
        await second
    assert router.num_waiting == 0
    node.target.gate.set()
    assert await first == 1
    assert await call(router, "echo", 3) == 3
    assert node.target.order == [1]


async def test_cancelled_before_its_first_step_never_starts(rig: Rig) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    connection = next(iter(node.replica._connections))
    body = raw(pack_call((1,), {})[1])
    # Both in one read: the handler's task is made, and cancelled before it runs.
    connection.data_received(
        encode(FrameKind.REQUEST, 1000, pack(envelope("held")), body)
        + encode(FrameKind.CANCEL, 1000)
    )
    assert node.replica.ongoing == 1
    await until(lambda: node.replica.ongoing == 0)
    assert node.target.order == []
    assert work(node) == []
    assert await asyncio.wait_for(_wait(call(router, "echo", 2)), 5) == 2


async def test_cancellation_stops_handler_and_its_children_soon(rig: Rig) -> None:
    parent, router = await rig.pair(App)
    child, child_router = await rig.pair(App)
    parent.target.child_router = child_router
    cancelled = call(router, "parent", "p")
    await until(lambda: child.target.running == 1)
    began = time.perf_counter()
    cancelled.cancel()
    await until(lambda: parent.target.stopped and child.target.stopped)
    assert time.perf_counter() - began < 0.1
    await until(lambda: parent.replica.ongoing == child.replica.ongoing == 0)


async def test_the_task_that_awaits_a_call_cancels_it(rig: Rig) -> None:
    node, router = await rig.pair(App)
    task = asyncio.create_task(_wait(call(router, "held", 1)))
    await until(lambda: node.target.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: node.target.stopped == [1])


async def test_awaiting_again_what_was_given_up_says_so(rig: Rig) -> None:
    node, router = await rig.pair(App)
    pending = call(router, "held", 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await pending
    for _ in range(2):
        with pytest.raises(RequestCancelledError):
            await pending
    await until(lambda: node.replica.ongoing == 0)


async def test_a_cancelled_task_cancels_no_other_that_awaits_the_same_call(rig: Rig) -> None:
    node, router = await rig.pair(App)
    pending = call(router, "held", 1)
    first, second = (asyncio.create_task(_wait(pending)) for _ in range(2))
    await until(lambda: node.target.running == 1)
    first.cancel()
    with pytest.raises(RequestCancelledError):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_deadline_ends_running_handler_and_its_children(rig: Rig) -> None:
    parent, router = await rig.pair(App)
    child, child_router = await rig.pair(App)
    parent.target.child_router = child_router
    began = time.perf_counter()
    with pytest.raises(RequestTimeoutError):
        await call(router, "parent", "p", timeout_s=0.05)
    await until(lambda: parent.target.stopped and child.target.stopped)
    assert 0.05 <= time.perf_counter() - began < 0.15


async def test_deadline_ends_queued_call(rig: Rig) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    first = call(router, "held", 1)
    await until(lambda: node.target.running == 1)
    with pytest.raises(RequestTimeoutError):
        await call(router, "held", 2, timeout_s=0.02)
    assert router.num_waiting == 0
    node.target.gate.set()
    assert await first == 1
    assert node.target.order == [1]


async def test_remaining_time_travels(rig: Rig) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    first = call(router, "held", 1)
    second = call(router, "echo", 1, timeout_s=5.0)
    await asyncio.sleep(0.02)
    node.target.gate.set()
    await first
    await second
    assert second.envelope.timeout_s is not None
    assert second.envelope.timeout_s < 4.99


async def test_a_cancelled_plain_function_keeps_its_slot_until_it_ends(rig: Rig) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    first = call(router, "plain_held")
    await until(lambda: node.target.running == 1)
    first.cancel()
    second = call(router, "plain", 2)
    with pytest.raises(RequestCancelledError):
        await first
    await until(lambda: node.replica.ongoing == 0 or any(map(asyncio.Task.cancelling, work(node))))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (node.replica.ongoing, node.target.running, router.num_waiting) == (1, 1, 1)
    node.target.thread_gate.set()
    assert await second == 2
    await until(lambda: node.replica.ongoing == 0)


@pytest.mark.parametrize("method", ["plain_held", "plain_held_gen"])
async def test_a_slot_is_kept_however_often_its_plain_function_is_cancelled(
    rig: Rig, method: str
) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    make = stream if method.endswith("gen") else call
    cancelled = make(router, method)
    await until(lambda: node.target.running == 1)
    (task,) = tasks(node)
    cancelled.cancel()
    await until(task.cancelling)
    # The caller goes altogether, and something else wants the request to end as well.
    await cut(node)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (node.replica.ongoing, node.target.running) == (1, 1)
    node.target.thread_gate.set()
    await until(lambda: node.replica.ongoing == 0)


async def test_a_handler_that_cleans_up_is_not_cancelled_again(rig: Rig) -> None:
    node, router = await rig.pair(App)
    cancelled = call(router, "cleans_up")
    await until(lambda: node.target.running == 1)
    cancelled.cancel()
    await until(lambda: node.target.stopped)
    await cut(node)
    node.target.gate.set()
    await until(lambda: node.replica.ongoing == 0)
    assert node.target.stopped == ["begun", "cleaned up"]


async def cut(node: Any) -> None:
    old = set(node.replica._connections)
    for connection in old:
        connection._transport.abort()
    await until(lambda: not old & node.replica._connections)


def tasks(node: Any) -> list[Any]:
    return [getattr(one, "task", one) for one in work(node)]


def work(node: Any) -> list[Any]:
    return [task for connection in node.replica._connections for task in connection._work.values()]


async def test_unavailable_deployment_refuses_at_once(rig: Rig) -> None:
    router = rig.router()
    waiting = call(router, "echo", 1)
    route = DeploymentRoute((), 5, unavailable="the constructor fails")
    router.update(route)
    for pending in (waiting, call(router, "echo", 2)):
        with pytest.raises(DeploymentUnavailableError, match="the constructor fails"):
            await pending
    assert router.num_waiting == 0


async def test_random_cancels_and_failures_lose_no_wake_up(rig: Rig) -> None:
    import random

    rng = random.Random(7)
    nodes = [await rig.node(App, max_ongoing=2) for _ in range(2)]
    routers = [await rig.routed(*nodes) for _ in range(3)]

    async def one(i: int) -> str:
        router = rng.choice(routers)
        pending = call(router, "nap", rng.random() * 0.003, timeout_s=rng.choice((None, 10.0)))
        fate = rng.random()
        if fate < 0.2:
            asyncio.get_running_loop().call_later(rng.random() * 0.05, pending.cancel)
        try:
            await pending
        except RequestCancelledError:
            return "cancelled"
        return "ok"

    ends = await asyncio.wait_for(asyncio.gather(*(one(i) for i in range(600))), 15)
    assert set(ends) == {"ok", "cancelled"}
    await until(lambda: all(node.replica.ongoing == 0 for node in nodes))
    assert all(router.num_waiting == 0 and not router.waiting._calls for router in routers)
    assert all(node.target.most <= 2 for node in nodes)
    for router in routers:
        assert all(link.outstanding == 0 for link in router.members.links.values())
        assert call_count(router) == 0
    assert [await call(router, "echo", 1) for router in routers] == [1, 1, 1]


def call_count(router: Any) -> int:
    return sum(len(link.channel._sinks) for link in router.members.links.values())


class Together:
    """Answers its calls all in one turn of the loop."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self) -> None:
        await self.event.wait()

    async def release(self) -> None:
        self.event.set()


async def test_answers_of_one_turn_leave_no_load_behind(rig: Rig) -> None:
    node, router = await rig.pair(Together, max_ongoing=20)
    waiting = [call(router, "wait") for _ in range(10)]
    await until(lambda: node.replica.ongoing == 10)
    await call(router, "release")
    await asyncio.gather(*waiting)
    (link,) = router.members.links.values()
    assert (link.outstanding, link.load) == (0, 0)
    await until(lambda: node.replica.ongoing == 0)
