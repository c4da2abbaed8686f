"""One WebSocket as its handler sees it: ASGI's messages over the frames of one request.

What the client sends waits here until the handler takes it, and the handler's taking is what
lets the proxy send more; what the handler sends waits for room at the client.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from remora.replica.work import Message, Work
from remora.wire.codec import decode_websocket_close, pack
from remora.wire.framing import octets
from remora.wire.messages import (
    WEBSOCKET_BINARY,
    WEBSOCKET_CLOSE,
    WEBSOCKET_TEXT,
    Envelope,
    FrameKind,
    HttpStart,
    WebSocketClose,
)
from remora.wire.window import UNBOUNDED, cost, is_grant_due

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection
    from remora.request_context import RequestContext

_RESTART = WebSocketClose(1012, "the replica stops")
#: ASGI's code for a handshake that came to nothing.
_NEVER_OPEN = WebSocketClose(1006)
#: Codes that may stand in a close frame, beside those from 3000 to 4999.
_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015)))


class ClientGoneError(OSError):
    """The client has closed the WebSocket, so nothing can be sent any more."""


class WebSocketWork(Work):
    """The frames of one WebSocket.

    Attributes:
        accepted: the handshake was answered with yes.
        close: how it has ended; None: it has not.
        context: of the request; it has no deadline once the WebSocket is open.
    """

    __slots__ = (
        "_inbox",
        "_is_connected",
        "_num_waiting",
        "_taken",
        "accepted",
        "close",
        "context",
    )

    def __init__(
        self,
        connection: ReplicaConnection,
        number: int,
        envelope: Envelope,
        body: bytes | memoryview,
    ) -> None:
        super().__init__(connection, number, envelope, body)
        self.accepted = False
        self.close: WebSocketClose | None = None
        self.context: RequestContext | None = None
        self._is_connected = False
        self._inbox: deque[tuple[Message, int]] = deque()
        self._taken = 0
        #: Receivers and senders that wait, and so hear of the end at once.
        self._num_waiting = 0

    # -- from the caller --------------------------------------------------------------------

    def feed(self, data: bytes | memoryview, meta: bytes) -> None:
        """A message of the client has come, or its end."""
        if self.close is not None:
            return
        if meta == WEBSOCKET_CLOSE:
            self._end(decode_websocket_close(data))
            return
        message: dict[str, Any] = {"type": "websocket.receive"}
        if meta == WEBSOCKET_TEXT:
            message["text"] = str(data, "utf-8")
        else:
            message["bytes"] = bytes(data)
        self._inbox.append((message, len(data)))
        self._wake_up()

    def restart(self) -> bool:
        """Close because this replica stops; False: there is nothing to close."""
        if not self.accepted or self.finished:
            return False
        self._end(_RESTART)
        self.finish(FrameKind.END, pack(_RESTART))
        return True

    def _end(self, close: WebSocketClose) -> None:
        is_busy = self._num_waiting == 0
        self.close = close
        self._window = UNBOUNDED
        self._wake_up()
        self._wake_senders()
        if close.cut and is_busy and self.task is not None:
            # Neither `receive` nor `send` tells the handler soon, and nobody wants its work.
            self.task.cancel()

    # -- ASGI ---------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The `receive` of ASGI."""
        if not self._is_connected:
            self._is_connected = True
            return {"type": "websocket.connect"}
        while not self._inbox and self.close is None and not self.finished:
            await self._wait_wake()
        if self._inbox:
            message, size = self._inbox.popleft()
            self._taken += cost(size)
            if is_grant_due(self._taken) and self.close is None and not self.finished:
                self.connection.write(FrameKind.CREDIT, self.number, pack(self._taken))
                self._taken = 0
            return message
        close = self.close or _NEVER_OPEN
        return {"type": "websocket.disconnect", "code": close.code, "reason": close.reason}

    async def send(self, message: Message) -> None:
        """The `send` of ASGI.

        Raises:
            ClientGoneError: the client has closed.
            RuntimeError: the message does not fit here.
        """
        kind = message["type"]
        if kind == "websocket.send":
            await self._send_message(message)
        elif kind == "websocket.close":
            self._close(int(message.get("code", 1000)), message.get("reason") or "")
        elif self.finished or self.accepted:
            raise RuntimeError(f"The ASGI app sent {kind!r} after its answer to the handshake")
        elif kind in ("websocket.http.response.start", "websocket.http.response.body"):
            await super().send({**message, "type": kind.removeprefix("websocket.")})
        elif kind == "websocket.accept":
            self._accept(message)
        else:
            raise RuntimeError(f"The ASGI app sent {kind!r}, which this server does not know")

    def _accept(self, message: Message) -> None:
        if self.response_started:
            raise RuntimeError(
                "The ASGI app accepted the WebSocket after it had begun to refuse it"
            )
        headers = [(bytes(k), bytes(v)) for k, v in message.get("headers", ())]
        subprotocol = message.get("subprotocol")
        if subprotocol is not None:
            headers.append((b"sec-websocket-protocol", str(subprotocol).encode("latin-1")))
        self.connection.write(
            FrameKind.START, self.number, pack(HttpStart(101, headers, self.route()))
        )
        self.accepted = self._started = True
        if self.context is not None:
            self.context.deadline = None

    async def _send_message(self, message: Message) -> None:
        if not self.accepted:
            raise RuntimeError("The ASGI app sent a message before `websocket.accept`")
        if self.close is not None:
            raise ClientGoneError(f"The WebSocket is closed (code {self.close.code})")
        if self.finished:
            raise RuntimeError("The ASGI app sent a message after `websocket.close`")
        text = message.get("text")
        if text is not None:
            await self.send_item(WEBSOCKET_TEXT, text.encode())
        else:
            await self.send_item(WEBSOCKET_BINARY, octets(message["bytes"]))

    def _close(self, code: int, reason: str) -> None:
        if self.finished or self.close is not None:
            return
        if not self.accepted:
            self.close = _NEVER_OPEN
            self.finish(FrameKind.RESPONSE, pack(HttpStart(403, [], self.route())))
            return
        if code not in _CLOSE_CODES and not 3000 <= code <= 4999:
            raise RuntimeError(f"{code} is no code that a WebSocket can be closed with")
        self.close = WebSocketClose(code, reason)
        self.finish(FrameKind.END, pack(self.close))

    async def _wait_room(self) -> None:
        self._num_waiting += 1
        try:
            await super()._wait_room()
        finally:
            self._num_waiting -= 1
        if self.close is not None:
            raise ClientGoneError(f"The WebSocket is closed (code {self.close.code})")

    async def _wait_wake(self) -> None:
        self._num_waiting += 1
        try:
            await super()._wait_wake()
        finally:
            self._num_waiting -= 1
