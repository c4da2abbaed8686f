"""One client's connection: HTTP/1.1 in with httptools, exchanges in their order, bytes out.

The protocol class that uvicorn's server is given. It bounds what a client can make us keep: the
size of a head and the time it may take, requests sent ahead, and bytes of body.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from typing import Any, cast
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.server import ServerState

from remora.proxy import head as heads
from remora.proxy import respond
from remora.proxy.exchange import Exchange
from remora.proxy.front import BrokenBodyError, Front
from remora.proxy.websocket import WebSocketExchange
from remora.router.call import CallState
from remora.transport.outbox import Outbox
from remora.types import Seconds
from remora.wire.framing import LARGE_BODY_BYTES
from remora.wire.messages import HttpHead

_log = logging.getLogger("remora.proxy")

#: A client has this long from the first byte of a request's head to the last.
HEAD_TIMEOUT_S: Seconds = 30.0
#: A client that sends no byte of a body that is expected is given up after this long.
BODY_TIMEOUT_S: Seconds = 60.0
#: How often a client is looked for that does not get to send its upload.
WATCH_EVERY_S: Seconds = 0.5
#: States of a TCP connection whose other side sends no more.
_LEFT = (7, 8)  # TCP_CLOSE, TCP_CLOSE_WAIT
#: How often a connection is looked at, at most.
_LOOK_EVERY_S: Seconds = 0.05
#: After a refused head or upload the client's bytes are read and dropped for this long, so that it sees
#: the answer and not a reset.
LINGER_S: Seconds = 2.0
#: Requests that a client may have sent ahead (pipelining) before they are answered.
MAX_REQUESTS_AHEAD = 1000


class ClientConnection(asyncio.Protocol):
    """Serves one client."""

    head_timeout_s: Seconds = HEAD_TIMEOUT_S
    body_timeout_s: Seconds = BODY_TIMEOUT_S
    watch_every_s: Seconds = WATCH_EVERY_S

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take what uvicorn hands to a protocol; the configured app is our `Front`."""
        self._front = cast(Front, config.app)
        self._server_state = server_state
        options = self._front.options
        self._keep_alive_s: Seconds = options.keep_alive_timeout_s
        self._max_head_bytes = options.max_head_bytes
        self._loop = _loop or asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._outbox: Outbox
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True
        #: Bytes of the head that is being read; a part of it may be the body's.
        self._head_bytes = 0
        #: A part of a head is here.
        self._has_begun = False
        #: More bytes than a head may have came at once.
        self._is_burst = False
        #: When the connection fell idle, the head that is being read began, or the last bytes
        #: of a body came.
        self._since: Seconds = 0.0
        #: A client that has asked nothing yet is not kept as long as one that has.
        self._idle_limit_s: Seconds = self.head_timeout_s
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._num_hosts = 0
        #: Parsed last; its body is what the parser reads now.
        self._reading: Exchange | None = None
        #: Being answered.
        self._active: Exchange | None = None
        #: Sent ahead by the client, to be answered in turn after the active one.
        self._ahead: deque[Exchange] = deque()
        self._closing = False
        self._is_lingering = False
        #: Takes all bytes of a client that has asked for a WebSocket.
        self._websocket: WebSocketExchange | None = None
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._scheme = "http"
        self.is_read_paused = False
        self._is_watched = False
        self.is_write_paused = False
        self.is_gone = False

    # -- the transport ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast(asyncio.Transport, transport)
        self._outbox = Outbox(self._transport)
        # uvicorn asks nothing of a connection but `shutdown`.
        self._server_state.connections.add(cast(Any, self))
        self._client = _host_and_port(transport.get_extra_info("peername"))
        self._server = _host_and_port(transport.get_extra_info("sockname"))
        self._scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"
        self._since = self._loop.time()
        self._look_again(self._since)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has left: stop what runs for it, at every level."""
        self.is_gone = True
        self._server_state.connections.discard(cast(Any, self))
        if self._timer is not None:
            self._timer.cancel()
        self._reading = None
        # It knows this connection, which would otherwise wait for the collector of cycles.
        self._parser = None
        self._drop_ahead()
        # Nobody takes what is still written, so nothing is to be waited for.
        self.is_write_paused = False
        active = self._active
        if active is None:
            return
        # Work goes on for a client that wanted it to, but not without the rest of its body.
        if active.request.stays and active.is_read:
            active.grant()
        else:
            active.leave()

    def eof_received(self) -> None:
        """The client has closed its side: it has left."""

    def pause_writing(self) -> None:
        """The client does not take what we send."""
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """The client takes more."""
        self.is_write_paused = False
        if self._active is not None:
            self._active.grant()

    def shutdown(self) -> None:
        """The server goes down: finish what is under way, then close (called by uvicorn)."""
        self._closing = True
        if self._active is None:
            self.close()
        else:
            self._active.stop_serving()

    def data_received(self, data: bytes) -> None:
        """Parse what has come; the parser calls the `on_…` methods."""
        if self._websocket is not None:
            self._websocket.feed(data)
            return
        if self._closing and self._reading is None:
            return
        size = len(data)
        if not self._in_head:
            self._since = self._loop.time()
        else:
            if self._head_bytes == 0:
                self._since = self._loop.time()
            self._head_bytes += size
        self._is_burst = size > self._max_head_bytes or (self._is_burst and self._has_begun)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # But for WebSockets we stay with HTTP/1.1: the request is answered as any other, and
            # what is behind it cannot be parsed.
            self._closing = True
            last = self._ahead[-1] if self._ahead else self._active
            if isinstance(last, WebSocketExchange):
                self._websocket = last
                last.feed(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__ or error
            _log.error("A request of %s failed: %r", _shown(self._client), cause, exc_info=cause)
            self._refuse(500, "Internal Server Error")
        except httptools.HttpParserError as error:
            self._refuse(400, f"Invalid HTTP request received: {error}")
        else:
            if self._has_begun:
                if self._head_bytes == 0:
                    # It began in the middle of these bytes, behind another request.
                    self._head_bytes = _size(self._url, self._headers) + 1
                    self._since = self._loop.time()
                self._check_head(self._head_bytes)

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
        """A header."""
        name = name.lower()
        if name == b"host":
            self._num_hosts += 1
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there: make the exchange, and begin it if it is its turn."""
        self._in_head = self._has_begun = False
        if self._is_burst or self._head_bytes > self._max_head_bytes:
            self._check_head(_size(self._url, self._headers))
        self._head_bytes = 0
        if self._closing:
            return
        parser = self._parser
        version = parser.get_http_version()
        method = parser.get_method()
        if method == b"CONNECT":
            self._refuse(501, "CONNECT is for proxies; this is a server of applications.")
            return
        # RFC 9112, 3.2: whoever routes by another header of two must not be played off against us.
        if self._num_hosts != 1 and (version != "1.0" or self._num_hosts):
            self._refuse(400, f"A request has one Host header; this one has {self._num_hosts}.")
            return
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            self._refuse(400, "Invalid HTTP request received: its target is no URL")
            return
        raw_path = url.path or b"/"
        path = raw_path.decode("latin-1")
        if "%" in path:
            path = unquote(path)
        request = self._front.open(
            HttpHead(
                method.decode("latin-1"),
                path,
                raw_path,
                url.query or b"",
                "",
                self._headers,
                self._scheme,
                version,
                self._client,
                self._server,
            )
        )
        upgrades = parser.should_upgrade()
        exchange: Exchange
        if upgrades and request.wants_websocket:
            exchange = WebSocketExchange(self, request)
        else:
            exchange = Exchange(self, request)
            exchange.keep_alive = version != "1.0" and parser.should_keep_alive() and not upgrades
        self._idle_limit_s = self._keep_alive_s
        self._reading = exchange
        if self._active is None:
            self._active = exchange
            exchange.begin()
        elif len(self._ahead) < MAX_REQUESTS_AHEAD:
            self._ahead.append(exchange)
            self.pause_reading()
        else:
            self._refuse(400, "Too many requests were sent ahead on one connection.")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._reading is not None:
            self._reading.take_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._in_head = True
        if self._reading is not None:
            self._reading.end_body()
            self._reading = None

    # -- what an exchange uses --------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send to the client."""
        if len(data) > LARGE_BODY_BYTES:
            self._outbox.write_large(data)
        else:
            self._outbox.write(data)

    def is_turn_of(self, exchange: Exchange) -> bool:
        """Whether this exchange is the one to be answered now."""
        return exchange is self._active

    def default_lines(self) -> bytes:
        """Header lines that every response has (the date)."""
        return self._front.default_lines(self._server_state.default_headers)

    def pause_reading(self) -> None:
        """Take no more from the client for now."""
        if not self.is_read_paused and not self.is_gone:
            self.is_read_paused = True
            self._transport.pause_reading()
            if not self._is_watched:
                self._is_watched = True
                self._loop.call_later(self.watch_every_s, self._watch)

    def resume_reading(self) -> None:
        """Take more from the client."""
        if self.is_read_paused and not self.is_gone and not self._ahead:
            self.is_read_paused = False
            self._transport.resume_reading()
            if not self._in_head:
                # Until now it was we who did not take the body.
                self._since = self._loop.time()

    def on_exchange_complete(self, exchange: Exchange) -> None:
        """A response is written; the request may still be coming."""
        self._outbox.flush()
        self._server_state.total_requests += 1
        self._front.close(exchange)
        if exchange is not self._active:
            return
        if self.is_gone:
            self._active = self._websocket = None
            return
        if not exchange.is_read:
            # Bytes that nobody wants are read and dropped: the client sees the answer then.
            self.resume_reading()
            if not exchange.keep_alive:
                self._closing = True
                self._linger()
            return
        self.on_turn_over(exchange)

    def on_turn_over(self, exchange: Exchange) -> None:
        """Request and response of the active exchange are over: the next one, or idleness."""
        self._active = None
        if not exchange.keep_alive:
            if not self._is_lingering:
                self.close()
        elif self._ahead:
            self._active = self._ahead.popleft()
            self.resume_reading()
            self._active.begin()
        else:
            self._since = self._loop.time()
            self.resume_reading()

    def abort(self) -> None:
        """Close at once; the client sees that something is missing."""
        self._closing = True
        self._outbox.flush()
        self._transport.abort()

    def close(self) -> None:
        """Close when what was written has left."""
        self._closing = True
        self._outbox.flush()
        self._transport.close()

    # -- limits -----------------------------------------------------------------------------

    def _look(self) -> None:
        """One timer for each connection, not one for each request: is it overdue?"""
        now = self._loop.time()
        waited_s = now - self._since
        if self._reading is not None:
            if waited_s >= self.body_timeout_s and not self.is_read_paused:
                limit = self.body_timeout_s
                self._refuse(408, f"No byte of the request's body came for {limit:g} s.")
                return
        elif self._active is None:
            if self._head_bytes:
                if waited_s >= self.head_timeout_s:
                    limit = self.head_timeout_s
                    self._refuse(408, f"The request's head was not complete after {limit:g} s.")
                    return
            elif waited_s >= self._idle_limit_s:
                self.close()
                return
        self._look_again(now)

    def _watch(self) -> None:
        """See whether a client of which nothing is read has left while its upload waits.

        The loop does not notice that, and the request would hold its place in the queue, and be
        begun, for nobody.
        """
        self._is_watched = False
        active = self._active
        if self.is_gone or not self.is_read_paused or active is None:
            return
        if active.state is CallState.QUEUED and _has_left(self._transport):
            self.abort()
        else:
            self._is_watched = True
            self._loop.call_later(self.watch_every_s, self._watch)

    def _look_again(self, now: Seconds) -> None:
        soonest = min(self.head_timeout_s, self.body_timeout_s, self._keep_alive_s)
        due = max(self._since + soonest, now + max(soonest / 4, _LOOK_EVERY_S))
        self._timer = self._loop.call_later(due - now, self._look)

    def _check_head(self, size: int) -> None:
        limit = self._max_head_bytes
        if size > limit:
            self._refuse(431, f"The request line and headers may have {limit} bytes together.")

    def linger(self) -> None:
        """Send no more, and close in a while.

        Closed now, with bytes unread, the client would see a reset and not the last word.
        """
        self._closing = True
        self._outbox.flush()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()
        self._is_lingering = True
        self._linger()

    def _linger(self) -> None:
        """Close in a while; in place of the other limits, and gone with the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self.close)

    def _drop_ahead(self) -> None:
        while self._ahead:
            self._ahead.popleft().cancel()

    def _refuse(self, status: int, reason: str) -> None:
        """Answer what is no proper request, and close."""
        if self._closing:
            return
        self._closing = True
        if self._active is None:
            response = respond.text(status, reason)
            lines = heads.render(status, response.headers).lines
            lines.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(response.body))
            self._outbox.write(b"".join((*lines, response.body)))
            client = _shown(self._client)
            _log.info("Refused a request of %s with status %d: %s", client, status, reason)
            self.linger()
        elif self._active is not self._reading:
            # Nothing can be said before the response that is under way.
            self._active.keep_alive = False
            self._drop_ahead()
            self.pause_reading()
        elif self._active.complete:
            self.close()
        else:
            # Its handler, if it has begun, would wait for the rest for ever.
            self._active.keep_alive = False
            self._active.give_up(BrokenBodyError(status, reason))


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of a head, but for its method and version."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def _shown(address: tuple[str, int] | None) -> str:
    """An address as people write it."""
    if address is None:
        return "a Unix socket"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has closed its side, also when what it sent before is not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _LEFT


def _host_and_port(address: Any) -> tuple[str, int] | None:
    """An IP address as ASGI wants it; None for Unix sockets."""
    if isinstance(address, tuple) and len(address) >= 2:
        return str(address[0]), int(address[1])
    return None
