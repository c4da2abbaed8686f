"""A request that nobody waits for any more stops at every level, at once, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.e2e.apps import three_levels
from tests.e2e.instances import Instance
from tests.e2e.load import ask, client
from tests.e2e.processes import Usage, title, usage
from tests.e2e.waiting import until_true

from remora.errors import RequestCancelledError, RequestTimeoutError
from remora.handle import DeploymentHandle

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

LEVELS = ("ingress", "child", "grandchild")
#: From the moment the caller gives up until the code of every level has heard of it.
HEARD_S = 0.1


class Notes:
    """What the three levels wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def of(self, key: str) -> dict[tuple[str, str], float]:
        """When each event of each level happened."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return {(level, event): float(at) for level, name, event, at in lines if name == key}

    async def begun(self, key: str, levels: tuple[str, ...] = LEVELS) -> None:
        """Wait until every level works on `key`."""
        wanted = {(level, "began") for level in levels}
        await until_true(lambda: wanted <= set(self.of(key)), f"all levels work on {key}")

    async def stopped(self, key: str, levels: tuple[str, ...] = LEVELS) -> dict[str, float]:
        """Wait until every level was interrupted; returns when each was."""

        def interrupted() -> dict[str, float] | None:
            ends = {
                level: at
                for (level, event), at in self.of(key).items()
                if event not in ("began", "returned")
            }
            return ends if set(levels) <= set(ends) else None

        found = await until_true(interrupted, f"all levels stop working on {key}", 5.0)
        assert found is not None
        return found


Chain = tuple[str, "DeploymentHandle[Any]", Notes]


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes.txt")


@contextlib.asynccontextmanager
async def chain(instance: Instance, notes: Notes) -> AsyncIterator[tuple[str, Any]]:
    """The three levels, their URL and a handle to the first."""
    async with instance.running(three_levels(str(notes.path)), "levels") as url:
        yield url, instance.handle("Ingress", "levels")


def require_quick(stopped: dict[str, float], gave_up: float) -> None:
    late = {level: at - gave_up for level, at in stopped.items() if at - gave_up > HEARD_S}
    assert not late, f"heard of it too late, in seconds: {late}"


async def test_a_cancelled_call_stops_every_level(shared: Instance, notes: Notes) -> None:
    async with chain(shared, notes) as (_, handle):
        response = handle.call.remote("cancelled")
        await notes.begun("cancelled")
        gave_up = time.monotonic()
        response.cancel()
        require_quick(await notes.stopped("cancelled"), gave_up)
        with pytest.raises(RequestCancelledError):
            await response


async def test_a_cancelled_task_stops_the_call_that_it_awaits(
    shared: Instance, notes: Notes
) -> None:
    async with chain(shared, notes) as (_, handle):

        async def work() -> Any:
            return await handle.call.remote("task")

        task = asyncio.create_task(work())
        await notes.begun("task")
        gave_up = time.monotonic()
        task.cancel()
        require_quick(await notes.stopped("task"), gave_up)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_stream_that_is_left_stops_its_generator(shared: Instance, notes: Notes) -> None:
    async with chain(shared, notes) as (_, handle):
        numbers = handle.options(stream=True).numbers.remote("stream")
        async for number in numbers:
            if number == 5:
                break
        gave_up = time.monotonic()
        numbers.cancel()
        require_quick(await notes.stopped("stream", ("ingress",)), gave_up)


async def test_a_timeout_of_a_handle_stops_every_level(shared: Instance, notes: Notes) -> None:
    async with chain(shared, notes) as (_, handle):
        began = time.monotonic()
        with pytest.raises(RequestTimeoutError):
            await handle.options(timeout_s=0.5).call.remote("timeout")
        assert time.monotonic() - began == pytest.approx(0.5, abs=HEARD_S)
        require_quick(await notes.stopped("timeout"), began + 0.5)


async def test_a_timeout_in_a_header_stops_every_level(shared: Instance, notes: Notes) -> None:
    async with chain(shared, notes) as (url, _), client() as session:
        answer = await ask(
            session, f"{url}?key=header", headers={"X-Request-Timeout-Seconds": "0.5"}
        )
        assert answer.status == 408
        assert answer.ended - answer.began == pytest.approx(0.5, abs=HEARD_S)
        require_quick(await notes.stopped("header"), answer.began + 0.5)


async def test_a_client_that_leaves_stops_every_level(shared: Instance, notes: Notes) -> None:
    async with chain(shared, notes) as (url, _), client() as session:
        task = asyncio.create_task(ask(session, f"{url}?key=left"))
        await notes.begun("left")
        gave_up = time.monotonic()
        task.cancel()
        require_quick(await notes.stopped("left"), gave_up)
        # Nothing waits in a queue of a level either: the next request is answered as usual.
        answer = await ask(session, f"{url}?key=next", headers={"X-Request-Timeout-Seconds": "0.2"})
        assert answer.status == 408


async def test_what_is_given_up_in_a_queue_never_starts(shared: Instance, notes: Notes) -> None:
    from tests.e2e.apps import Ingress

    one = Ingress.options(max_ongoing_requests=1).bind(str(notes.path), None)
    async with shared.running(one, "queue"):
        handle = shared.handle("Ingress", "queue").options(stream=True)
        # Again and again, because the one slot changes hands within microseconds.
        for turn in range(30):
            first = handle.numbers.remote(f"first{turn}")
            assert await anext(aiter(first)) == 0
            waiting = [handle.numbers.remote(f"waiting{turn}-{n}") for n in range(10)]
            for response in waiting[:-1]:
                response.cancel()
            first.cancel()
            async with asyncio.timeout(5):
                assert await anext(aiter(waiting[-1])) == 0
            waiting[-1].cancel()
        await notes.stopped("waiting29-9", ("ingress",))
    text = notes.path.read_text()
    for turn in range(30):
        begun = [f" waiting{turn}-{n} " in text for n in range(10)]
        assert begun == [False] * 9 + [True]


# ------------------------------------------------------------------------------- nothing stays

#: Requests of each kind. Together 20,000.
NUM_CANCELLED, NUM_TIMED_OUT, NUM_LEFT = 14_000, 3_000, 3_000
#: Before the first measurement: caches and pools reach their size.
NUM_WARM_UP = 2_000
#: A leak of as little as 200 bytes for each request would be larger.
GROWTH_BYTES = 4_000_000


async def test_nothing_stays_of_20000_abandoned_requests(shared: Instance, notes: Notes) -> None:
    # Most have come as far as the last level when they are given up, and the others anywhere.
    waits = itertools.cycle((0.0, 0.001, 0.003, *[None] * 9))
    numbers = itertools.count()
    async with chain(shared, notes) as (url, handle), client() as session:
        last = shared.handle("Grandchild", "levels")

        async def cancel() -> None:
            wait_s = next(waits)
            if wait_s is None:
                number = next(numbers)
                response = handle.quiet.remote(number)
                await last.arrived.remote(number)
            else:
                response = handle.quiet.remote()
                await asyncio.sleep(wait_s)
            response.cancel()
            with contextlib.suppress(RequestCancelledError):
                await response

        async def time_out() -> None:
            with contextlib.suppress(RequestTimeoutError):
                await handle.options(timeout_s=0.01).quiet.remote()

        async def leave() -> None:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(0.01):
                    await session.get(f"{url}?quiet=1")

        async def abandon(share: float) -> None:
            await many(cancel, int(NUM_CANCELLED * share))
            await many(time_out, int(NUM_TIMED_OUT * share))
            await many(leave, int(NUM_LEFT * share))

        await abandon(NUM_WARM_UP / 20_000)
        await idle(handle)
        before = measure(shared)
        await abandon(1.0)
        await idle(handle)
        with contextlib.suppress(AssertionError):
            await until_true(lambda: not grown(before, measure(shared)), "all is given back", 5.0)
        assert grown(before, measure(shared)) == []
        begun, cancelled = await last.counts.remote()
        assert begun == cancelled
        assert begun > 10_000, "too few came as far as the last level"


async def many(one: Callable[[], Awaitable[None]], number: int) -> None:
    """Do it `number` times, 100 at a time."""
    left = iter(range(number))

    async def work() -> None:
        for _ in left:
            await one()

    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(work())


async def idle(handle: Any) -> None:
    """Wait until the chain takes a request again, behind all that were given up."""
    with pytest.raises(RequestTimeoutError):
        await handle.options(timeout_s=0.3).quiet.remote()


def measure(instance: Instance) -> dict[int, Usage]:
    """What every process of the instance holds."""
    return {pid: found for pid in instance.own() if (found := usage(pid))}


def grown(before: dict[int, Usage], after: dict[int, Usage]) -> list[str]:
    """Which processes hold more than before. Pure but for their titles."""
    told = []
    assert set(before) == set(after), "a process came or went"
    for pid, old in before.items():
        new = after[pid]
        if new.rss_bytes - old.rss_bytes > GROWTH_BYTES:
            told.append(f"{title(pid)}: {old.rss_bytes:,} to {new.rss_bytes:,} bytes")
        if new.num_fds - old.num_fds > 4:
            told.append(f"{title(pid)}: {old.num_fds} to {new.num_fds} descriptors")
        if new.num_threads > old.num_threads:
            told.append(f"{title(pid)}: {old.num_threads} to {new.num_threads} threads")
    return told
