"""One request that has more than one frame in either direction: a stream, or HTTP.

Windows in both directions keep memory bounded: the user's code may send as many bytes as the
reader has granted, and the caller as many as this side has.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from remora.replica.asgi_route import route_template
from remora.replica.inbound import Inbound
from remora.replica.wakeup import WakeUp
from remora.wire.codec import pack
from remora.wire.framing import octets
from remora.wire.messages import Envelope, FrameKind, HttpStart
from remora.wire.parcel import Body, raw
from remora.wire.window import FRAME_COST_BYTES, UNBOUNDED, WINDOW_BYTES, cost, is_grant_due

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection

#: A generator that never waits for anything is made to let others run after this many items.
ITEMS_PER_TURN = 64
#: Parts up to this size are joined when several are sent in one turn of the loop.
SMALL_PART_BYTES = 4096

_ITEM, _CREDIT = int(FrameKind.ITEM), int(FrameKind.CREDIT)
_RESPONSE, _START, _END = map(int, (FrameKind.RESPONSE, FrameKind.START, FrameKind.END))

Message = Any


class Work:
    """The frames of one request, as its handler sees them.

    Attributes:
        connection: whom to answer.
        number: of the request on that connection.
        envelope: everything about it.
        body: what came with the request itself.
        finished: the final frame was sent.
        answered_error: the exception that was being handled when the HTTP response began: the
            response is the answer to it.
        scope: what an ASGI app was given, for what it leaves in it.
    """

    __slots__ = (
        "_disconnected",
        "_held",
        "_in_turn",
        "_parts",
        "_room",
        "_start",
        "_started",
        "_state",
        "_upload_used",
        "_wake",
        "_window",
        "answered_error",
        "body",
        "connection",
        "envelope",
        "finished",
        "inbound",
        "number",
        "scope",
        "task",
    )

    def __init__(
        self,
        connection: ReplicaConnection,
        number: int,
        envelope: Envelope,
        body: Body,
    ) -> None:
        self.connection = connection
        self.number = number
        self.envelope = envelope
        self.body = body
        self.task: asyncio.Task[None] | None = None
        self.finished = False
        #: The streams among the arguments of a handle call.
        self.inbound: Inbound | None = None
        self.answered_error: BaseException | None = None
        self.scope: dict[str, Any] | None = None
        self._in_turn = 0
        self._start: HttpStart | None = None
        self._started = False
        self._disconnected = False
        #: Parts of the request's body that the handler has not taken.
        self._parts: deque[tuple[bytes, bool]] | None = None
        self._upload_used = 0
        self._state = 0
        #: Parts of an HTTP body that were sent in this turn of the loop.
        self._held: list[bytes | memoryview] | None = None
        self._room: WakeUp | None = None
        self._wake: WakeUp | None = None
        self._window = envelope.credit_bytes
        if envelope.streams:
            self.inbound = Inbound(connection, number, envelope.streams, envelope.request_id)

    # -- from the caller --------------------------------------------------------------------

    def cancel(self) -> None:
        """The caller has gone or given up: stop the handler at its next await."""
        self._disconnected = True
        # A handler that goes on regardless never waits again: what it sends is dropped.
        self._window = UNBOUNDED
        self._wake_up()
        self._wake_senders()
        if self.inbound is not None:
            self.inbound.cancel()
        if self.task is not None:
            self.task.cancel()

    def grant(self, num_bytes: int) -> None:
        """The reader has consumed that much."""
        self._window += num_bytes
        if self._window > 0:
            self._wake_senders()

    def feed(self, data: bytes | memoryview, meta: bytes) -> None:
        """A part of the request's body has come; the last one has a meta."""
        if self._parts is None:
            self._parts = deque()
        self._parts.append((bytes(data), bool(meta)))
        self._wake_up()

    # -- to the caller ----------------------------------------------------------------------

    async def send_item(self, meta: bytes, body: Body) -> None:
        """Send one item of a stream, as soon as its reader has room for it."""
        if self._window <= 0:
            await self._wait_room()
        self._window -= cost(len(body))
        self.connection.write(_ITEM, self.number, meta, body)
        self._in_turn += 1
        if self._in_turn >= ITEMS_PER_TURN:
            self._in_turn = 0
            await asyncio.sleep(0)

    async def _wait_room(self) -> None:
        # Several tasks of one handler may send: all of them wait for the same room.
        while self._window <= 0:
            if self._room is None:
                self._room = WakeUp()
            await self._room.wait()

    def _wake_senders(self) -> None:
        if self._room is not None:
            self._room.wake()

    def finish(self, kind: int, meta: bytes = b"", body: Body = b"") -> None:
        """Send the final frame, once."""
        if not self.finished:
            if self._held:
                self.release()
            # In this order: an answer that cannot be sent (too large) has not been sent.
            self.connection.finish(self.number, kind, meta, body)
            self.finished = True
            if self._wake is not None:
                # Whoever still reads the request's body, or waits for the client to leave.
                self._wake.wake()

    @property
    def is_cancelled(self) -> bool:
        """The caller has gone or given up."""
        return self._disconnected

    @property
    def response_started(self) -> bool:
        """The head of the HTTP response has left."""
        return self._started or self.finished

    # -- ASGI ---------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The `receive` of ASGI."""
        if self._state == 0:
            if not self.envelope.body_follows:
                self._state = 2
                body, self.body = self.body, b""
                return {"type": "http.request", "body": bytes(raw(body)), "more_body": False}
            self._state = 1
            self._upload_used = WINDOW_BYTES
            self._grant_upload()
            if self.body:
                body, self.body = self.body, b""
                return {"type": "http.request", "body": bytes(raw(body)), "more_body": True}
        if self._state == 1:
            while not self._parts and not self._disconnected and not self.finished:
                await self._wait_wake()
            if self._parts:
                data, last = self._parts.popleft()
                self._upload_used += cost(len(data))
                if last:
                    self._state = 2
                elif is_grant_due(self._upload_used):
                    self._grant_upload()
                return {"type": "http.request", "body": data, "more_body": not last}
        while not self._disconnected and not self.finished:
            await self._wait_wake()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """The `send` of ASGI."""
        kind = message["type"]
        if kind == "http.response.start":
            headers = [(bytes(k), bytes(v)) for k, v in message.get("headers", ())]
            self._start = HttpStart(int(message["status"]), headers, self.route())
            self.answered_error = sys.exc_info()[1]
            return
        if kind != "http.response.body":
            raise RuntimeError(f"The ASGI app sent {kind!r}, which this server does not know")
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = octets(body)
        more = message.get("more_body", False)
        if not self._started:
            if self._start is None:
                raise RuntimeError("The ASGI app sent a body before `http.response.start`")
            meta = pack(self._start)
            if not more:
                self.finish(_RESPONSE, meta, body)
                return
            self._started = True
            self.connection.write(_START, self.number, meta)
        if body:
            await self._send_part(body)
        if not more:
            self.finish(_END)

    async def _send_part(self, body: bytes | memoryview) -> None:
        """Send a part of an HTTP body; small ones that are made in one turn leave as one frame."""
        size = len(body)
        if size > SMALL_PART_BYTES:
            self.release()
            await self.send_item(b"", body)
            return
        if self._window <= 0:
            await self._wait_room()
        self._window -= size
        held = self._held
        if held is None:
            held = self._held = []
        if held:
            held.append(body)
        elif not self.finished:
            held.append(body)
            self.connection.hold(self)
        self._in_turn += 1
        if self._in_turn >= ITEMS_PER_TURN:
            self._in_turn = 0
            await asyncio.sleep(0)

    def release(self) -> None:
        """Write what is held back for the end of this turn."""
        held = self._held
        if held:
            body = held[0] if len(held) == 1 else b"".join(held)
            held.clear()
            self._window -= FRAME_COST_BYTES
            self.connection.write(_ITEM, self.number, b"", body)

    def route(self) -> str:
        """Template of the route that the app has chosen; empty: none, or no app with routes."""
        head = self.envelope.http
        if self.scope is None or head is None:
            return ""
        return route_template(self.scope, head.root_path)

    def _grant_upload(self) -> None:
        self.connection.write(_CREDIT, self.number, pack(self._upload_used))
        self._upload_used = 0

    def _wake_up(self) -> None:
        if self._wake is not None:
            self._wake.wake()

    async def _wait_wake(self) -> None:
        # Several readers may wait (an app that watches for the disconnect beside reading).
        if self._wake is None:
            self._wake = WakeUp()
        await self._wake.wait()
