"""One HTTP request of an ASGI client, as the bytes that a client on a socket would send."""

from __future__ import annotations

import httptools

from remora.proxy.connection import ClientConnection
from remora.testing.pipe import Pipe, Receive, Scope, request_head

#: Headers that say how a body travels, which is decided here, or that no answer is wanted to.
_OURS = frozenset((b"transfer-encoding", b"connection", b"expect", b"keep-alive"))


class HttpPipe(Pipe):
    """The client's end of a connection that carries one request."""

    def __init__(self, connection: ClientConnection, scope: Scope) -> None:
        self._scope = scope
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        super().__init__(connection, scope)

    async def upload(self, receive: Receive) -> None:
        """Send the request; a client that leaves hangs up."""
        message = await receive()
        headers = [(k, v) for k, v in self._scope["headers"] if k.lower() not in _OURS]
        chunked = False
        if all(name.lower() != b"content-length" for name, _ in headers):
            chunked = bool(message.get("more_body"))
            if chunked:
                headers.append((b"transfer-encoding", b"chunked"))
            elif message.get("body"):
                headers.append((b"content-length", b"%d" % len(message["body"])))
        self.feed(request_head(self._scope["method"], self._scope, headers))
        while message["type"] == "http.request":
            body = message.get("body", b"")
            if body:
                self.feed(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
            if not message.get("more_body"):
                break
            await self.may_upload.wait()
            message = await receive()
        if message["type"] == "http.request":
            if chunked:
                self.feed(b"0\r\n\r\n")
            await receive()  # this client says no more, until it leaves
        self.abort()

    def on_bytes(self, data: bytes) -> None:
        """Parse a part of the response."""
        self._parser.feed_data(data)

    # ------------------------------------------------------------------------- the parser

    def on_message_begin(self) -> None:
        """A response begins."""
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        if name.lower() != b"transfer-encoding":
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        status = self._parser.get_status_code()
        self.put({"type": "http.response.start", "status": status, "headers": self._headers})
        if self._scope["method"] == "HEAD":
            self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self.complete:
            self.put({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        """That was all."""
        if not self.complete:
            self.put({"type": "http.response.body", "body": b"", "more_body": False})
            self.complete = True
