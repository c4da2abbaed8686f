"""A WebSocket on its way through the proxy: an exchange that stays open.

The handshake is a request like any other: routed, queued, limited in time, retried while no
replica has accepted it, and answered in HTTP where it is refused. Once it is accepted, messages
go through whole in both directions with the windows that bodies have: what the handler does not
take stops the reading of the client's socket, and what the client does not take stops the handler.

How it ends, and what the client is told:

    the application closes          its code and reason
    the client closes               its own code comes back; the handler hears of it
    the client is gone, or breaks   nothing, or the code of the rule that it broke
      a rule of the protocol
    the replica dies                1011, or 1012 where it had been asked to leave
    this server stops               1012
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from remora.errors import RemoraError
from remora.proxy.exchange import Exchange
from remora.proxy.front import SMALL_BODY_BYTES, Request, StoppingError
from remora.proxy.pings import Pings, write_out
from remora.proxy.websocket_session import (
    INTERNAL_ERROR,
    NO_CODE,
    Closed,
    Message,
    WebSocketSession,
)
from remora.router.call import CallState
from remora.types import Seconds
from remora.wire.codec import decode_http_start, decode_websocket_close, pack
from remora.wire.framing import RawFrame
from remora.wire.messages import (
    WEBSOCKET_BINARY,
    WEBSOCKET_CLOSE,
    WEBSOCKET_TEXT,
    CallKind,
    FrameKind,
    WebSocketClose,
)
from remora.wire.parcel import raw
from remora.wire.window import WINDOW_BYTES, cost

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection

_START = int(FrameKind.START)
_ITEM = int(FrameKind.ITEM)
_END = int(FrameKind.END)
#: In the log and the counters, for a connection that was cut.
_CUT = 1006
_RESTART = 1012

#: A client has so long to answer our close frame before its connection is cut.
CLOSE_TIMEOUT_S: Seconds = 10.0
#: A handler whose client has left has so long to come to its end.
LEAVE_TIMEOUT_S: Seconds = 10.0


class WebSocketExchange(Exchange):
    """One WebSocket of one client."""

    is_websocket = True
    close_timeout_s: Seconds = CLOSE_TIMEOUT_S
    leave_timeout_s: Seconds = LEAVE_TIMEOUT_S

    __slots__ = (
        "_buffered_bytes",
        "_client_is_done",
        "_code",
        "_early",
        "_farewell",
        "_inbox",
        "_opened",
        "_pings",
        "_pong",
        "_room",
        "_session",
        "_stays",
    )

    def __init__(self, connection: ClientConnection, request: Request) -> None:
        head = request.head
        options = connection.front.options
        self._session = WebSocketSession(head, options.websocket_max_message_bytes)
        if request.response is None:
            request.response = self._session.refusal
        head.method = "WEBSOCKET"
        head.subprotocols = self._session.subprotocols
        request.envelope.kind = CallKind.WEBSOCKET
        request.envelope.body_follows = False
        # A client that leaves is always told to the handler; here it says what follows.
        self._stays, request.stays = request.stays, False
        self._opened = False
        #: Bytes that came behind the handshake, before it was answered.
        self._early = bytearray()
        #: How it ended, as the log says it; 0: it has not.
        self._code = 0
        #: What the replica is told after all that waits in the inbox.
        self._farewell: WebSocketClose | None = None
        #: Messages that the replica has no room for.
        self._inbox: deque[Message] = deque()
        self._buffered_bytes = 0
        #: What the replica has room for.
        self._room = WINDOW_BYTES
        self._pong: list[bytes] = []
        self._pings = Pings(connection, self._session, options)
        #: Nothing more comes from the client.
        self._client_is_done = False
        super().__init__(connection, request)
        self.keep_alive = False

    # -- the client's side ------------------------------------------------------------------

    def end_body(self) -> None:
        """The handshake is complete."""
        self.is_read = True
        if self.complete:
            self.connection.on_turn_over(self)
        elif self.connection.active is self:
            self.begin()

    def feed(self, data: bytes) -> None:
        """Take what the client sends behind its handshake."""
        if not self._opened:
            if not self.complete and len(self._early) <= SMALL_BODY_BYTES:
                self._early += data
                if len(self._early) > SMALL_BODY_BYTES:
                    self.connection.inlet.pause()
            return
        self._pings.is_heard = True
        if self.complete or self._client_is_done:
            return
        self._listen(data)
        self._pump()
        if self._code == 0 and (self._buffered_bytes > SMALL_BODY_BYTES or self._session.has_more):
            self.connection.inlet.pause()

    def _listen(self, data: bytes = b"") -> None:
        """Unpack what has come, as far as there is room for messages."""
        session = self._session
        while not self._client_is_done:
            # When the end has begun messages are dropped; only the client's close is looked for.
            room = 0 if self._code else SMALL_BODY_BYTES - self._buffered_bytes
            for event in session.feed(data, room):
                if isinstance(event, Closed):
                    self._on_closed(event)
                elif self._code == 0:
                    self._inbox.append(event)
                    self._buffered_bytes += len(event.data)
            data = b""
            if not session.has_more or self._code == 0:
                break
        if self.connection.is_write_paused and session.is_open:
            self._pong = session.take(last_only=True) or self._pong
        else:
            write_out(self._session, self.connection)

    def leave(self) -> None:
        """The connection is gone."""
        if not self._opened:
            super().leave()
            return
        self._client_is_done = True
        if self._code == 0:
            self._say_farewell(WebSocketClose(NO_CODE, "", cut=True), _CUT)
        elif self.state is CallState.DONE:
            self._finish(self._code)

    def stop_serving(self) -> None:
        """The server stops: a handshake that is not answered yet is refused."""
        if not self._opened:
            self.give_up(StoppingError())
        elif self._code == 0:
            self._close_client(_RESTART, "the server stops")
            if self.state is CallState.SENT:
                self._say_farewell(WebSocketClose(_RESTART, "the server stops"), _RESTART)

    def _on_closed(self, event: Closed) -> None:
        self._client_is_done = True
        self._pong = []
        write_out(self._session, self.connection)
        if event.failed:
            self.connection.ending.linger()
        else:
            self.connection.ending.close()
        if self._code and self.state is CallState.DONE:
            self._finish(self._code)
        elif self._code == 0:
            self._say_farewell(WebSocketClose(event.code, event.reason), event.code)

    def _say_farewell(self, close: WebSocketClose, code: int) -> None:
        """Let the handler hear of the end, after the messages that came before it.

        One whose client is gone without a word does not get what still waits here.
        """
        self._code = code
        if self._stays:
            close = WebSocketClose(close.code, close.reason)
        else:
            self._timer = self.router.loop.call_later(self.leave_timeout_s, self.cancel)
        if close.cut:
            self._inbox.clear()
            self._buffered_bytes = 0
        self._farewell = close
        self._pump()

    def _pump(self) -> None:
        if self.state is not CallState.SENT or self.link is None or self.link.channel is None:
            return
        send, inbox = self.link.channel.send, self._inbox
        while True:
            while inbox and self._room > 0:
                is_text, data = inbox.popleft()
                self._buffered_bytes -= len(data)
                self._room -= cost(len(data))
                meta = WEBSOCKET_TEXT if is_text else WEBSOCKET_BINARY
                send(FrameKind.BODY, self.number, meta, data)
            if inbox:
                return
            if self._farewell is not None:
                send(FrameKind.BODY, self.number, WEBSOCKET_CLOSE, pack(self._farewell))
                self._farewell = None
                return
            if self._code or not self._session.has_more:
                break
            self._listen()
        self._resume()

    def _resume(self) -> None:
        if self.connection.inlet.is_paused:
            # Until now it was we who did not listen.
            self._pings.is_heard = True
            self.connection.inlet.resume()

    def _on_room(self, size: int) -> None:
        self._room += size
        self._pump()

    # -- the replica's side -----------------------------------------------------------------

    def _deliver(self, frame: RawFrame) -> None:
        kind = frame[0]
        if not self._opened:
            start = decode_http_start(frame[4]) if kind == _START else None
            if start is not None and start.status == 101:
                self.route = start.route
                self._open(start.headers)
            else:
                super()._deliver(frame)
        elif kind == _ITEM:
            body = raw(frame[5])
            if self.state is CallState.SENT:
                self.consumed += cost(len(body))
                self.grant()
            self._session.send(frame[4] == WEBSOCKET_TEXT, body)
            write_out(self._session, self.connection)
        elif kind == _END:
            close = decode_websocket_close(frame[4])
            self._on_over(close.code, close.reason)
        else:
            self._on_over(INTERNAL_ERROR, "")

    def _deliver_error(self, error: Exception) -> None:
        if not self._opened:
            super()._deliver_error(error)
        elif not self.complete:
            link = self.link
            asked_to_leave = link is not None and (link.leaving or link.gone)
            reason = type(error).__name__ if isinstance(error, RemoraError) else ""
            self._on_over(_RESTART if asked_to_leave else INTERNAL_ERROR, reason)

    def _on_over(self, code: int, reason: str) -> None:
        """The handler is at its end."""
        if self._client_is_done:
            self._finish(self._code)
        elif self._code == 0:
            self._close_client(code, reason)

    def _close_client(self, code: int, reason: str) -> None:
        """Send our close frame, and wait a while for the client's."""
        self._code = code
        self._inbox.clear()
        self._buffered_bytes = 0
        self._session.close(code, reason)
        write_out(self._session, self.connection)
        self.connection.inlet.resume()
        self._pings.expect_close(self.close_timeout_s)
        if self._session.has_more:
            self._listen()

    def _open(self, headers: list[tuple[bytes, bytes]]) -> None:
        """The application has accepted: from here on there is no deadline."""
        try:
            head = self._session.handshake(headers)
        except ValueError as error:
            self.cancel_quietly()
            self._refuse(error)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.deadline = None
        lines: list[bytes | memoryview] = [head.text]
        self._add_own_lines(head, lines)
        self.connection.write(b"".join((*lines, b"\r\n")))
        self._opened = True
        self._pings.begin()
        self._resume()
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            self.feed(early)

    def on_room(self) -> None:
        """The client takes more again: it reads, and what it has not read yet is before our ping."""
        self._pings.is_heard = True
        if self._pong:
            pong, self._pong = self._pong, []
            self.connection.write(b"".join(pong))
        super().on_room()

    def _finish(self, status: int) -> None:
        if not self.complete:
            self._pings.stop()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._inbox.clear()
            super()._finish(status)
