"""One client's connection: whose turn it is, and how the connection ends.

The protocol class that uvicorn's server is given. `RequestReader` makes requests of the client's
bytes, exchanges answer them; here they are put in their order, one at a time, and none is begun
for a client that does not take what it was sent before.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.server import ServerState

from remora.proxy import head as heads
from remora.proxy import limits, peer, respond
from remora.proxy.exchange import Exchange
from remora.proxy.front import BrokenBodyError, Front
from remora.proxy.half_close import HalfClose
from remora.proxy.limits import Progress
from remora.proxy.reading import RequestReader
from remora.router.call import CallState
from remora.transport.outbox import Outbox
from remora.types import Seconds
from remora.wire.framing import LARGE_BODY_BYTES
from remora.wire.messages import HttpHead

if TYPE_CHECKING:
    from remora.proxy.websocket import WebSocketExchange

_log = logging.getLogger("remora.proxy")
# A member of an enumeration is slow to look up.
_DONE = CallState.DONE


class Phase(IntEnum):
    """How far a connection is on the way to its end; it only goes forward."""

    OPEN = 0
    #: The server stops: one more request is answered.
    STOPPING = 1
    #: What was sent is answered; no other request is taken.
    LAST = 2
    #: What comes cannot be understood, and is dropped.
    BROKEN = 3
    #: All is said; what comes is dropped for a while, so that the client sees it.
    LINGERING = 4
    #: Closed, as soon as what was written has left.
    CLOSING = 5


class ClientConnection(asyncio.Protocol):
    """Serves one client."""

    head_timeout_s: Seconds = limits.HEAD_TIMEOUT_S
    body_timeout_s: Seconds = limits.BODY_TIMEOUT_S
    take_timeout_s: Seconds = limits.TAKE_TIMEOUT_S
    watch_every_s: Seconds = limits.WATCH_EVERY_S
    linger_s: Seconds = limits.LINGER_S
    last_request_s: Seconds = limits.LAST_REQUEST_S

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take what uvicorn hands to a protocol; the configured app is our `Front`."""
        self.front = cast(Front, config.app)
        self._server_state = server_state
        self._loop = _loop or asyncio.get_running_loop()
        self.time = self._loop.time
        self._transport: asyncio.Transport
        self._outbox: Outbox
        self._reader: RequestReader
        self._progress = Progress(self.time())
        self._timer: asyncio.TimerHandle | None = None
        #: A client that has asked nothing yet is not kept as long as one that has.
        self._idle_limit_s: Seconds = self.head_timeout_s
        self._phase = Phase.OPEN
        #: Being answered.
        self._active: Exchange | None = None
        #: Sent ahead by the client, to be answered in turn after the active one.
        self._ahead: deque[Exchange] = deque()
        self._is_taking_turns = False
        #: Received, and not parsed before there is room for the requests in it.
        self._rest = b""
        #: Of a client that sends no more.
        self._half_close: HalfClose | None = None
        #: Takes all bytes of a client that has asked for a WebSocket.
        self._websocket: WebSocketExchange | None = None
        self._client: tuple[str, int] | None = None
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
        self._client = peer.host_and_port(transport.get_extra_info("peername"))
        self._reader = RequestReader(
            self,
            self._progress,
            self.front.options.max_head_bytes,
            "http" if transport.get_extra_info("sslcontext") is None else "https",
            self._client,
            peer.host_and_port(transport.get_extra_info("sockname")),
        )
        self._look_again(self._progress.since)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has left: stop what runs for it, at every level."""
        self.is_gone = True
        self._phase = Phase.CLOSING
        if self._half_close is not None:
            self._half_close.stop()
            self._half_close = None
        self._rest = b""
        self._server_state.connections.discard(cast(Any, self))
        if self._timer is not None:
            self._timer.cancel()
        self._reader.close()
        while self._ahead:
            self._ahead.popleft().cancel()
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

    def eof_received(self) -> bool:
        """The client sends no more: it has left, or waits for the answers that it is owed."""
        if not self._may_wait_for_answers():
            return False
        last = self._ahead[-1] if self._ahead else self._active
        assert last is not None
        last.stop_serving()
        self._enter(Phase.LAST)
        self._watch_half_close()
        return True

    def _may_wait_for_answers(self) -> bool:
        """Whether a client that sends no more could still be reading."""
        active = self._active
        return (
            active is not None
            and active.is_read
            and not active.head_sent
            and self._reader.exchange is None
            and self._websocket is None
            and not active.request.wants_websocket
            and self._phase <= Phase.LAST
            and peer.is_plain_tcp(self._transport)
        )

    def _watch_half_close(self) -> None:
        if self._half_close is None:
            self._half_close = HalfClose(self, self._transport)

    def pause_writing(self) -> None:
        """The client does not take what we send."""
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """The client takes more."""
        self.is_write_paused = False
        if self._active is not None:
            self._active.grant()
        else:
            self._take_turns()

    def data_received(self, data: bytes) -> None:
        """Read what has come, as far as there is room for the requests in it."""
        if self._rest or len(data) > limits.PIECE_BYTES:
            self._rest += data
            self._read_on()
        elif not self._phase and self._websocket is None:
            self._reader.feed(data)
        else:
            self._read(data)

    def _read_on(self) -> None:
        while self._rest and len(self._ahead) < limits.MAX_REQUESTS_AHEAD:
            is_head = self._reader.in_head and self._websocket is None
            size = limits.PIECE_BYTES if is_head else len(self._rest)
            piece, self._rest = self._rest[:size], self._rest[size:]
            self._read(piece)

    def _read(self, data: bytes) -> None:
        if self._websocket is not None:
            self._websocket.feed(data)
        elif self._phase < Phase.LAST or (
            self._phase is Phase.LAST and self._reader.exchange is not None
        ):
            self._reader.feed(data)

    def shutdown(self) -> None:
        """The server goes down: finish what is under way, then close (called by uvicorn)."""
        if self._phase >= Phase.BROKEN:
            return
        last = self._ahead[-1] if self._ahead else self._active
        if last is not None:
            self._phase = Phase.LAST
            last.stop_serving()
            return
        self._phase = Phase.STOPPING
        self._idle_limit_s = self.last_request_s
        if not self._reader.head_bytes:
            self._progress.since = self.time()
        self._set_timer(self.last_request_s, self._look)

    # -- what the reader uses ---------------------------------------------------------------

    def take_request(self, head: HttpHead, keep_alive: bool, upgrades: bool) -> None:
        """The client has sent the head of a request: begin to answer it, if it is its turn."""
        if self._phase:
            if self._phase is not Phase.STOPPING:
                return
            self._phase = Phase.LAST
            keep_alive = False
        else:
            self._idle_limit_s = self.front.options.keep_alive_timeout_s
        request = self.front.open(head)
        exchange: Exchange
        if upgrades and request.wants_websocket:
            # At the first one: most front doors are never asked for a WebSocket.
            from remora.proxy.websocket import WebSocketExchange

            exchange = WebSocketExchange(self, request)
        else:
            exchange = Exchange(self, request)
            exchange.keep_alive = keep_alive
        self._reader.exchange = exchange
        if self._active is None and not self.is_write_paused:
            self._active = exchange
            exchange.begin()
        else:
            self._ahead.append(exchange)
            self.pause_reading()

    def on_upgrade(self, rest: bytes) -> None:
        """What follows is not HTTP/1.1.

        But for WebSockets we stay with it: the request is answered as any other, and what is
        behind it cannot be read.
        """
        last = self._ahead[-1] if self._ahead else self._active
        if self._phase <= Phase.LAST and last is not None and last.is_websocket:
            self._websocket = cast("WebSocketExchange", last)
            self._websocket.feed(rest)
        self._enter(Phase.LAST)

    def refuse(self, status: int, reason: str) -> None:
        """Answer what is no proper request, and close."""
        if self._phase >= Phase.BROKEN:
            return
        self._phase = Phase.BROKEN
        active, reading = self._active, self._reader.exchange
        if active is None and not self._ahead:
            response = respond.text(status, reason)
            lines = [heads.render(status, response.headers).text]
            request_id = self._reader.request_id()
            lines.append(b"x-request-id: %b\r\n" % request_id.encode("latin-1", "replace"))
            lines.append(self.default_lines())
            lines.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(response.body))
            self._outbox.write(b"".join((*lines, response.body)))
            client = peer.shown(self._client)
            _log.info("Refused a request of %s with status %d: %s", client, status, reason)
            self.linger()
        elif active is None or active is not reading:
            # Nothing can be said before the responses that are due; they are the last.
            if reading is not None:
                self._reader.exchange = None
                if self._ahead and self._ahead[-1] is reading:
                    self._ahead.pop().cancel()
            last = self._ahead[-1] if self._ahead else active
            if last is None:
                self.close()
            else:
                last.keep_alive = False
                self.pause_reading()
        elif active.complete:
            self.close()
        else:
            # Its handler, if it has begun, would wait for the rest for ever.
            active.keep_alive = False
            active.give_up(BrokenBodyError(status, reason))

    # -- what an exchange uses --------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send to the client."""
        if len(data) > LARGE_BODY_BYTES:
            self._outbox.write_large(data)
        else:
            self._outbox.write(data)

    def write_now(self, data: bytes) -> None:
        """Send to the client a small answer that is whole: nothing will join it."""
        self._outbox.write_now(data)

    def flush(self) -> None:
        """Hand over to the kernel what was written."""
        self._outbox.flush()

    @property
    def active(self) -> Exchange | None:
        """The exchange that is being answered."""
        return self._active

    def is_turn_of(self, exchange: Exchange) -> bool:
        """Whether this exchange is the one to be answered now."""
        return exchange is self._active

    def default_lines(self) -> bytes:
        """Header lines that every response has (the date)."""
        return self.front.default_lines(self._server_state.default_headers)

    def pause_reading(self) -> None:
        """Take no more from the client for now."""
        if not self.is_read_paused and not self.is_gone:
            self.is_read_paused = True
            self._transport.pause_reading()
            if not self._is_watched:
                self._is_watched = True
                self._loop.call_later(self.watch_every_s, self._watch)

    def resume_reading(self) -> None:
        """Take more from the client, unless others of its requests have to be answered first."""
        if (
            self.is_read_paused
            and not self.is_gone
            and not self._ahead
            and (self._active is not None or not self.is_write_paused)
        ):
            if self._rest:
                # Not now: it may be the parser that calls.
                self._loop.call_soon(self._read_on_later)
                return
            self.is_read_paused = False
            self._transport.resume_reading()
            self.on_body_wanted()

    def _read_on_later(self) -> None:
        if not self._rest or self._ahead or not self.is_read_paused:
            return
        self.is_read_paused = False
        self._read_on()
        # Unless what was read now gives a reason not to read more.
        if not self.is_read_paused and not self.is_gone:
            self._transport.resume_reading()
            self.on_body_wanted()

    def on_body_wanted(self) -> None:
        """Until now it was we who did not take the body."""
        if not self._reader.in_head:
            self._progress.restart(self.time())

    def on_exchange_complete(self, exchange: Exchange) -> None:
        """A response is written; the request may still be coming."""
        self._outbox.flush()
        self._server_state.total_requests += 1
        self.front.close(exchange)
        if exchange is not self._active:
            return
        if self.is_gone:
            self._active = self._websocket = None
        elif exchange.is_read:
            self.on_turn_over(exchange)
        elif self._phase < Phase.LINGERING:
            # Bytes that nobody wants are read and dropped: the client sees the answer then.
            self.resume_reading()
            if not exchange.keep_alive:
                self._enter(Phase.LAST)
                self._say_no_more()

    def on_turn_over(self, exchange: Exchange) -> None:
        """Request and response of the active exchange are over: the next one, or idleness."""
        self._active = None
        if not exchange.keep_alive:
            if self._phase < Phase.LINGERING:
                self.close()
        else:
            self._progress.since = self.time()
            if self._ahead or self.is_write_paused or self.is_read_paused:
                self._take_turns()

    def _take_turns(self) -> None:
        """Begin what was sent ahead, until something is to be waited for; then read on.

        A loop, because what is answered at once is over before `begin` returns.
        """
        if self._is_taking_turns:
            return
        self._is_taking_turns = True
        try:
            while self._ahead and self._active is None and self._phase < Phase.LINGERING:
                if self.is_write_paused:
                    break
                self._active = self._ahead.popleft()
                self._active.begin()
        finally:
            self._is_taking_turns = False
        if self._phase >= Phase.BROKEN:
            return
        if self.is_write_paused and self._active is None:
            # What it asks next would only lie here, answered, for one that takes nothing.
            self.pause_reading()
        else:
            self.resume_reading()

    # -- the end ----------------------------------------------------------------------------

    def linger(self) -> None:
        """Send no more, and close in a while.

        Closed now, with bytes unread, the client would see a reset and not the last word.
        """
        self._enter(Phase.LINGERING)
        if self.is_read_paused and not self.is_gone:
            self.is_read_paused = False
            self._transport.resume_reading()
        self._say_no_more()

    def _say_no_more(self) -> None:
        """Close our side now, and all of it in a while."""
        self._outbox.flush()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._set_timer(self.linger_s, self.close)

    def close(self) -> None:
        """Close when what was written has left; a client that does not take it is cut."""
        self._phase = Phase.CLOSING
        self._outbox.flush()
        self._transport.close()
        if not self.is_gone:
            self._look_at_end()

    def abort(self) -> None:
        """Close at once; the client sees that something is missing."""
        self._phase = Phase.CLOSING
        self._outbox.flush()
        self._transport.abort()

    def _enter(self, phase: Phase) -> None:
        self._phase = max(self._phase, phase)

    def _look_at_end(self) -> None:
        if self._is_taking():
            self._set_timer(self.take_timeout_s / 4, self._look_at_end)
        else:
            self.abort()

    # -- limits -----------------------------------------------------------------------------

    def _look(self) -> None:
        """One timer for each connection, not one for each request: is it overdue?"""
        now = self.time()
        progress = self._progress
        reading = self._reader.exchange
        if reading is not None:
            if not self.is_read_paused and not reading.owes_continue:
                fault = progress.fault_of_body(now, self.body_timeout_s)
                if fault is not None:
                    self.refuse(408, fault)
                    return
        elif self._active is None:
            waited_s = now - progress.since
            if self._reader.head_bytes and not self.is_read_paused:
                if waited_s >= self.head_timeout_s:
                    limit = self.head_timeout_s
                    self.refuse(408, f"The request's head was not complete after {limit:g} s.")
                    return
            elif self._transport.get_write_buffer_size():
                progress.since = now
                if not self._is_taking():
                    self.abort()
                    return
            elif waited_s >= self._idle_limit_s and not peer.has_unread(self._transport):
                self._end_idleness()
                return
        self._look_again(now)

    def _end_idleness(self) -> None:
        """A request that is on its way already sees an end, which clients repeat it after, no reset."""
        if self._phase is Phase.OPEN and self._transport.can_write_eof():
            self.linger()
        else:
            self.close()

    def _look_again(self, now: Seconds) -> None:
        soonest = min(
            self.head_timeout_s,
            self.body_timeout_s,
            self.take_timeout_s,
            self._idle_limit_s,
            self.front.options.keep_alive_timeout_s,
        )
        due = max(self._progress.since + soonest, now + max(soonest / 4, limits.LOOK_EVERY_S))
        self._set_timer(due - now, self._look)

    def _set_timer(self, seconds: Seconds, callback: Any) -> None:
        """In place of what was to be looked at before; gone with the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, callback)

    def _is_taking(self) -> bool:
        unsent = self._transport.get_write_buffer_size()
        return self._progress.is_taking(self.time(), unsent, self.take_timeout_s)

    def _watch(self) -> None:
        """See whether a client of which nothing is read has left.

        The loop does not notice that, and work would go on, or be begun, for nobody.
        """
        self._is_watched = False
        if self.is_gone or not self.is_read_paused:
            return
        active = self._active
        is_due = active is not None and active.state is not _DONE
        if is_due and peer.has_left(self._transport) and not self._half_close:
            if peer.is_closed(self._transport) or not self._may_wait_for_answers():
                self.abort()
                return
            self._watch_half_close()
        else:
            self._is_watched = True
            self._loop.call_later(self.watch_every_s, self._watch)
