"""A client that sends no more: has it left, or does it wait for its answer?

The end of its bytes says the same in both cases. A client may close its side alone, after its last
request, and read on (`printf … | nc -N` does); most of those whose end is seen have left. Its
kernel tells them apart: whoever has left answers what is sent to it with a reset. So, unless the
answer is there within moments, it is sent what every client of HTTP/1.1 has to skip: `100 Continue`.

Rules: nothing is sent to a client of HTTP/1.0, nor once the answer has begun.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from remora.proxy import peer
from remora.proxy.limits import HALF_CLOSE_S, WATCH_EVERY_S

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection

_PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: Until the first look at what the probe has brought.
_FIRST_LOOK_S = 0.01


class HalfClose:
    """Watches one client that sends no more, until all that it asked is answered."""

    def __init__(self, connection: ClientConnection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._wait_s = _FIRST_LOOK_S
        self._timer = asyncio.get_running_loop().call_later(HALF_CLOSE_S, self._probe)

    def stop(self) -> None:
        """The connection has ended."""
        self._timer.cancel()

    def _probe(self) -> None:
        connection = self._connection
        active = connection.active
        if active is not None and not active.head_sent:
            if not active.request.speaks_chunked:
                # Of HTTP/1.0, where no answer stands before the answer.
                connection.ending.abort()
                return
            connection.write(_PROBE)
            connection.outbox.flush()
        self._look_later()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._look)
        self._wait_s = min(2 * self._wait_s, WATCH_EVERY_S)

    def _look(self) -> None:
        if peer.is_closed(self._transport):
            self._connection.ending.abort()
        else:
            self._look_later()
