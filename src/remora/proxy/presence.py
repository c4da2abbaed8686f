"""Whether a client is still there, as far as that can be told without reading from it.

The loop tells that a client has left only while it reads from it. While it does not, the kernel is
asked now and then, or work would go on, or be begun, for nobody. And a client that sends no more
has not always left: see `half_close`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from remora.proxy import peer
from remora.proxy.ending import Phase
from remora.proxy.half_close import HalfClose
from remora.proxy.limits import WATCH_EVERY_S
from remora.router.call import CallState
from remora.types import Seconds

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection

# A member of an enumeration is slow to look up.
_DONE = CallState.DONE


class Presence:
    """Looks after one client."""

    watch_every_s: Seconds = WATCH_EVERY_S

    __slots__ = ("_connection", "_half_close", "_is_gone", "_is_watched", "_transport")

    def __init__(self, connection: ClientConnection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._is_gone = False
        self._is_watched = False
        #: Of a client that sends no more.
        self._half_close: HalfClose | None = None

    def stop(self) -> None:
        """The connection is lost; what knows each other would wait for the collector of cycles."""
        self._is_gone = True
        if self._half_close is not None:
            self._half_close.stop()
            self._half_close = None
        del self._connection

    def may_wait_for_answers(self) -> bool:
        """Whether a client that sends no more could still be reading."""
        connection = self._connection
        active = connection.active
        return (
            active is not None
            and active.is_read
            and not active.head_sent
            and connection.reader.exchange is None
            and not connection.is_websocket
            and not active.request.wants_websocket
            and connection.ending.phase <= Phase.LAST
            and peer.is_plain_tcp(self._transport)
        )

    def watch_half_close(self) -> None:
        """It sends no more, and may wait for answers."""
        if self._half_close is None:
            self._half_close = HalfClose(self._connection, self._transport)

    def watch(self) -> None:
        """Nothing is read from the client from now on: see whether it leaves."""
        if not self._is_watched:
            self._is_watched = True
            asyncio.get_running_loop().call_later(self.watch_every_s, self._look)

    def _look(self) -> None:
        self._is_watched = False
        if self._is_gone or not self._connection.inlet.is_paused:
            return
        active = self._connection.active
        is_due = active is not None and active.state is not _DONE
        if not is_due or self._half_close is not None or not peer.has_left(self._transport):
            self.watch()
        elif peer.is_closed(self._transport) or not self.may_wait_for_answers():
            self._connection.ending.abort()
        else:
            self.watch_half_close()
