"""What uvicorn's HTTP protocol does not do by itself: limits on heads, and noticing who leaves.

Rules: only overrides of documented behaviour; parsing and writing HTTP stay uvicorn's.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from remora.router.call import Call
from remora.transport.outbox import LARGE_BYTES, Outbox

#: A client has this long from the first byte of a request's head to the last.
HEAD_TIMEOUT_S = 30.0
#: The largest head (request line and headers) in bytes. Node allows 16 KB, nginx 32 KB, and
#: uvicorn has no limit with this parser; twice nginx's is room enough for any honest cookie.
MAX_HEAD_BYTES = 64 * 1024
#: Key of the ASGI scope under which a request finds its connection.
CONNECTION = "remora.connection"


class _JoinedTransport:
    """A transport that sends a response's head and body in one system call instead of two."""

    __slots__ = ("_outbox", "_transport", "abort", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._outbox = Outbox(transport)
        self.abort = transport.abort
        self.is_closing = transport.is_closing

    def write(self, data: bytes | memoryview) -> None:
        if len(data) > LARGE_BYTES:
            self._outbox.write_large(b"", data)
        else:
            self._outbox.write(data)  # type: ignore[arg-type]

    def flush(self) -> None:
        self._outbox.flush()

    def close(self) -> None:
        self._outbox.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class FrontProtocol(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The call that is under way for this client; cancelled when the client leaves.
        self.call: Call | None = None
        self._head_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Write through an outbox."""
        super().connection_made(transport)
        self.transport = _JoinedTransport(transport)  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        """A response is complete: it leaves without waiting for the end of the turn."""
        self.transport.flush()  # type: ignore[attr-defined]
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, which the parser keeps without a limit."""
        super().data_received(data)
        if self._in_head and self.parser is not None:
            if self._head_bytes == 0 and self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_expired)
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    b"431 Request Header Fields Too Large",
                    b"The request line and headers may have %d bytes together." % MAX_HEAD_BYTES,
                )

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self.scope[CONNECTION] = self  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: stop what runs for it, at every level."""
        super().connection_lost(exc)
        if self._head_timer is not None:
            self._head_timer.cancel()
        if self.call is not None:
            self.call.cancel()

    def _head_expired(self) -> None:
        self._head_timer = None
        if self._in_head and self._head_bytes:
            self._refuse(
                b"408 Request Timeout",
                b"The request's head was not complete after %d s." % HEAD_TIMEOUT_S,
            )

    def _refuse(self, status: bytes, body: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (status, len(body), body)
        )
        self.transport.close()
