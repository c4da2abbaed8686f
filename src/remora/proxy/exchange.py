"""One HTTP request and its response, from the parsed head to the last byte written.

An exchange is a `Call` like any other; the client's connection takes the place of the caller.
It is a state machine of callbacks without a task of its own: a task, a coroutine chain and two
ASGI messages would cost more than all the rest of the proxy's work on a small request.

Bodies go through as raw bytes in both directions with bounded windows: what the replica has
no room for stops the reading of the client's socket, and what the client does not take stops
the replica.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, cast

from remora.errors import RequestCancelledError
from remora.proxy import head as heads
from remora.proxy import respond
from remora.proxy.body_relay import BodyRelay
from remora.proxy.front import SMALL_BODY_BYTES, BodyTooLargeError, Request
from remora.proxy.respond import Response
from remora.proxy.streamed import StreamedBody
from remora.router.call import Call, CallState
from remora.wire.codec import decode_credit, decode_error, pack
from remora.wire.framing import RawFrame
from remora.wire.messages import FrameKind
from remora.wire.parcel import raw
from remora.wire.window import WINDOW_BYTES, cost, is_grant_due

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection

_RESPONSE = int(FrameKind.RESPONSE)
_START = int(FrameKind.START)
_ITEM = int(FrameKind.ITEM)
_END = int(FrameKind.END)
_ERROR = int(FrameKind.ERROR)
_CREDIT = int(FrameKind.CREDIT)
_SENT, _DONE = CallState.SENT, CallState.DONE

_log = logging.getLogger("remora.proxy")


class Exchange(Call):
    """A request of a client, on its way through the proxy.

    Attributes:
        connection: the client's.
        request: what the front door made of its head.
        keep_alive: the connection may carry another request after this one.
        began: when its head was complete (`time.perf_counter`).
        is_read: the client has sent all of it.
        owes_continue: the client waits for leave to send its body; it gets it when the replica has
            room for that, and so only if the request was not refused.
        complete: the response is written.
        head_sent: the response's head is written.
        status: of the response.
        consumed: bytes of the answer that the replica is to be given room for again.
        route: template of the route that answered, below the application's prefix.
    """

    #: The connection is no longer HTTP's once it has begun.
    is_websocket = False

    __slots__ = (
        "_body",
        "_received_bytes",
        "_relay",
        "began",
        "complete",
        "connection",
        "consumed",
        "head_sent",
        "is_read",
        "keep_alive",
        "owes_continue",
        "request",
        "route",
        "status",
    )

    def __init__(self, connection: ClientConnection, request: Request) -> None:
        self.connection = connection
        self.request = request
        self.began = time.perf_counter()
        self.keep_alive = True
        self.complete = False
        self.head_sent = False
        self.is_read = False
        self.owes_continue = False
        self.status = 0
        self.route = ""
        self.consumed = 0
        self._received_bytes = 0
        #: Of the request's body; None: it goes with the request, or there is none.
        self._relay = BodyRelay(self) if request.envelope.body_follows else None
        #: Of an answer that comes in parts.
        self._body: StreamedBody | None = None
        # What the replica may send before the client has taken any of it.
        request.envelope.credit_bytes = WINDOW_BYTES
        super().__init__(request.router, request.envelope, b"")

    def begin(self) -> None:
        """It is this exchange's turn: answer it, or send it on as soon as that makes sense."""
        request = self.request
        if request.response is not None:
            if not self.is_read and (self.envelope.body_follows or request.expects_continue):
                # The client may send a large body that nobody wants, or none at all.
                self.keep_alive = False
            self.answer(request.response)
        elif request.later is not None:
            self.keep_alive = self.keep_alive and (self.is_read or not self.envelope.body_follows)
            answering = self.router.loop.create_task(request.later())
            answering.add_done_callback(self._answer_late)
        elif self.is_read or self.envelope.body_follows:
            self.owes_continue = request.expects_continue and not self._received_bytes
            self.router.submit(self)

    def leave(self) -> None:
        """The client has left."""
        if self.state is _DONE:
            self._finish(respond.STATUS_CLIENT_LEFT)
        else:
            self.cancel()

    def stop_serving(self) -> None:
        """The server stops: this is the connection's last exchange."""
        self.keep_alive = False

    # -- the request's body -----------------------------------------------------------------

    def take_body(self, data: bytes) -> None:
        """A part of the body has come from the client."""
        if self.complete or self.state is _DONE:
            return
        self._received_bytes += len(data)
        self.owes_continue = False
        limit = self.request.max_body_bytes
        if limit is not None and self._received_bytes > limit:
            self.keep_alive = False
            self.give_up(BodyTooLargeError(limit))
            return
        if self._relay is not None:
            self._relay.take(data)
        else:
            # Small, and nearly always one part.
            self.body = cast(bytes, self.body) + data if self.body else data

    def end_body(self) -> None:
        """The client has sent the whole request."""
        self.is_read = True
        if self.complete:
            self.connection.on_turn_over(self)
            return
        if self._relay is not None:
            self._relay.pump()
            return
        if self.connection.active is self and self.request.later is None:
            self.router.submit(self)

    def _answer_late(self, task: asyncio.Task[Response]) -> None:
        if self.complete:
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self.answer(task.result())
        else:
            _log.error("%s failed", self.request.head.path, exc_info=error)
            self.answer(respond.text(500, "Internal Server Error"))

    def _invite(self) -> None:
        self.owes_continue = False
        if not self.is_read and not self.head_sent:
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.connection.on_body_wanted()

    # -- frames of the replica --------------------------------------------------------------

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame; CREDIT is room for the request's body."""
        kind = frame[0]
        body = self._body
        if kind == _ITEM and body is not None and body.is_chunked and self.state is _SENT:
            # The short way for the many: a stream of text is one small part after the other.
            body.write_chunk(raw(frame[5]))
            return
        if kind == _CREDIT:
            self.answered = True
            self._on_room(decode_credit(frame[4]))
            return
        try:
            super().on_frame(frame)
        except Exception:
            # Half an answer with no end would keep its client for ever; who passed it on logs why.
            self.connection.ending.abort()
            raise

    def _on_room(self, size: int) -> None:
        if self.owes_continue:
            self._invite()
        if self._relay is not None:
            self._relay.on_room(size)

    def _deliver(self, frame: RawFrame) -> None:
        kind = frame[0]
        if kind == _RESPONSE:
            try:
                head = heads.read(frame[4])
            except ValueError as error:
                self._refuse(error)
                return
            self.route = head.route
            self._write_whole(head, raw(frame[5]))
        elif kind == _ITEM:
            self._write_part(raw(frame[5]))
        elif kind == _START:
            self._write_head(frame[4])
        elif kind == _END:
            self._write_end()
        elif kind == _ERROR:
            if self.head_sent:
                self._cut()
            else:
                self.answer(respond.from_error_meta(decode_error(frame[4])))

    def _deliver_error(self, error: Exception) -> None:
        if self.complete:
            return
        if isinstance(error, RequestCancelledError) and self.connection.is_gone:
            self._finish(respond.STATUS_CLIENT_LEFT)
        elif self.connection.active is not self:
            # Sent ahead by the client: what it is told waits for the answers before it.
            self.request.response = respond.from_error(error)
        elif self.head_sent:
            self._cut()
        else:
            self.answer(respond.from_error(error))

    def cancel_quietly(self) -> None:
        """Stop the replica's work; what the client is told is decided by the caller."""
        if self.state is _SENT:
            self.stop()
        self._close()

    # -- the response -----------------------------------------------------------------------

    def answer(self, response: Response) -> None:
        """Write a response that was made here."""
        self._write_whole(heads.render(response.status, response.headers), response.body)

    def _write_whole(self, head: heads.Head, body: bytes | memoryview) -> None:
        lines: list[bytes | memoryview] = [head.text]
        if heads.has_body(self.request.method, head.status):
            lines.append(b"content-length: %d\r\n" % len(body))
        else:
            body = b""
            if head.content_length is not None and head.status not in heads.WITHOUT_LENGTH:
                lines.append(b"content-length: %d\r\n" % head.content_length)
        self._finish_head(head, lines)
        connection = self.connection
        if len(body) <= SMALL_BODY_BYTES:
            lines.append(body)
            connection.outbox.write_now(b"".join(lines))
        else:
            connection.write(b"".join(lines))
            connection.write(body)
        self._finish(head.status)

    def _write_head(self, meta: bytes) -> None:
        try:
            head = heads.read(meta)
        except ValueError as error:
            self.cancel_quietly()
            self._refuse(error)
            return
        self.route = head.route
        self.status = head.status
        body = self._body = StreamedBody(self, head)
        lines = [head.text, *body.lines]
        if body.ends_with_connection:
            self.keep_alive = False
        self._finish_head(head, lines)
        self.connection.write(b"".join(lines))

    def _finish_head(self, head: heads.Head, lines: list[bytes | memoryview]) -> None:
        if self.owes_continue:
            # Answered without its body, which may follow all the same, or not.
            self.owes_continue = self.keep_alive = False
        self._add_own_lines(head, lines)
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")

    def _add_own_lines(self, head: heads.Head, lines: list[bytes | memoryview]) -> None:
        if not head.has_request_id:
            request_id = self.envelope.request_id.encode("latin-1", "replace")
            lines.append(b"x-request-id: %b\r\n" % request_id)
        if self.envelope.attempt:
            lines.append(b"x-remora-attempts: %d\r\n" % (self.envelope.attempt + 1))
        if not head.has_date:
            lines.append(self.connection.default_lines())
        if head.close:
            self.keep_alive = False
        self.head_sent = True

    def _write_part(self, data: bytes | memoryview) -> None:
        if self.state is _SENT:
            self.consumed += cost(len(data))
            self.grant()
        if self._body is not None and not self._body.write(data):
            self.cancel_quietly()
            self._cut()

    def grant(self) -> None:
        """Let the replica send on, as far as the client takes what it sends."""
        if (
            is_grant_due(self.consumed)
            and not self.connection.is_write_paused
            and self.state is _SENT
            and self.link is not None
            and self.link.channel is not None
        ):
            self.link.channel.send(FrameKind.CREDIT, self.number, pack(self.consumed))
            self.consumed = 0

    def on_room(self) -> None:
        """The client takes more again, after it did not."""
        self.grant()

    def _write_end(self) -> None:
        if self._body is not None and self._body.end():
            self._finish(self.status)
        else:
            self._cut()

    def _refuse(self, error: Exception) -> None:
        """The application's response breaks HTTP's rules."""
        _log.error(
            "Request %s: the response of %s is no valid HTTP: %s",
            self.envelope.request_id,
            self.envelope.application,
            error,
        )
        self.answer(respond.text(500, "Internal Server Error"))

    def _cut(self) -> None:
        """A cut connection is the only honest sign that a response is not whole."""
        self.keep_alive = False
        self.connection.ending.abort()
        self._finish(self.status)

    def _finish(self, status: int) -> None:
        if self.complete:
            return
        self.status = status
        self.complete = True
        if self.state is not _DONE:
            # Answered without a replica: nothing else ends the call and its deadline.
            self._close()
        self._relay = self._body = None
        self.connection.on_exchange_complete(self)
