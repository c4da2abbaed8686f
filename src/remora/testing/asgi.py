"""The front door of this process's instance as an ASGI app, for ASGI test clients.

A request goes through the proxy's own connection, front door and router, as the bytes of HTTP/1.1
that a client would send; only the socket is left out.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any, cast

from uvicorn.server import ServerState

from remora.config import HTTPOptions
from remora.current import require_instance
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.proxy.connection import ClientConnection
from remora.proxy.front import Front
from remora.router.client import RoutingClient
from remora.router.process import routing_client
from remora.testing.http_pipe import HttpPipe
from remora.testing.pipe import Pipe, Receive, Scope, Send
from remora.testing.websocket_pipe import WebSocketPipe
from remora.types import Seconds

#: Until the controller has told which applications there are.
_SYNC_LIMIT_S: Seconds = 10.0


class AsgiApp:
    """An ASGI app that is the front door of the instance of this process.

    Made by `asgi_app`. Works on any event loop, also on several.
    """

    def __init__(self, options: HTTPOptions) -> None:
        self._options = options
        self._doors: dict[asyncio.AbstractEventLoop, _Door] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket; the lifespan protocol is the applications' own matter.

        Raises:
            InstanceError: no instance runs any more.
            Exception: what the client's `receive` or `send` raised.
        """
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        loop = asyncio.get_running_loop()
        door = await self._door(loop)
        make = HttpPipe if scope["type"] == "http" else WebSocketPipe
        pipe: Pipe = make(door.connection(), scope)
        uploading = loop.create_task(pipe.upload(receive))
        uploading.add_done_callback(pipe.on_uploaded)
        try:
            await pipe.download(send)
        finally:
            uploading.cancel()
            await asyncio.wait([uploading])
            pipe.abort()

    async def _door(self, loop: asyncio.AbstractEventLoop) -> _Door:
        # Another one once this process uses another instance.
        client = routing_client(loop)
        door = self._doors.get(loop)
        if door is not None and door.client is client:
            return door
        await client.wait_synced(_SYNC_LIMIT_S)
        for other in list(self._doors):
            if other.is_closed() or (other is loop and self._doors[loop].client is not client):
                left = self._doors.pop(other, None)
                if left is not None:
                    left.close()
        if loop not in self._doors:
            self._doors[loop] = _Door(client, self._options)
        return self._doors[loop]


def asgi_app(**http_options: Any) -> AsgiApp:
    """Make the front door of this process's instance, as an ASGI app.

    Args:
        http_options: of `remora.config.HTTPOptions`: `root_path`, `request_timeout_s`, limits.

    Raises:
        InstanceError: no instance runs.
        ConfigError: a value that cannot be right.
    """
    require_instance()
    return AsgiApp(HTTPOptions(**http_options))


class _Door:
    """The front door on one loop."""

    def __init__(self, client: RoutingClient, options: HTTPOptions) -> None:
        self.client = client
        path = client.home.logs / "access-asgi.log"
        self._access = AccessLog(path, may_outlive_folder=True)
        self._front = Front(client, options, self._access, RequestCounters())
        self._state = ServerState()
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    def connection(self) -> ClientConnection:
        """Make the server's end of a new connection."""
        config = cast(Any, SimpleNamespace(app=self._front))
        return ClientConnection(config, self._state, {})

    def close(self) -> None:
        """Let go of what it holds; its loop or its instance has ended."""
        self._access.close()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
