"""How fast a client's bytes come in: what is kept of them, and when no more are read.

Nothing is parsed that there is no room for: neither bodies that the replica does not take, nor
requests behind those that wait for their turn, nor any while the client does not take answers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from remora.proxy import limits

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection


class Inlet:
    """Lets the bytes of one client in.

    Attributes:
        is_paused: no more is read from the socket.
        rest: received, and not parsed before there is room for the requests in it.
    """

    __slots__ = ("_connection", "_is_open", "_transport", "is_paused", "rest")

    def __init__(self, connection: ClientConnection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._is_open = True
        self.is_paused = False
        self.rest = b""

    def close(self) -> None:
        """The connection is lost; what knows each other would wait for the collector of cycles."""
        self._is_open = False
        self.rest = b""
        del self._connection

    def take(self, data: bytes) -> None:
        """Read what has come, as far as there is room for the requests in it."""
        self.rest += data
        self._read_on()

    def _read_on(self) -> None:
        connection = self._connection
        while self.rest and connection.num_ahead < limits.MAX_REQUESTS_AHEAD:
            size = limits.PIECE_BYTES if connection.reads_head else len(self.rest)
            piece, self.rest = self.rest[:size], self.rest[size:]
            connection.read(piece)

    def pause(self) -> None:
        """Take no more from the client for now."""
        if not self.is_paused and self._is_open:
            self.is_paused = True
            self._transport.pause_reading()
            self._connection.presence.watch()

    def resume(self) -> None:
        """Take more from the client, unless others of its requests have to be answered first."""
        if self.is_paused and self._is_open and self._connection.may_read_on:
            if self.rest:
                # Not now: it may be the parser that calls.
                asyncio.get_running_loop().call_soon(self._read_on_later)
            else:
                self.reopen()
                self._connection.on_body_wanted()

    def reopen(self) -> None:
        """Take more from the client, whatever is to be done with it."""
        if self.is_paused and self._is_open:
            self.is_paused = False
            self._transport.resume_reading()

    def _read_on_later(self) -> None:
        if not self.rest or self._connection.num_ahead or not self.is_paused:
            return
        self.is_paused = False
        self._read_on()
        # Unless what was read now gives a reason not to read more.
        if not self.is_paused and self._is_open:
            self._transport.resume_reading()
            self._connection.on_body_wanted()
