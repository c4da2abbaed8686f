"""Streams through handles: order, windows, early ends, errors, threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.integration.rig import Rig, call, stream, until

from remora.errors import RemoteError, RequestCancelledError
from remora.wire.window import WINDOW_BYTES


class App:
    def __init__(self) -> None:
        self.made = 0
        self.closed = 0
        self.threads: set[threading.Thread] = set()
        self.release = threading.Event()

    async def gen(self, n: int, item: Any = None) -> Any:
        try:
            for i in range(n):
                self.made += 1
                yield i if item is None else item
        finally:
            self.closed += 1

    def plain_gen(self, n: int, item: Any = None) -> Any:
        self.threads.add(threading.current_thread())
        try:
            for i in range(n):
                self.made += 1
                yield i if item is None else item
        finally:
            self.closed += 1

    async def makes_gen(self, n: int) -> Any:
        return self.gen(n)

    def plain_makes_gen(self, n: int) -> Any:
        self.threads.add(threading.current_thread())
        return self.plain_gen(n)

    async def fails(self, after: int) -> Any:
        for i in range(after):
            yield i
        raise LookupError("lost the thread")

    def plain_fails(self, after: int) -> Any:
        yield from range(after)
        raise LookupError("lost the thread")

    def plain_raises(self, name: str) -> Any:
        yield 0
        raise {
            "interrupt": KeyboardInterrupt,
            "generator exit": GeneratorExit,
            "cancelled": asyncio.CancelledError,
            "exit": SystemExit,
        }[name]("of the user's own")

    async def bad_item(self) -> Any:
        yield 1
        yield threading.Lock()

    def plain_bad_item(self) -> Any:
        try:
            yield 1
            yield threading.Lock()
        finally:
            self.closed += 1

    def plain_blocked(self) -> Any:
        try:
            yield 1
            self.release.wait(5)
            yield 2
        finally:
            self.closed += 1

    async def stubborn(self, n: int) -> Any:
        for _ in range(n):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.closed += 1
            self.made += 1
            yield bytes(10_000)

    async def echo(self, x: Any) -> Any:
        return x


GENERATORS = ("gen", "plain_gen", "makes_gen", "plain_makes_gen")


@pytest.mark.parametrize("method", GENERATORS)
@pytest.mark.parametrize("count", (0, 1, 3000))
async def test_items_come_in_order_and_complete(rig: Rig, method: str, count: int) -> None:
    node, router = await rig.pair(App)
    assert [item async for item in stream(router, method, count)] == list(range(count))
    await until(lambda: node.replica.ongoing == 0)


async def test_plain_code_runs_in_a_thread(rig: Rig) -> None:
    node, router = await rig.pair(App)
    assert [item async for item in stream(router, "plain_makes_gen", 2)] == [0, 1]
    assert threading.current_thread() not in node.target.threads


@pytest.mark.parametrize("method", ("gen", "plain_gen"))
@pytest.mark.parametrize("size", (0, 1, 1000, 300_000))
async def test_a_reader_that_never_reads_holds_a_bounded_number_of_bytes(
    rig: Rig, method: str, size: int
) -> None:
    node, router = await rig.pair(App)
    pending = stream(router, method, 10**9, b"x" * size)
    settled = -1
    while settled != node.target.made or settled == 0:
        settled = node.target.made
        await asyncio.sleep(0.05)
    held = sum(len(frame[5]) + 64 for frame in pending._frames)
    assert held <= WINDOW_BYTES + size + 100
    # Another caller of the same replica and connection is not held up.
    assert await call(router, "echo", 1) == 1
    pending.cancel()
    await until(lambda: node.target.closed == 1 and node.replica.ongoing == 0)
    with pytest.raises(RequestCancelledError):
        await pending.next_frame()


@pytest.mark.parametrize("method", ("gen", "plain_gen"))
async def test_a_slow_reader_gets_everything(rig: Rig, method: str) -> None:
    _, router = await rig.pair(App)
    seen = 0
    async for item in stream(router, method, 40, b"y" * 50_000):
        assert len(item) == 50_000
        seen += 1
        await asyncio.sleep(0.001)
    assert seen == 40


@pytest.mark.parametrize("method", ("fails", "plain_fails"))
async def test_items_before_an_error_arrive_and_then_the_error(rig: Rig, method: str) -> None:
    _, router = await rig.pair(App)
    pending = stream(router, method, 3)
    assert [await anext(pending) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="lost the thread") as caught:
        await anext(pending)
    assert "fails" in "".join(caught.value.__notes__)
    # A generator that raised is at its end, also for who asks again.
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(pending), 2)


@pytest.mark.parametrize("method", ("bad_item", "plain_bad_item"))
async def test_an_item_that_cannot_be_pickled_ends_the_stream(rig: Rig, method: str) -> None:
    node, router = await rig.pair(App)
    pending = stream(router, method)
    assert await anext(pending) == 1
    with pytest.raises(TypeError, match="pickle"):
        await anext(pending)
    await until(lambda: node.replica.ongoing == 0)
    if method == "plain_bad_item":
        assert node.target.closed == 1


@pytest.mark.parametrize("method", ("gen", "plain_gen"))
async def test_a_reader_that_stops_early_closes_the_generator(rig: Rig, method: str) -> None:
    node, router = await rig.pair(App)
    pending = stream(router, method, 10**9, b"z" * 100)
    assert await anext(pending) == b"z" * 100
    pending.cancel()
    await until(lambda: node.replica.ongoing == 0)
    # Not sooner than its generator is closed, or its thread would outlive its slot.
    assert node.target.closed == 1
    made = node.target.made
    assert await call(router, "echo", 2) == 2
    assert node.target.made == made


async def test_the_slot_of_a_blocked_plain_generator_is_taken_until_it_ends(rig: Rig) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    pending = stream(router, "plain_blocked")
    assert await anext(pending) == 1
    pending.cancel()
    next_call = call(router, "echo", 1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (node.replica.ongoing, node.target.closed) == (1, 0)
    node.target.release.set()
    assert await next_call == 1
    assert node.target.closed == 1


async def test_a_handler_that_swallows_its_cancellation_waits_for_no_window(rig: Rig) -> None:
    node, router = await rig.pair(App)
    pending = stream(router, "stubborn", 500)
    await anext(pending)
    pending.cancel()
    await until(lambda: node.replica.ongoing == 0)


async def test_many_streams_on_one_connection_share_it(rig: Rig) -> None:
    _, router = await rig.pair(App, max_ongoing=40)

    async def read(n: int) -> int:
        return len([item async for item in stream(router, "gen", n)])

    assert await asyncio.gather(*(read(i) for i in range(40))) == list(range(40))


@pytest.mark.parametrize("name", ("interrupt", "generator exit", "cancelled", "exit"))
async def test_whatever_a_plain_generator_raises_ends_its_stream(rig: Rig, name: str) -> None:
    node, router = await rig.pair(App)
    items = stream(router, "plain_raises", name)
    assert await anext(items) == 0
    with pytest.raises(RemoteError, match="of the user's own"):
        await asyncio.wait_for(anext(items), 5)
    await until(lambda: node.replica.ongoing == 0)
