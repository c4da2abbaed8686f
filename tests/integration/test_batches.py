"""Batched methods of a real replica: over handles, as streams, over HTTP, and when callers leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from tests.integration.http_client import ask
from tests.integration.rig import Node, Rig, call, stream, until

import remora as serve
from remora.errors import RemoraError, RequestCancelledError
from remora.request_context import current


class App:
    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.models: list[str] = []
        self.gate = asyncio.Event()
        self.stopped = 0

    @serve.batch(max_batch_size=4)
    async def double(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        return [ValueError("13 is unlucky") if item == 13 else 2 * item for item in items]

    @serve.batch
    async def held(self, items: list[int]) -> list[int]:
        context = current.get()
        assert context is not None
        self.models.append(context.multiplexed_model_id)
        self.batches.append(items)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return items

    @serve.batch
    async def count(self, items: list[int]) -> AsyncIterator[list[Any]]:
        for step in range(3):
            yield [StopIteration if step == item else step for item in items]

    @serve.batch
    async def short(self, items: list[int]) -> list[int]:
        return items[1:]

    def reconfigure(self, user_config: int) -> None:
        self.double.set_max_batch_size(user_config)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=5, wait_policy="always")
    async def __call__(self, requests: list[Request]) -> list[dict[str, Any]]:
        return [{"path": request.url.path, "batch": len(requests)} for request in requests]


async def made(rig: Rig) -> tuple[Node, Any]:
    return await rig.pair(App, max_ongoing=100)


async def test_calls_that_come_together_run_together(rig: Rig) -> None:
    node, router = await made(rig)
    answers = await asyncio.gather(*(call(router, "double", i) for i in range(10)))
    assert answers == [2 * i for i in range(10)]
    assert node.target.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_errors_reach_those_whom_they_concern(rig: Rig) -> None:
    _, router = await made(rig)
    good, bad = await asyncio.gather(
        call(router, "double", 1),
        call(router, "double", 13),
        return_exceptions=True,
    )
    assert good == 2
    assert isinstance(bad, ValueError)
    with pytest.raises(RemoraError, match="returned 0 results for a batch of 1"):
        await call(router, "short", 1)


async def test_a_batch_holds_one_model_only(rig: Rig) -> None:
    node, router = await made(rig)
    calls = [call(router, "held", i, multiplexed_model_id="ab"[i % 2]) for i in range(4)]
    await until(lambda: node.target.batches)
    node.target.gate.set()
    assert await asyncio.gather(*(each for each in calls)) == [0, 1, 2, 3]
    assert node.target.batches == [[0, 2], [1, 3]]
    assert node.target.models == ["a", "b"]


async def test_a_batch_whose_callers_are_gone_is_stopped_and_one_not_begun_is_not_run(
    rig: Rig,
) -> None:
    node, router = await made(rig)
    running = [call(router, "held", i) for i in range(2)]
    await until(lambda: node.target.batches)
    waiting = call(router, "held", 2)
    await until(lambda: node.replica.ongoing == 3)
    waiting.cancel()
    running[0].cancel()
    await until(lambda: node.replica.ongoing == 1)
    assert node.target.stopped == 0
    running[1].cancel()
    await until(lambda: node.replica.ongoing == 0)
    assert node.target.stopped == 1
    assert node.target.batches == [[0, 1]]
    for each in (*running, waiting):
        with pytest.raises(RequestCancelledError):
            await each


async def test_streams_of_one_batch_end_each_at_its_own_time(rig: Rig) -> None:
    _, router = await made(rig)

    async def read(item: int) -> list[int]:
        return [value async for value in stream(router, "count", item)]

    assert await asyncio.gather(*(read(i) for i in range(4))) == [[], [0], [0, 1], [0, 1, 2]]


async def test_reconfigure_tunes_the_batches_of_its_replica(rig: Rig) -> None:
    node, router = await made(rig)
    await asyncio.to_thread(node.target.reconfigure, 2)
    await asyncio.gather(*(call(router, "double", i) for i in range(4)))
    assert node.target.batches == [[0, 1], [2, 3]]


async def test_http_requests_run_together(rig: Rig) -> None:
    door = await rig.door(await rig.node(App, max_ongoing=100))
    answers = await asyncio.gather(*(ask(door, f"/{i}") for i in range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert [answer.body for answer in answers] == [
        f'{{"path":"/{i}","batch":8}}'.encode() for i in range(8)
    ]
