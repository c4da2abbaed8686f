"""The body of an answer that comes in parts, as HTTP frames it for the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remora.proxy import head as heads
from remora.proxy.front import SMALL_BODY_BYTES
from remora.wire.window import FRAME_COST_BYTES, is_grant_due

if TYPE_CHECKING:
    from remora.proxy.exchange import Exchange


class StreamedBody:
    """Writes one body.

    Attributes:
        is_chunked: its parts say how long they are.
        ends_with_connection: nothing else tells the client where it ends.
        lines: of the head, that say how it is framed.
    """

    __slots__ = (
        "_exchange",
        "_has_body",
        "_left",
        "ends_with_connection",
        "is_chunked",
        "lines",
    )

    def __init__(self, exchange: Exchange, head: heads.Head) -> None:
        self._exchange = exchange
        self._has_body = heads.has_body(exchange.request.method, head.status)
        self._left = head.content_length
        self.is_chunked = self.ends_with_connection = False
        self.lines: list[bytes | memoryview] = []
        if self._left is not None:
            if head.status not in heads.WITHOUT_LENGTH:
                self.lines.append(b"content-length: %d\r\n" % self._left)
        elif self._has_body:
            if exchange.request.speaks_chunked:
                self.is_chunked = True
                self.lines.append(b"transfer-encoding: chunked\r\n")
            else:
                # HTTP/1.0: the end of the connection is the end of the body.
                self.ends_with_connection = True

    def write_chunk(self, body: bytes | memoryview) -> None:
        """Write a part of a body that is chunked."""
        exchange = self._exchange
        connection = exchange.connection
        size = len(body)
        exchange.consumed += size + FRAME_COST_BYTES
        if is_grant_due(exchange.consumed):
            exchange.grant()
        if size > SMALL_BODY_BYTES:
            connection.write(b"%x\r\n" % size)
            connection.write(body)
            connection.write(b"\r\n")
        elif size:
            connection.write(b"%x\r\n%b\r\n" % (size, bytes(body)))

    def write(self, body: bytes | memoryview) -> bool:
        """Write a part of a body that is not; False: it is longer than the head has said."""
        size = len(body)
        if size == 0 or not self._has_body:
            return True
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                return False
        self._exchange.connection.write(body)
        return True

    def end(self) -> bool:
        """Write what stands behind it; False: something is missing."""
        if self._left and self._has_body:
            return False
        if self.is_chunked:
            self._exchange.connection.write(b"0\r\n\r\n")
        return True
