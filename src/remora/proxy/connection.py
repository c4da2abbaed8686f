"""One client's connection: whose turn it is, and what is done when the client comes and goes.

The protocol class that uvicorn's server is given. `RequestReader` makes requests of the client's
bytes, exchanges answer them; here they are put in their order, one at a time, and none is begun
for a client that does not take what it was sent before. The rest has parts of its own: what is
read and when (`Inlet`), what is overdue (`Patience`), whether the client is still there
(`Presence`), and the way to the end (`Ending`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.server import ServerState

from remora.proxy import head as heads
from remora.proxy import limits, peer, respond
from remora.proxy.ending import Ending, Phase
from remora.proxy.exchange import Exchange
from remora.proxy.front import BrokenBodyError, Front
from remora.proxy.inlet import Inlet
from remora.proxy.limits import Progress
from remora.proxy.patience import Patience
from remora.proxy.presence import Presence
from remora.proxy.reading import RequestReader
from remora.transport.outbox import Outbox
from remora.wire.framing import LARGE_BODY_BYTES
from remora.wire.messages import HttpHead

if TYPE_CHECKING:
    from remora.proxy.websocket import WebSocketExchange

_log = logging.getLogger("remora.proxy")


class ClientConnection(asyncio.Protocol):
    """Serves one client.

    Attributes:
        active: the exchange that is being answered.
        is_write_paused: the client does not take what we send.
        is_gone: the client has left.
    """

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
        self.time = (_loop or asyncio.get_running_loop()).time
        self.outbox: Outbox
        self.inlet: Inlet
        self.presence: Presence
        self.patience: Patience
        self.ending: Ending
        self.reader: RequestReader
        self._progress = Progress(self.time())
        self.active: Exchange | None = None
        #: Sent ahead by the client, to be answered in turn after the active one.
        self._ahead: deque[Exchange] = deque()
        self._is_taking_turns = False
        #: Takes all bytes of a client that has asked for a WebSocket.
        self._websocket: WebSocketExchange | None = None
        self._client: tuple[str, int] | None = None
        self.is_write_paused = False
        self.is_gone = False

    # -- the transport ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        sock = cast(asyncio.Transport, transport)
        self.outbox = Outbox(sock)
        self.inlet = Inlet(self, sock)
        self.presence = Presence(self, sock)
        self.patience = Patience(self, sock, self._progress)
        self.ending = Ending(sock, self.outbox, self.inlet, self.patience)
        # uvicorn asks nothing of a connection but `shutdown`.
        self._server_state.connections.add(cast(Any, self))
        self._client = peer.host_and_port(transport.get_extra_info("peername"))
        self.reader = RequestReader(
            self,
            self._progress,
            self.front.options.max_head_bytes,
            "http" if transport.get_extra_info("sslcontext") is None else "https",
            self._client,
            peer.host_and_port(transport.get_extra_info("sockname")),
        )
        self.patience.look_again(self._progress.since)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has left: stop what runs for it, at every level."""
        self.is_gone = True
        self.ending.phase = Phase.CLOSING
        self._server_state.connections.discard(cast(Any, self))
        self.presence.stop()
        self.inlet.close()
        self.patience.stop()
        self.reader.close()
        while self._ahead:
            self._ahead.popleft().cancel()
        # Nobody takes what is still written, so nothing is to be waited for.
        self.is_write_paused = False
        active = self.active
        if active is None:
            return
        # Work goes on for a client that wanted it to, but not without the rest of its body.
        if active.request.stays and active.is_read:
            active.grant()
        else:
            active.leave()

    def eof_received(self) -> bool:
        """The client sends no more: it has left, or waits for the answers that it is owed."""
        if not self.presence.may_wait_for_answers():
            return False
        last = self._last
        assert last is not None
        last.stop_serving()
        self.ending.enter(Phase.LAST)
        self.presence.watch_half_close()
        return True

    def pause_writing(self) -> None:
        """The client does not take what we send."""
        self.is_write_paused = True

    def resume_writing(self) -> None:
        """The client takes more."""
        self.is_write_paused = False
        if self.active is not None:
            self.active.on_room()
        else:
            self._take_turns()

    def data_received(self, data: bytes) -> None:
        """Read what has come, as far as there is room for the requests in it."""
        if self.inlet.rest or len(data) > limits.PIECE_BYTES:
            self.inlet.take(data)
        elif not self.ending.phase and self._websocket is None:
            self.reader.feed(data)
        else:
            self.read(data)

    def shutdown(self) -> None:
        """The server goes down: finish what is under way, then close (called by uvicorn)."""
        if self.ending.phase >= Phase.BROKEN:
            return
        last = self._last
        if last is not None:
            self.ending.phase = Phase.LAST
            last.stop_serving()
            return
        self.ending.phase = Phase.STOPPING
        self.patience.expect_last_request()

    # -- what its parts use -----------------------------------------------------------------

    def read(self, data: bytes) -> None:
        """Let whoever it is meant for read what has come."""
        phase = self.ending.phase
        if self._websocket is not None:
            self._websocket.feed(data)
        elif phase < Phase.LAST or (phase is Phase.LAST and self.reader.exchange is not None):
            self.reader.feed(data)

    @property
    def is_websocket(self) -> bool:
        """It is no longer HTTP's."""
        return self._websocket is not None

    @property
    def is_busy(self) -> bool:
        """Something is under way on it."""
        return self.active is not None or self._websocket is not None

    @property
    def reads_head(self) -> bool:
        """What comes next is the head of a request, or between two of them."""
        return self.reader.in_head and self._websocket is None

    @property
    def num_ahead(self) -> int:
        """Requests that wait for their turn."""
        return len(self._ahead)

    @property
    def may_read_on(self) -> bool:
        """No request waits for its turn, and no answer for the client."""
        return not self._ahead and (self.active is not None or not self.is_write_paused)

    @property
    def _last(self) -> Exchange | None:
        """The exchange that is answered last, of those that are known."""
        return self._ahead[-1] if self._ahead else self.active

    # -- what the reader uses ---------------------------------------------------------------

    def take_request(self, head: HttpHead, keep_alive: bool, upgrades: bool) -> None:
        """The client has sent the head of a request: begin to answer it, if it is its turn."""
        if self.ending.phase:
            if self.ending.phase is not Phase.STOPPING:
                return
            self.ending.phase = Phase.LAST
            keep_alive = False
        else:
            self.patience.idle_limit_s = self.front.options.keep_alive_timeout_s
        request = self.front.open(head)
        exchange: Exchange
        if upgrades and request.wants_websocket:
            # At the first one: most front doors are never asked for a WebSocket.
            from remora.proxy.websocket import WebSocketExchange

            exchange = WebSocketExchange(self, request)
        else:
            exchange = Exchange(self, request)
            exchange.keep_alive = keep_alive
        self.reader.exchange = exchange
        if self.active is None and not self.is_write_paused:
            self.active = exchange
            exchange.begin()
        else:
            self._ahead.append(exchange)
            self.inlet.pause()

    def on_upgrade(self, rest: bytes) -> None:
        """What follows is not HTTP/1.1.

        But for WebSockets we stay with it: the request is answered as any other, and what is
        behind it cannot be read.
        """
        last = self._last
        if self.ending.phase <= Phase.LAST and last is not None and last.is_websocket:
            self._websocket = cast("WebSocketExchange", last)
            self._websocket.feed(rest)
        self.ending.enter(Phase.LAST)

    def refuse(self, status: int, reason: str) -> None:
        """Answer what is no proper request, and close."""
        if self.ending.phase >= Phase.BROKEN:
            return
        self.ending.phase = Phase.BROKEN
        active, reading = self.active, self.reader.exchange
        if active is None and not self._ahead:
            self._answer_refusal(status, reason)
            self.ending.linger()
        elif active is None or active is not reading:
            # Nothing can be said before the responses that are due; they are the last.
            if reading is not None:
                self.reader.exchange = None
                if self._ahead and self._ahead[-1] is reading:
                    self._ahead.pop().cancel()
            last = self._last
            if last is None:
                self.ending.close()
            else:
                last.keep_alive = False
                self.inlet.pause()
        elif active.complete:
            self.ending.close()
        else:
            # Its handler, if it has begun, would wait for the rest for ever.
            active.keep_alive = False
            active.give_up(BrokenBodyError(status, reason))

    def _answer_refusal(self, status: int, reason: str) -> None:
        response = respond.text(status, reason)
        lines = [heads.render(status, response.headers).text]
        request_id = self.reader.request_id()
        lines.append(b"x-request-id: %b\r\n" % request_id.encode("latin-1", "replace"))
        lines.append(self.default_lines())
        lines.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(response.body))
        self.outbox.write(b"".join((*lines, response.body)))
        client = peer.shown(self._client)
        _log.info("Refused a request of %s with status %d: %s", client, status, reason)

    # -- what an exchange uses --------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Send to the client."""
        if len(data) > LARGE_BODY_BYTES:
            self.outbox.write_large(data)
        else:
            self.outbox.write(data)

    def default_lines(self) -> bytes:
        """Header lines that every response has (the date)."""
        return self.front.default_lines(self._server_state.default_headers)

    def on_body_wanted(self) -> None:
        """Until now it was we who did not take the body."""
        if not self.reader.in_head:
            self._progress.restart(self.time())

    def on_exchange_complete(self, exchange: Exchange) -> None:
        """A response is written; the request may still be coming."""
        self.outbox.flush()
        self._server_state.total_requests += 1
        self.front.close(exchange)
        if exchange is not self.active:
            return
        if self.is_gone:
            self.active = self._websocket = None
        elif exchange.is_read:
            self.on_turn_over(exchange)
        elif self.ending.phase < Phase.LINGERING:
            # Bytes that nobody wants are read and dropped: the client sees the answer then.
            self.inlet.resume()
            if not exchange.keep_alive:
                self.ending.enter(Phase.LAST)
                self.ending.say_no_more()

    def on_turn_over(self, exchange: Exchange) -> None:
        """Request and response of the active exchange are over: the next one, or idleness."""
        self.active = None
        if not exchange.keep_alive:
            if self.ending.phase < Phase.LINGERING:
                self.ending.close()
        else:
            self._progress.since = self.time()
            if self._ahead or self.is_write_paused or self.inlet.is_paused:
                self._take_turns()

    def _take_turns(self) -> None:
        """Begin what was sent ahead, until something is to be waited for; then read on.

        A loop, because what is answered at once is over before `begin` returns.
        """
        if self._is_taking_turns:
            return
        self._is_taking_turns = True
        try:
            while self._ahead and self.active is None and self.ending.phase < Phase.LINGERING:
                if self.is_write_paused:
                    break
                self.active = self._ahead.popleft()
                self.active.begin()
        finally:
            self._is_taking_turns = False
        if self.ending.phase >= Phase.BROKEN:
            return
        if self.is_write_paused and self.active is None:
            # What it asks next would only lie here, answered, for one that takes nothing.
            self.inlet.pause()
        else:
            self.inlet.resume()
