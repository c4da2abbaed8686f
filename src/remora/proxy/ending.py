"""The end of a client's connection: how far it is on the way there, and what is done on it."""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import TYPE_CHECKING

from remora.proxy.limits import LINGER_S
from remora.transport.outbox import Outbox
from remora.types import Seconds

if TYPE_CHECKING:
    from remora.proxy.inlet import Inlet
    from remora.proxy.patience import Patience


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


class Ending:
    """Ends one connection.

    Attributes:
        phase: how far it is.
    """

    linger_s: Seconds = LINGER_S

    __slots__ = ("_inlet", "_outbox", "_patience", "_transport", "phase")

    def __init__(
        self, transport: asyncio.Transport, outbox: Outbox, inlet: Inlet, patience: Patience
    ) -> None:
        self._transport = transport
        self._outbox = outbox
        self._inlet = inlet
        self._patience = patience
        self.phase = Phase.OPEN

    def enter(self, phase: Phase) -> None:
        """Go on to this phase, unless the connection is further."""
        self.phase = max(self.phase, phase)

    def linger(self) -> None:
        """Send no more, and close in a while.

        Closed now, with bytes unread, the client would see a reset and not the last word.
        """
        self.enter(Phase.LINGERING)
        self._inlet.reopen()
        self.say_no_more()

    def say_no_more(self) -> None:
        """Close our side now, and all of it in a while."""
        self._outbox.flush()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._patience.set_timer(self.linger_s, self.close)

    def close(self) -> None:
        """Close when what was written has left; a client that does not take it is cut."""
        self.phase = Phase.CLOSING
        self._outbox.flush()
        self._transport.close()
        self._patience.watch_last_bytes()

    def abort(self) -> None:
        """Close at once; the client sees that something is missing."""
        self.phase = Phase.CLOSING
        self._outbox.flush()
        self._transport.abort()

    def end_idleness(self) -> None:
        """A request that is on its way already sees an end, which clients repeat it after, no reset."""
        if self.phase is Phase.OPEN and self._transport.can_write_eof():
            self.linger()
        else:
            self.close()
