"""Streams among the arguments of a call: generators and streamed answers of other calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.integration.handles import handle_to, served, turns
from tests.integration.rig import Rig, until

from remora.errors import ReplicaDiedError, RequestCancelledError
from remora.wire.window import WINDOW_BYTES


class SourceError(Exception):
    pass


class Sink:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.got: list[Any] = []
        self.kept: Any = None

    async def total(self, items: Any, *, start: int = 0) -> int:
        async for item in items:
            self.got.append(item)
            start += item
        return start

    def plain_total(self, items: Any) -> int:
        try:
            return sum(items)
        except RequestCancelledError as error:
            self.got.append(error)
            raise

    def plain_doubled(self, items: Any) -> Iterator[int]:
        for item in items:
            yield 2 * item

    async def two(self, one: Any, *, other: Any) -> list[Any]:
        return [[x async for x in one], [x async for x in other]]

    async def doubled(self, items: Any) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def unread(self, items: Any) -> str:
        return "done"

    async def first(self, items: Any) -> Any:
        return await anext(items)

    async def first_and_wait(self, items: Any) -> Any:
        found = await anext(items)
        await items.aclose()
        await self.gate.wait()
        return [found, [x async for x in items]]

    async def waits_first(self, items: Any) -> int:
        found = await anext(items)
        await self.gate.wait()
        return found + sum([x async for x in items])  # type: ignore[no-any-return]

    async def keeps(self, items: Any) -> None:
        self.kept = items
        await anext(items)

    async def catches(self, items: Any) -> list[Any]:
        got = []
        try:
            async for item in items:
                got.append(item)  # noqa: PERF401 - what came before the error counts
        except SourceError as error:
            got.append(str(error))
        return got


class Source:
    """An async generator's life, seen from outside."""

    def __init__(self, count: int, size: int = 0, fail_at: int | None = None) -> None:
        self.made = 0
        self.closed = asyncio.Event()
        self._count = count
        self._size = size
        self._fail_at = fail_at

    async def items(self) -> AsyncIterator[Any]:
        try:
            for i in range(self._count):
                if i == self._fail_at:
                    raise SourceError(f"no item {i}")
                self.made += 1
                yield b"x" * self._size if self._size else i
        finally:
            self.closed.set()


def plain(n: int) -> Iterator[int]:
    yield from range(n)


class Countdown:
    """An iterable that is no generator."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> int:
        if self.n == 0:
            raise StopAsyncIteration
        self.n -= 1
        return self.n


async def test_generators_and_iterables_arrive_as_streams(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    assert await handle.total.remote(Source(500).items()) == sum(range(500))
    assert await handle.total.remote(plain(500), start=1) == sum(range(500)) + 1
    assert await handle.total.remote(items=Countdown(4)) == 6
    assert await handle.two.remote(Countdown(2), other=plain(3)) == [[1, 0], [0, 1, 2]]
    assert await handle.total.remote(Source(0).items()) == 0


async def test_a_plain_method_reads_a_stream_in_its_thread(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    assert await handle.plain_total.remote(Source(300).items()) == sum(range(300))


async def test_streams_go_both_ways_at_once(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    answers = handle.options(stream=True).doubled.remote(Source(300).items())
    assert [x async for x in answers] == [2 * i for i in range(300)]


async def test_a_streamed_answer_goes_on_into_another_call(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    streaming = handle.options(stream=True)
    assert await handle.total.remote(streaming.count.remote(200)) == sum(range(200))
    chain = streaming.doubled.remote(streaming.doubled.remote(streaming.count.remote(5)))
    assert [x async for x in chain] == [0, 4, 8, 12, 16]


async def test_a_script_streams_from_its_thread(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    loop_of_rig = asyncio.get_running_loop()
    thread_names: set[str] = set()

    def watched() -> Iterator[int]:
        for i in range(50):
            thread_names.add(threading.current_thread().name)
            yield i

    def script() -> Any:
        return handle.total.remote(watched()).result(5)

    from remora.router import process as routing

    routing.use_own_loop(loop_of_rig)
    try:
        assert await asyncio.to_thread(script) == sum(range(50))
    finally:
        routing._process.own_loop = None
    assert all(name.startswith("remora-argument") for name in thread_names)


async def test_nothing_is_pulled_before_the_callee_asks(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    source = Source(10)
    assert await handle.unread.remote(source.items()) == "done"
    assert source.made == 0


async def test_a_source_runs_no_further_ahead_than_the_window(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    size = 10_000
    source = Source(200, size)
    response = handle.waits_first.remote(source.items())
    await until(lambda: source.made * size >= WINDOW_BYTES)
    for _ in range(50):
        await asyncio.sleep(0)
    assert source.made * size <= WINDOW_BYTES + 2 * size
    assert not source.closed.is_set()
    response.cancel()
    await asyncio.wait_for(source.closed.wait(), 5)


async def test_an_error_of_the_source_arrives_behind_its_items(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    assert await handle.catches.remote(Source(5, fail_at=2).items()) == [0, 1, "no item 2"]
    with pytest.raises(SourceError, match="no item 3"):
        await handle.total.remote(Source(5, fail_at=3).items())


async def test_an_item_that_cannot_be_pickled_fails_the_stream(rig: Rig) -> None:
    _, handle = await served(rig, Sink)

    async def locks() -> AsyncIterator[Any]:
        yield threading.Lock()

    with pytest.raises(TypeError, match="pickle"):
        await handle.total.remote(locks())


async def test_the_end_of_the_method_closes_the_source(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    source = Source(10**9)
    assert await handle.first.remote(source.items()) == 0
    await asyncio.wait_for(source.closed.wait(), 5)


async def test_a_method_closes_a_stream_early_and_goes_on(rig: Rig) -> None:
    node, handle = await served(rig, Sink)
    source = Source(10**9)
    response = handle.first_and_wait.remote(source.items())
    await asyncio.wait_for(source.closed.wait(), 5)
    node.target.gate.set()
    assert await response == [0, []]


async def test_a_stream_is_over_when_its_request_is(rig: Rig) -> None:
    node, handle = await served(rig, Sink)
    await handle.keeps.remote(Source(10**9).items())
    assert [x async for x in node.target.kept] == []


async def test_cancelling_the_call_closes_the_source(rig: Rig) -> None:
    node, handle = await served(rig, Sink)
    source = Source(10**9)
    response = handle.waits_first.remote(source.items())
    await until(lambda: source.made > 0)
    response.cancel()
    with pytest.raises(RequestCancelledError):
        await response
    await asyncio.wait_for(source.closed.wait(), 5)
    await until(lambda: node.replica.ongoing == 0)


async def endless_wait() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


@pytest.mark.parametrize("how", ["cancelled", "caller gone"])
async def test_a_plain_method_hears_that_no_more_of_its_stream_comes(rig: Rig, how: str) -> None:
    node, handle = await served(rig, Sink, max_ongoing=1)
    response = handle.plain_total.remote(endless_wait())
    await until(lambda: node.replica.ongoing == 1)
    if how == "cancelled":
        response.cancel()
    else:
        for connection in list(node.replica._connections):
            assert connection._transport is not None
            connection._transport.abort()
    await until(lambda: node.replica.ongoing == 0)
    # It is an error for the method: what came was not all.
    assert [type(found) for found in node.target.got] in ([], [RequestCancelledError])
    with pytest.raises((RequestCancelledError, ReplicaDiedError)):
        await response
    assert await handle.total.remote(plain(3)) == 3


async def test_a_stream_that_breaks_off_is_no_end_for_a_plain_method(rig: Rig) -> None:
    node, handle = await served(rig, Sink)
    source = Source(3, fail_at=None)
    gate = asyncio.Event()

    async def some() -> AsyncIterator[int]:
        async for item in source.items():
            yield item
        gate.set()
        await asyncio.Event().wait()

    response = handle.plain_total.remote(some())
    await gate.wait()
    response.cancel()
    await until(lambda: node.replica.ongoing == 0)
    assert [type(found) for found in node.target.got] == [RequestCancelledError]


async def test_a_plain_generator_hears_that_no_more_of_its_stream_comes(rig: Rig) -> None:
    node, handle = await served(rig, Sink, max_ongoing=1)
    answers = handle.options(stream=True).plain_doubled.remote(endless_wait())
    assert await anext(answers) == 2
    answers.cancel()
    await until(lambda: node.replica.ongoing == 0)


async def test_a_source_cleans_up_in_peace_when_the_call_ends_meanwhile(rig: Rig) -> None:
    _, handle = await served(rig, Sink)
    cleaning, cleaned = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await turns()
            cleaned.set()

    response = handle.first_and_wait.remote(source())
    await cleaning.wait()
    response.cancel()
    await asyncio.wait_for(cleaned.wait(), 5)


async def test_a_replica_that_dies_closes_the_source(rig: Rig) -> None:
    node, handle = await served(rig, Sink)
    source = Source(10**9)
    response = handle.waits_first.remote(source.items())
    await until(lambda: source.made > 0)
    node.die()
    with pytest.raises(Exception, match="died"):
        await response
    await asyncio.wait_for(source.closed.wait(), 5)


async def test_a_call_with_a_stream_that_was_turned_away_goes_elsewhere(rig: Rig) -> None:
    full = await rig.node(Sink, max_ongoing=1)
    free = await rig.node(Sink, max_ongoing=1)
    handle = await handle_to(rig, full, free)
    blocked = [handle.waits_first.remote(Source(3).items()) for _ in range(2)]
    await until(lambda: full.replica.ongoing + free.replica.ongoing == 2)
    waiting = handle.total.remote(Source(20).items())
    full.target.gate.set()
    free.target.gate.set()
    assert await waiting == sum(range(20))
    assert await asyncio.gather(*(r._wait() for r in blocked)) == [3, 3]


@pytest.mark.parametrize("place", ["1", "'other'"])
async def test_a_stream_inside_another_argument_is_refused_with_the_reason(
    rig: Rig, place: str
) -> None:
    _, handle = await served(rig, Sink)
    inside = [(x for x in (1, 2))]
    response = handle.two.remote(1, inside) if place == "1" else handle.two.remote(1, other=inside)
    with pytest.raises(TypeError, match="not inside a list, dict or object") as caught:
        await response
    assert str(caught.value).startswith(f"Argument {place} of")
    assert ".two cannot be pickled" in str(caught.value)
