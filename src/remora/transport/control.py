"""Remote calls of the control plane: methods by name, msgpack bodies, no pickled values.

Used towards the controller (deploy, status, subscribe, …) and towards replicas (initialize,
drain, …). The methods are listed in `wire/control.py`.

Rules: what the other side raised comes as a RemoteError with its text. Only who talks to our own
controller, which raises nothing of a user's making, may ask for the exception itself.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from remora.errors import ConnectionLostError, MethodNotFoundError
from remora.transport.channel import Channel
from remora.transport.errors import decode_error_frame, encode_error
from remora.transport.listener import ServerConnection, listen
from remora.wire.codec import decode_envelope, pack, unpack
from remora.wire.framing import RawFrame
from remora.wire.messages import CallKind, Envelope, FrameKind
from remora.wire.parcel import raw

_log = logging.getLogger("remora.transport")
T = TypeVar("T")

#: Takes a request body; returns the reply's body, or a stream of them.
ControlHandler = Callable[[bytes], "Awaitable[bytes] | AsyncIterator[bytes]"]


class _ControlSink:
    """Queues the frames of one control request."""

    def __init__(self, unpickle: bool) -> None:
        self._unpickle = unpickle
        self._queue: asyncio.Queue[RawFrame | ConnectionLostError] = asyncio.Queue()

    def on_frame(self, frame: RawFrame) -> None:
        self._queue.put_nowait(frame)

    def on_lost(self, error: ConnectionLostError, never_started: bool) -> None:
        self._queue.put_nowait(error)

    async def next(self) -> RawFrame:
        found = await self._queue.get()
        if isinstance(found, ConnectionLostError):
            raise found
        if found[0] == FrameKind.ERROR:
            raise decode_error_frame(found[4], raw(found[5]), unpickle=self._unpickle)
        return found


def _meta(method: str) -> bytes:
    return pack(Envelope("", "", "", method, CallKind.CONTROL))


async def call_control(
    channel: Channel,
    method: str,
    body: msgspec.Struct | None = None,
    reply: type[T] | None = None,
    timeout_s: float | None = None,
    *,
    unpickle: bool = False,
) -> T:
    """Call a control method and wait for its answer.

    Args:
        channel: to the controller or a replica.
        method: its name.
        body: the argument; None for methods without one.
        reply: type of the answer; None for methods that answer nothing.
        timeout_s: seconds to wait; None: as long as it takes.
        unpickle: True: raise what the method raised as itself; only towards our controller.

    Raises:
        ConnectionLostError: the other side went away.
        TimeoutError: no answer in time; the other side is told to stop.
        RemoteError: the method raised; with `unpickle` whatever it raised.
    """
    sink = _ControlSink(unpickle)
    number = channel.request(sink, _meta(method), pack(body) if body is not None else b"")
    done = False
    try:
        async with asyncio.timeout(timeout_s):
            frame = await sink.next()
        done = True
    except ConnectionLostError:
        done = True
        raise
    finally:
        if not done:
            channel.send(FrameKind.CANCEL, number)
            channel.forget(number)
    return unpack(raw(frame[5]), reply) if reply is not None else None  # type: ignore[return-value]


async def stream_control(
    channel: Channel,
    method: str,
    body: msgspec.Struct | None,
    item: type[T],
    *,
    unpickle: bool = False,
) -> AsyncIterator[T]:
    """Call a control method that answers with a stream; closing the iterator ends it there.

    Raises:
        ConnectionLostError: the other side went away.
        RemoteError: the method raised; with `unpickle` whatever it raised.
    """
    sink = _ControlSink(unpickle)
    number = channel.request(sink, _meta(method), pack(body) if body is not None else b"")
    try:
        while True:
            frame = await sink.next()
            if frame[0] == FrameKind.END:
                return
            yield unpack(raw(frame[5]), item)
    finally:
        channel.send(FrameKind.CANCEL, number)
        channel.forget(number)


async def answer_control(
    connection: ServerConnection, number: int, method: str, body: bytes, handler: ControlHandler
) -> None:
    """Run a control handler and send what it gives. Never raises but for cancellation."""
    try:
        made: Any = handler(body)
        if inspect.isawaitable(made):
            connection.write(FrameKind.RESPONSE, number, body=await made)
            return
        async for item in made:
            connection.write(FrameKind.ITEM, number, body=item)
            # What is written leaves at the end of the turn; only then is it known whether the
            # peer takes it. A handler that never waits must not keep the loop from turning.
            await asyncio.sleep(0)
            await connection.wait_writable()
        connection.write(FrameKind.END, number)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001
        # The border of a control method: the caller hears of it and decides.
        meta, pickled = encode_error(error)
        connection.write(FrameKind.ERROR, number, meta, pickled)


class ControlConnection(ServerConnection):
    """A connection that has control methods and nothing else."""

    def __init__(self, handlers: Mapping[str, ControlHandler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def on_frame(self, frame: RawFrame) -> None:
        """Start a method, or stop one."""
        kind, _, _, number, meta, body = frame
        if kind == FrameKind.REQUEST:
            self._start(number, meta, bytes(raw(body)))
        elif kind == FrameKind.CANCEL and number in self._tasks:
            self._tasks.pop(number).cancel()

    def on_closed(self) -> None:
        """Stop everything that this peer asked for."""
        for task in list(self._tasks.values()):
            task.cancel()

    def _start(self, number: int, meta: bytes, body: bytes) -> None:
        try:
            method = decode_envelope(meta).method
        except msgspec.MsgspecError as error:
            _log.warning("Closed a control connection: unreadable envelope: %s", error)
            self.close()
            return
        handler = self._handlers.get(method)
        if handler is None:
            names = ", ".join(sorted(self._handlers))
            wrong = MethodNotFoundError(f"No control method {method!r}; there are: {names}")
            self.write(FrameKind.ERROR, number, *encode_error(wrong))
            return
        task = asyncio.get_running_loop().create_task(
            answer_control(self, number, method, body, handler)
        )
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))


async def serve_control(
    sock: socket.socket, handlers: Mapping[str, ControlHandler], token: str = ""
) -> asyncio.Server:
    """Serve control methods on a listening socket.

    Args:
        sock: bound and listening.
        handlers: by method name.
        token: of the cluster, for a TCP socket.
    """
    return await listen(sock, lambda: ControlConnection(handlers), token)
