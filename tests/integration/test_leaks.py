"""Whatever becomes of requests, nothing of them stays behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from tests.integration.rig import Door, Node, Rig, call, stream, until

from remora.errors import RemoraError


class App:
    async def __call__(self, request: Request) -> Any:
        if request.url.path == "/stream":
            return StreamingResponse(self.items(5))
        if request.url.path == "/fail":
            raise RuntimeError("on purpose")
        await asyncio.sleep(0.002 if request.url.path == "/nap" else 0)
        return await request.body()

    async def items(self, n: int) -> AsyncIterator[bytes]:
        for _ in range(n):
            yield b"x" * 1000
            await asyncio.sleep(0)

    def plain_items(self, n: int) -> Any:
        for _ in range(n):
            yield b"x" * 1000

    async def nap(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def fail(self) -> None:
        raise LookupError("on purpose")


async def one_call(router: Any, rng: random.Random) -> None:
    fate = rng.random()
    timeout_s = 0.001 if fate < 0.2 else 30.0
    pending: Any
    if fate < 0.1 or fate > 0.8:
        pending = call(
            router,
            "fail" if fate > 0.95 else "nap",
            *([] if fate > 0.95 else [0.001]),
            timeout_s=timeout_s,
        )
        if 0.8 < fate < 0.9:
            asyncio.get_running_loop().call_later(rng.random() * 0.002, pending.cancel)
        with suppress(RemoraError, LookupError):
            await pending
        return
    pending = stream(
        router, "plain_items" if fate < 0.3 else "items", rng.randrange(8), timeout_s=timeout_s
    )
    with suppress(RemoraError):
        async for _ in pending:
            if rng.random() < 0.1:
                pending.cancel()


async def one_request(door: Door, rng: random.Random) -> None:
    path = rng.choice(("/", "/stream", "/fail", "/nap", "/-/healthz"))
    late = "x-request-timeout-seconds: 0.001\r\n" if rng.random() < 0.2 else ""
    reader, writer = await door.connect()
    with suppress(ConnectionError):
        head = f"POST {path} HTTP/1.1\r\ncontent-length: 3\r\nconnection: close\r\n{late}\r\n"
        writer.write(head.encode() + (b"abc" if rng.random() < 0.9 else b"a"))
        if rng.random() < 0.5 and not writer.is_closing():
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(), 0.5 * rng.random())
    writer.transport.abort()


async def load(count: int, routers: list[Any], door: Door, seed: int) -> None:
    rng = random.Random(seed)

    async def worker() -> None:
        for _ in range(count // 50):
            if rng.random() < 0.1:
                await one_request(door, rng)
            else:
                await one_call(rng.choice(routers), rng)

    await asyncio.gather(*(worker() for _ in range(50)))


def left_over(nodes: list[Node], routers: list[Any], door: Door) -> dict[str, int]:
    connections = [c for node in nodes for c in node.replica._connections]
    return {
        "sinks": sum(
            len(link.channel._sinks) for r in routers for link in r.members.links.values()
        ),
        "outstanding": sum(link.outstanding for r in routers for link in r.members.links.values()),
        "waiting": sum(r.num_waiting + len(r.waiting._calls) for r in routers),
        "work": sum(len(c._work) for c in connections),
        "ongoing": sum(node.replica.ongoing for node in nodes),
        "clients": len(door.state.connections),
    }


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_nothing_stays_of_ten_thousand_requests(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest keeps every record.
    caplog.set_level(logging.CRITICAL, "remora")
    nodes = [await rig.node(App, max_ongoing=8) for _ in range(2)]
    routers: list[Any] = [await rig.routed(*nodes) for _ in range(2)]
    door = await rig.door(*nodes)
    everyone = [*routers, door.router]

    async def settled() -> int:
        await until(lambda: not any(left_over(nodes, everyone, door).values()), 20)
        # Timers of requests that ended are dropped when they come to the top of the heap.
        await asyncio.sleep(0.05)
        gc.collect()
        return len(gc.get_objects())

    await load(1500, routers, door, 1)
    before = await settled()
    await load(8500, routers, door, 2)
    after = await settled()
    assert left_over(nodes, everyone, door) == dict.fromkeys(left_over(nodes, everyone, door), 0)
    assert after - before < 1000
