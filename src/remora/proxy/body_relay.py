"""The body of a request on its way from the client to the replica, as the replica has room.

What the replica has no room for stops the reading of the client's socket. Small bodies go with
their request and take no part in this.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from remora.proxy.front import SMALL_BODY_BYTES
from remora.router.call import CallState
from remora.wire.messages import FrameKind
from remora.wire.window import cost

if TYPE_CHECKING:
    from remora.proxy.exchange import Exchange

# A member of an enumeration is slow to look up.
_SENT = CallState.SENT


class BodyRelay:
    """Passes one body on."""

    __slots__ = ("_buffered_bytes", "_exchange", "_has_ended", "_parts", "_room")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        #: Received, and not sent on.
        self._parts: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._room = 0
        self._has_ended = False

    def take(self, data: bytes) -> None:
        """A part has come from the client."""
        self._parts.append(data)
        self._buffered_bytes += len(data)
        self.pump()
        if self._buffered_bytes > SMALL_BODY_BYTES:
            self._exchange.connection.inlet.pause()

    def on_room(self, size: int) -> None:
        """The replica takes so many bytes more."""
        self._room += size
        self.pump()

    def pump(self) -> None:
        """Send on what there is room for."""
        exchange = self._exchange
        link = exchange.link
        if exchange.state is not _SENT or link is None or link.channel is None:
            return
        parts = self._parts
        while parts and self._room > 0:
            data = parts.popleft()
            self._buffered_bytes -= len(data)
            self._room -= cost(len(data))
            link.channel.send(FrameKind.BODY, exchange.number, b"", data)
        if exchange.is_read and not parts and not self._has_ended and self._room > 0:
            self._has_ended = True
            link.channel.send(FrameKind.BODY, exchange.number, b"\x01")
        if self._buffered_bytes <= SMALL_BODY_BYTES:
            exchange.connection.inlet.resume()
