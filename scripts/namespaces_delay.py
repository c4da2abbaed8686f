"""What `namespaces.py` runs on its hosts to measure calls: an echo on the far one, and who asks on the near one.

The bare ping-pong and the calls take turns, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

import remora as serve

PORT = 8765
PRIORITY = -15
_ROUNDS = 40
_EACH = 25


class _Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def echo(address: str) -> None:
    """Serve the ping-pong until killed."""
    server = await asyncio.get_running_loop().create_server(_Echo, address, PORT)
    await server.serve_forever()


async def ask(address: str) -> None:
    """Print the medians of both in milliseconds."""
    reader, writer = await asyncio.open_connection(address, PORT)
    handle: Any = serve.get_app_handle("app")

    async def bare() -> None:
        writer.write(b"x" * 64)
        await reader.readexactly(64)

    async def call() -> None:
        await handle.echo.remote(1)

    took: dict[str, list[float]] = {"bare": [], "handle": []}
    both: dict[str, Callable[[], Awaitable[None]]] = {"bare": bare, "handle": call}
    for each in both.values():
        await each()
    for _ in range(_ROUNDS):
        for name, one in both.items():
            for _ in range(_EACH):
                began = time.perf_counter()
                await one()
                took[name].append(time.perf_counter() - began)
    bare_s, handle_s = (statistics.median(values) for values in took.values())
    print(f"bare ping-pong {bare_s * 1000:.3f} ms, handle {handle_s * 1000:.3f} ms")


if __name__ == "__main__":
    os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    uvloop.run({"echo": echo, "ask": ask}[sys.argv[1]](sys.argv[2]))
