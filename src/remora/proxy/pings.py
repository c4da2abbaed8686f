"""Whether the client of a WebSocket is still there: pings, and what it has to answer in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from remora.options.http import HTTPOptions
from remora.proxy.websocket_session import INTERNAL_ERROR, WebSocketSession
from remora.types import Seconds

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection


class Pings:
    """Pings one client.

    Attributes:
        is_heard: the client has sent something since the last ping.
    """

    __slots__ = ("_connection", "_options", "_session", "_timer", "is_heard")

    def __init__(
        self, connection: ClientConnection, session: WebSocketSession, options: HTTPOptions
    ) -> None:
        self._connection = connection
        self._session = session
        self._options = options
        self._timer: asyncio.TimerHandle | None = None
        self.is_heard = True

    def begin(self) -> None:
        """Ping now and then from now on, if that is wanted."""
        self._look_in(self._options.websocket_ping_interval_s)

    def expect_close(self, timeout_s: Seconds) -> None:
        """Ping no more: the client has so long to answer our close frame."""
        self.stop()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(timeout_s, self._connection.ending.abort)

    def stop(self) -> None:
        """Wait for nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """One that does not read now is not asked: what waits for it is before any question."""
        connection, options = self._connection, self._options
        wait_s = options.websocket_ping_interval_s
        if connection.is_write_paused or connection.inlet.is_paused:
            self.is_heard = True
        elif self.is_heard or options.websocket_ping_timeout_s is None:
            self.is_heard = False
            self._session.ping()
            write_out(self._session, connection)
            wait_s = options.websocket_ping_timeout_s or wait_s
        else:
            self._session.fail(INTERNAL_ERROR, "keepalive ping timeout")
            write_out(self._session, connection)
            connection.ending.abort()
            return
        self._look_in(wait_s)

    def _look_in(self, seconds: Seconds | None) -> None:
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)


def write_out(session: WebSocketSession, connection: ClientConnection) -> None:
    """Write what the protocol has for the client."""
    for part in session.take():
        if not connection.is_gone:
            connection.write(part)
