"""The streams among a request's arguments, on the replica's side: asynchronous iterators.

The caller's generator runs no further ahead than the window that is granted here, and not at all
before the first item is asked for.
"""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from remora.errors import RequestCancelledError
from remora.replica.wakeup import WakeUp
from remora.transport.errors import decode_error_frame, encode_error
from remora.wire import values
from remora.wire.codec import decode_part, pack
from remora.wire.messages import FrameKind, Grant, Part
from remora.wire.parcel import Body, raw
from remora.wire.window import WINDOW_BYTES, cost, is_grant_due

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection

_CANCELLED = encode_error(RequestCancelledError())


class Inbound:
    """All streams of one request."""

    __slots__ = ("_names", "_streams")

    def __init__(
        self, connection: ReplicaConnection, number: int, names: list[int | str], request_id: str
    ) -> None:
        self._names = names
        self._streams = [
            ArgumentStream(connection, number, index, request_id) for index in range(len(names))
        ]

    def put_into(self, args: Any, kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Put each stream into its place among the arguments."""
        args = list(args)
        for name, stream in zip(self._names, self._streams, strict=True):
            if isinstance(name, int):
                args[name] = stream
            else:
                kwargs[name] = stream
        return args, kwargs

    def feed(self, meta: bytes, body: Body) -> None:
        """A part of one of them has come."""
        part = decode_part(meta)
        self._streams[part.stream].feed(part, body)

    def close(self) -> None:
        """The request has ended: whoever still reads hears of it."""
        for stream in self._streams:
            stream.end()

    def cancel(self) -> None:
        """The caller has gone or given up: a reader gets an error, because this is no end.

        A plain function reads in a thread, which nothing else can reach.
        """
        for stream in self._streams:
            stream.end(*_CANCELLED)


class ArgumentStream:
    """What a stream among the arguments is inside the method that was called.

    `async for` in coroutines; `for` in a plain `def`, which runs in a thread. `aclose()` (or
    `close()`) ends the caller's generator before its end; so does the end of the method.
    """

    __slots__ = (
        "_connection",
        "_ended",
        "_index",
        "_loop",
        "_more",
        "_number",
        "_parts",
        "_request_id",
        "_taken",
    )

    def __init__(
        self, connection: ReplicaConnection, number: int, index: int, request_id: str
    ) -> None:
        self._connection = connection
        self._number = number
        self._index = index
        self._request_id = request_id
        self._loop = asyncio.get_running_loop()
        self._parts: deque[tuple[Part, Body]] = deque()
        self._more = WakeUp()
        #: Taken since the last grant: at first the whole window is due.
        self._taken = WINDOW_BYTES
        self._ended = False

    # -- from the caller --------------------------------------------------------------------

    def feed(self, part: Part, body: Body) -> None:
        """A part has come."""
        if not self._ended:
            self._parts.append((part, body))
            self._more.wake()

    def end(self, error: bytes = b"", body: Body = b"") -> None:
        """Nothing more comes, and nothing that came is given out: an end, or an error."""
        if not self._ended:
            self._ended = True
            self._parts.clear()
            self._parts.append((Part(self._index, last=True, error=error), body))
            self._more.wake()

    # -- for the method ---------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        parts = self._parts
        while not parts:
            if is_grant_due(self._taken):
                self._grant()
            await self._more.wait()
        part, body = parts.popleft()
        if part.last:
            # Stay at the end: the next one ends as well.
            parts.append((Part(self._index, last=True), b""))
            self._ended = True
            if part.error:
                raise decode_error_frame(part.error, raw(body), unpickle=True)
            raise StopAsyncIteration
        self._taken += cost(len(body))
        if is_grant_due(self._taken):
            self._grant()
        return values.loads(body, part.how)

    async def aclose(self) -> None:
        """Want no more: the caller's generator is closed."""
        self._stop()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if _get_running_loop() is not None:
            raise RuntimeError("This argument is a stream: in a coroutine, use `async for`.")
        try:
            return asyncio.run_coroutine_threadsafe(self.__anext__(), self._loop).result()
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Want no more; for a plain `def`."""
        self._loop.call_soon_threadsafe(self._stop)

    def __repr__(self) -> str:
        return f"ArgumentStream(request_id={self._request_id!r})"

    # -- inside -----------------------------------------------------------------------------

    def _stop(self) -> None:
        if not self._ended:
            self._connection.write(FrameKind.CANCEL, self._number, pack(self._index))
            self.end()

    def _grant(self) -> None:
        grant = Grant(self._index, self._taken)
        self._connection.write(FrameKind.CREDIT, self._number, pack(grant))
        self._taken = 0
