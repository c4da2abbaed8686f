"""Reads HTTP/1.1 requests out of a client's bytes, with httptools.

Bounds what a client can make us keep of a request beside its body: the head, and what may stand
between and behind the parts of a chunked body. Trailers are read and dropped: a header that comes
behind the body was not there when it was decided where the request goes, and by whom it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools

from remora.proxy.exchange import Exchange
from remora.proxy.front import MAX_REQUEST_ID_CHARS
from remora.proxy.limits import Progress
from remora.proxy.peer import shown
from remora.request_context import new_request_id
from remora.wire.messages import HttpHead

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection

_log = logging.getLogger("remora.proxy")
_Address = tuple[str, int] | None


class RequestReader:
    """Reads what one client sends.

    Attributes:
        exchange: whose body the parser reads now; None: a head, or what nobody wants.
        in_head: the next byte belongs to a head.
        head_bytes: of the head that is being read; a part of them may be the body's.
    """

    def __init__(
        self,
        connection: ClientConnection,
        progress: Progress,
        max_head_bytes: int,
        scheme: str,
        client: _Address,
        server: _Address,
    ) -> None:
        self._connection = connection
        self._time = connection.time
        self._progress = progress
        self._max_head_bytes = max_head_bytes
        self._scheme = scheme
        self._client = client
        self._server = server
        self._parser: Any = httptools.HttpRequestParser(self)
        self.exchange: Exchange | None = None
        self.in_head = True
        self.head_bytes = 0
        #: A part of a head is here.
        self._has_begun = False
        #: More bytes than a head may have came at once.
        self._is_burst = False
        #: Bytes of a chunked body since the last that were really its own.
        self._between_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._num_hosts = 0

    def close(self) -> None:
        """Read no more; what knows each other would wait for the collector of cycles."""
        self.exchange = None
        self._parser = None
        del self._connection, self._time

    def request_id(self) -> str:
        """The id of the request whose head was read last, as far as it was; or a new one."""
        for name, value in self._headers:
            if name == b"x-request-id" and value:
                return value.decode("latin-1")[:MAX_REQUEST_ID_CHARS]
        return new_request_id()

    def feed(self, data: bytes) -> None:
        """Parse what has come; the parser calls the `on_…` methods."""
        size = len(data)
        if not self.in_head:
            self._progress.on_body(self._time(), size)
            self._between_bytes += size
        else:
            if self.head_bytes == 0:
                self._progress.since = self._time()
            self.head_bytes += size
        self._is_burst = size > self._max_head_bytes or (self._is_burst and self._has_begun)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._connection.on_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__ or error
            _log.error("A request of %s failed: %r", shown(self._client), cause, exc_info=cause)
            self._connection.refuse(500, "Internal Server Error")
        except httptools.HttpParserError as error:
            self._connection.refuse(400, f"Invalid HTTP request received: {error}")
        else:
            if self._has_begun:
                if self.head_bytes == 0:
                    # It began in the middle of these bytes, behind another request.
                    self.head_bytes = _size(self._url, self._headers) + 1
                    self._progress.since = self._time()
                self._check_head(self.head_bytes)
            elif self._between_bytes > self._max_head_bytes:
                limit = self._max_head_bytes
                reason = f"The extensions and trailers of a body may have {limit} bytes together."
                self._connection.refuse(431, reason)

    # -- the parser -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._has_begun = True
        self._url = b""
        self._headers = []
        self._num_hosts = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody gets."""
        if self._has_begun:
            name = name.lower()
            if name == b"host":
                self._num_hosts += 1
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there: make the exchange, and begin it if it is its turn."""
        self.in_head = self._has_begun = False
        if self._is_burst or self.head_bytes > self._max_head_bytes:
            self._check_head(_size(self._url, self._headers))
        self.head_bytes = self._between_bytes = 0
        self._progress.begin_body()
        parser = self._parser
        connection = self._connection
        version = parser.get_http_version()
        method = parser.get_method()
        if method == b"CONNECT":
            connection.refuse(501, "CONNECT is for proxies; this is a server of applications.")
            return
        # RFC 9112, 3.2: whoever routes by another header of two must not be played off against us.
        if self._num_hosts != 1 and (version != "1.0" or self._num_hosts):
            connection.refuse(
                400, f"A request has one Host header; this one has {self._num_hosts}."
            )
            return
        target = self._url
        if target.startswith(b"/") and b"#" not in target:
            raw_path, _, query = target.partition(b"?")
        else:
            try:
                url = httptools.parse_url(target)
            except httptools.HttpParserInvalidURLError:
                connection.refuse(400, "Invalid HTTP request received: its target is no URL")
                return
            raw_path, query = url.path or b"/", url.query or b""
        path = raw_path.decode("latin-1")
        if "%" in path:
            path = unquote(path)
        head = HttpHead(
            method.decode("latin-1"),
            path,
            raw_path,
            query,
            "",
            self._headers,
            self._scheme,
            version,
            self._client,
            self._server,
        )
        upgrades = parser.should_upgrade()
        keep_alive = version != "1.0" and parser.should_keep_alive() and not upgrades
        connection.take_request(head, keep_alive, upgrades)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._between_bytes = 0
        if self.exchange is not None:
            self.exchange.take_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self.in_head = True
        exchange = self.exchange
        if exchange is not None:
            exchange.end_body()
            self.exchange = None

    def _check_head(self, size: int) -> None:
        limit = self._max_head_bytes
        if size > limit:
            reason = f"The request line and headers may have {limit} bytes together."
            self._connection.refuse(431, reason)


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of a head, but for its method and version."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
