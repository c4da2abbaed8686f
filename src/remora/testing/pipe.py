"""A connection to the front door without a socket: what a client of this process talks through."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from remora.proxy.connection import ClientConnection

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Bytes of an answer that may wait for a client that does not take them.
_MAX_WAITING_BYTES = 256 * 1024


class Pipe(asyncio.Transport):
    """The transport that a server's connection writes to; what it writes becomes ASGI messages."""

    def __init__(self, connection: ClientConnection, scope: Scope) -> None:
        client = scope.get("client") or ("127.0.0.1", 0)
        server = scope.get("server") or ("testserver", 80)
        super().__init__({"peername": tuple(client), "sockname": (server[0], server[1] or 0)})
        self.complete = False
        self.may_upload = asyncio.Event()
        self.may_upload.set()
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._messages: deque[Message] = deque()
        self._waiting_bytes = 0
        self._is_paused = False
        self._news = asyncio.Event()
        self._closing = False
        self._failure: BaseException | None = None
        connection.connection_made(self)

    @abstractmethod
    async def upload(self, receive: Receive) -> None:
        """Send what the client says, until it leaves."""

    @abstractmethod
    def on_bytes(self, data: bytes) -> None:
        """The server has sent this."""

    async def download(self, send: Send) -> None:
        """Hand over what the server says until it is complete.

        Raises:
            ConnectionError: the server cut the connection before that.
            Exception: what the client's `receive` raised before that.
        """
        while True:
            while self._messages:
                message = self._messages.popleft()
                self._waiting_bytes -= _size(message)
                await send(message)
                if self._is_paused and self._waiting_bytes <= _MAX_WAITING_BYTES // 2:
                    self._is_paused = False
                    self._connection.resume_writing()
            if self.complete:
                return
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise ConnectionError("The server cut the connection before its answer was whole")
            self._news.clear()
            await self._news.wait()

    def on_uploaded(self, uploading: asyncio.Task[None]) -> None:
        """The upload has ended; if it failed nothing more is going to be answered."""
        if not uploading.cancelled() and (error := uploading.exception()) is not None:
            self._failure = error
            self._news.set()

    def put(self, message: Message) -> None:
        """Keep a message for `download`."""
        self._messages.append(message)
        self._waiting_bytes += _size(message)
        if self._waiting_bytes > _MAX_WAITING_BYTES and not self._is_paused:
            self._is_paused = True
            self._connection.pause_writing()
        self._news.set()

    def feed(self, data: bytes) -> None:
        """Let the server read this."""
        if not self._closing:
            self._connection.data_received(data)

    # ------------------------------------------------------------------- the server's transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """The server sends."""
        if not self._closing and not self.complete:
            self.on_bytes(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """The server sends several pieces."""
        for data in list_of_data:
            self.write(data)

    def is_closing(self) -> bool:
        """One side has closed."""
        return self._closing

    def close(self) -> None:
        """One side closes; the server hears of it in the next turn."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._connection.connection_lost, None)
            self._news.set()

    def abort(self) -> None:
        """One side closes at once."""
        self.close()

    def pause_reading(self) -> None:
        """The server takes no more of what the client sends."""
        self.may_upload.clear()

    def resume_reading(self) -> None:
        """The server takes more of what the client sends."""
        self.may_upload.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The limit is our own."""

    def get_write_buffer_size(self) -> int:
        """What the client has not taken."""
        return self._waiting_bytes


def request_head(method: str, scope: Scope, headers: list[tuple[bytes, bytes]]) -> bytes:
    """Write the head of a request of HTTP/1.1. Pure."""
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    if scope.get("query_string"):
        target += b"?" + scope["query_string"]
    if all(name.lower() != b"host" for name, _ in headers):
        headers = [*headers, (b"host", b"testserver")]
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target)]
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join((*lines, b"", b""))


def _size(message: Message) -> int:
    return sum(len(value) for value in message.values() if isinstance(value, bytes | str))
