"""The front door of this process's instance as an ASGI app, for ASGI test clients.

A request goes through the proxy's own connection, front door and router, as the bytes of HTTP/1.1
that a client would send; only the socket is left out.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any, cast

import httptools
from uvicorn.server import ServerState

from remora.config import HTTPOptions
from remora.current import require_instance
from remora.observe.access import AccessLog
from remora.observe.counters import RequestCounters
from remora.proxy.connection import ClientConnection
from remora.proxy.front import Front
from remora.router.client import RoutingClient
from remora.router.process import routing_client
from remora.types import Seconds

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Until the controller has told which applications there are.
_SYNC_LIMIT_S: Seconds = 10.0
#: Bytes of a response that may wait for a client that does not take them.
_MAX_WAITING_BYTES = 256 * 1024
#: Headers that say how a body travels, which is decided here, or that no answer is wanted to.
_OURS = frozenset((b"transfer-encoding", b"connection", b"expect", b"keep-alive"))


class AsgiApp:
    """An ASGI app that is the front door of the instance of this process.

    Made by `asgi_app`. Works on any event loop, also on several.
    """

    def __init__(self, options: HTTPOptions) -> None:
        self._options = options
        self._doors: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Door] = (
            weakref.WeakKeyDictionary()
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or the lifespan protocol, which is the applications' own matter."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(
                f"remora.testing.asgi_app answers HTTP, not {scope['type']!r}: serve the "
                "application with remora.run(app) to test that"
            )
        loop = asyncio.get_running_loop()
        door = self._doors.get(loop)
        if door is None:
            client = routing_client(loop)
            await client.wait_synced(_SYNC_LIMIT_S)
            door = self._doors[loop] = _Door(client, self._options)
        pipe = _Pipe(door, scope, loop)
        uploading = loop.create_task(pipe.upload(scope, receive))
        try:
            await pipe.download(send)
        finally:
            uploading.cancel()
            await asyncio.wait([uploading])
            pipe.hang_up()


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
        access = AccessLog(client.home.logs / "access-asgi.log")
        self._front = Front(client, options, access, RequestCounters())
        self._state = ServerState()
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    def connection(self) -> ClientConnection:
        """Make the server's end of a new connection."""
        config = cast(Any, SimpleNamespace(app=self._front))
        return ClientConnection(config, self._state, {})


class _Pipe(asyncio.Transport):
    """A connection of one request without a socket: the client's end, and the wire."""

    def __init__(
        self, door: _Door, scope: MutableMapping[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        client = scope.get("client") or ("127.0.0.1", 0)
        server = scope.get("server") or ("testserver", 80)
        super().__init__({"peername": tuple(client), "sockname": (server[0], server[1] or 0)})
        self._loop = loop
        self._is_head = scope["method"] == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._may_upload = asyncio.Event()
        self._may_upload.set()
        self._messages: deque[Message] = deque()
        self._waiting_bytes = 0
        self._is_paused = False
        self._news = asyncio.Event()
        self._closing = False
        self._complete = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._connection = door.connection()
        self._connection.connection_made(self)

    # ------------------------------------------------------------------------ the client's end

    async def upload(self, scope: MutableMapping[str, Any], receive: Receive) -> None:
        """Send the request; a client that leaves hangs up."""
        message = await receive()
        chunked = bool(message.get("more_body"))
        headers = [(k, v) for k, v in scope["headers"] if k.lower() not in _OURS]
        names = {name.lower() for name, _ in headers}
        if b"host" not in names:
            headers.append((b"host", b"testserver"))
        if b"content-length" in names:
            chunked = False
        elif chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        elif message.get("body"):
            headers.append((b"content-length", b"%d" % len(message["body"])))
        target = scope.get("raw_path") or scope["path"].encode()
        if scope.get("query_string"):
            target += b"?" + scope["query_string"]
        lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
        lines += [b"%b: %b" % header for header in headers]
        self._feed(b"\r\n".join((*lines, b"", b"")))
        while message["type"] == "http.request":
            body = message.get("body", b"")
            if body:
                self._feed(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
            if not message.get("more_body"):
                break
            await self._may_upload.wait()
            message = await receive()
        if message["type"] == "http.request":
            if chunked:
                self._feed(b"0\r\n\r\n")
            message = await receive()  # this client says no more, until it leaves
        self.hang_up()

    async def download(self, send: Send) -> None:
        """Hand the response over until it is complete."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                self._waiting_bytes -= len(message.get("body", b""))
                await send(message)
                if self._is_paused and self._waiting_bytes <= _MAX_WAITING_BYTES // 2:
                    self._is_paused = False
                    self._connection.resume_writing()
            if self._complete:
                return
            if self._closing:
                raise ConnectionError("The server cut the connection before its response was whole")
            self._news.clear()
            await self._news.wait()

    def hang_up(self) -> None:
        """End the connection from the client's side."""
        self.abort()

    def _feed(self, data: bytes) -> None:
        if not self._closing:
            self._connection.data_received(data)

    # ------------------------------------------------------------------------ the response

    def on_message_begin(self) -> None:
        """A response begins."""
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        if name.lower() != b"transfer-encoding":
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        status = self._parser.get_status_code()
        self._put({"type": "http.response.start", "status": status, "headers": self._headers})
        if self._is_head:
            self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._put({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        """That was all."""
        if not self._complete:
            self._put({"type": "http.response.body", "body": b"", "more_body": False})
            self._complete = True

    def _put(self, message: Message) -> None:
        if self._complete:
            return
        self._messages.append(message)
        self._waiting_bytes += len(message.get("body", b""))
        if self._waiting_bytes > _MAX_WAITING_BYTES and not self._is_paused:
            self._is_paused = True
            self._connection.pause_writing()
        self._news.set()

    # ------------------------------------------------------------------- the server's transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The server sends."""
        if not self._closing and not self._complete:
            self._parser.feed_data(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """The server sends several pieces."""
        for data in list_of_data:
            self.write(data)

    def is_closing(self) -> bool:
        """One side has closed."""
        return self._closing

    def close(self) -> None:
        """One side closes; the other hears of it in the next turn."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._connection.connection_lost, None)
            self._news.set()

    def abort(self) -> None:
        """One side closes at once."""
        self.close()

    def pause_reading(self) -> None:
        """The server takes no more of the request."""
        self._may_upload.clear()

    def resume_reading(self) -> None:
        """The server takes more of the request."""
        self._may_upload.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limit is our own."""

    def get_write_buffer_size(self) -> int:
        """What the client has not taken."""
        return self._waiting_bytes


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
