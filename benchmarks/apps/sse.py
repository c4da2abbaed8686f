"""Server-sent events: as fast as they go, or one every 50 ms with the time in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

#: Seconds between two paced events of one stream: tokens of a language model.
PACE_S = 0.05
#: Without a pause, bare uvicorn never comes to notice that a client has gone.
EVENTS_PER_TURN = 64


async def fast(_: Request) -> StreamingResponse:
    """Events without end and without pause."""

    async def events() -> AsyncIterator[bytes]:
        while True:
            for _ in range(EVENTS_PER_TURN):
                yield b"data: token\n\n"
            await asyncio.sleep(0)

    return StreamingResponse(events(), media_type="text/event-stream")


async def paced(_: Request) -> StreamingResponse:
    """Events without end, each with the monotonic time in nanoseconds at which it was made."""

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: %d\n\n" % time.monotonic_ns()
            await asyncio.sleep(PACE_S)

    return StreamingResponse(events(), media_type="text/event-stream")


async def ready(_: Request) -> StreamingResponse:
    """One event and the end."""

    async def events() -> AsyncIterator[bytes]:
        yield b"data: ready\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(
    routes=[Route("/", ready), Route("/fast", fast), Route("/paced", paced)],
)
