"""The one timer of a client's connection: is something overdue?

`limits.Progress` says what is; here it is asked now and then, not once for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from remora.proxy import limits, peer
from remora.proxy.limits import Progress
from remora.types import Seconds

if TYPE_CHECKING:
    from remora.proxy.connection import ClientConnection


class Patience:
    """Sees that one client keeps to the limits.

    Attributes:
        idle_limit_s: a client without a request is kept for so long.
    """

    head_timeout_s: Seconds = limits.HEAD_TIMEOUT_S
    body_timeout_s: Seconds = limits.BODY_TIMEOUT_S
    take_timeout_s: Seconds = limits.TAKE_TIMEOUT_S
    last_request_s: Seconds = limits.LAST_REQUEST_S

    __slots__ = (
        "_connection",
        "_is_over",
        "_loop",
        "_progress",
        "_timer",
        "_transport",
        "idle_limit_s",
    )

    def __init__(
        self, connection: ClientConnection, transport: asyncio.Transport, progress: Progress
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        # A client that has asked nothing yet is not kept as long as one that has.
        self.idle_limit_s = self.head_timeout_s

    def stop(self) -> None:
        """The connection is lost; what knows each other would wait for the collector of cycles."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        del self._connection

    def set_timer(self, seconds: Seconds, callback: Callable[[], None]) -> None:
        """In place of what was to be looked at before; gone with the connection."""
        if self._is_over:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, callback)

    def look_again(self, now: Seconds) -> None:
        """Look as soon as something can be overdue."""
        soonest = min(
            self.head_timeout_s,
            self.body_timeout_s,
            self.take_timeout_s,
            self.idle_limit_s,
            self._connection.front.options.keep_alive_timeout_s,
        )
        due = max(self._progress.since + soonest, now + max(soonest / 4, limits.LOOK_EVERY_S))
        self.set_timer(due - now, self._look)

    def expect_last_request(self) -> None:
        """The server stops: one more request may be on its way already."""
        self.idle_limit_s = self.last_request_s
        if not self._connection.reader.head_bytes:
            self._progress.since = self._loop.time()
        self.set_timer(self.last_request_s, self._look)

    def watch_last_bytes(self) -> None:
        """Nothing more is written: cut a client that does not take what was."""
        if self._is_over:
            return
        if self._is_taking():
            self.set_timer(self.take_timeout_s / 4, self.watch_last_bytes)
        else:
            self._connection.ending.abort()

    def _is_taking(self) -> bool:
        unsent = self._transport.get_write_buffer_size()
        return self._progress.is_taking(self._loop.time(), unsent, self.take_timeout_s)

    def _look(self) -> None:
        """Is the client overdue?"""
        now = self._loop.time()
        connection = self._connection
        reading = connection.reader.exchange
        if reading is not None:
            if not connection.inlet.is_paused and not reading.owes_continue:
                fault = self._progress.fault_of_body(now, self.body_timeout_s)
                if fault is not None:
                    connection.refuse(408, fault)
                    return
        elif connection.active is None and not self._bears_idleness(now):
            return
        self.look_again(now)

    def _bears_idleness(self, now: Seconds) -> bool:
        """Nothing is answered: end the connection if that, or the next head, takes too long."""
        connection, progress = self._connection, self._progress
        waited_s = now - progress.since
        if connection.reader.head_bytes and not connection.inlet.is_paused:
            if waited_s >= self.head_timeout_s:
                limit = self.head_timeout_s
                connection.refuse(408, f"The request's head was not complete after {limit:g} s.")
                return False
        elif self._transport.get_write_buffer_size():
            progress.since = now
            if not self._is_taking():
                connection.ending.abort()
                return False
        elif waited_s >= self.idle_limit_s and not peer.has_unread(self._transport):
            connection.ending.end_idleness()
            return False
        return True
