"""What both ends of a connection have in common: frames in, frames out, and what is lent over it.

Rules: knows nothing of requests and of who may speak; the ends do.
"""

from __future__ import annotations

import asyncio
from typing import cast

from remora.transport.lending import Lending, count_others
from remora.transport.outbox import Outbox
from remora.transport.spin import Spinner
from remora.wire.framing import FrameDecoder, RawFrame


class Connection(asyncio.Protocol):
    """One end of a connection."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        #: The other side has greeted.
        self._greeted = False
        self._transport: asyncio.WriteTransport | None = None
        self._outbox: Outbox
        self._spinner: Spinner
        #: What comes next may be worth looking out for.
        self._is_calm = True
        self._lending: Lending | None = None

    @property
    def is_open(self) -> bool:
        """Frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready to write."""
        # A cast, not a check: uvloop's transports inherit from none of asyncio's classes.
        transport = cast(asyncio.WriteTransport, transport)
        self._transport = transport
        self._outbox = Outbox(transport)
        self._spinner = Spinner(asyncio.get_running_loop())

    def close(self) -> None:
        """Close after what was written has left."""
        if self._transport is not None:
            self._outbox.flush()
            self._transport.close()

    def _note_pace(self, frames: list[RawFrame]) -> None:
        """See by what has come whether this is a busy time."""
        num_others = count_others(frames)
        if num_others or not frames:
            self._spinner.end()
            # Frames that come in bunches are the sign of one, even when none is left.
            self._is_calm = num_others < 2

    def _lend(self) -> Lending:
        """What is lent over this connection; most never need it."""
        if self._lending is None:
            self._lending = Lending(self._send_own)
        return self._lending

    def _send_own(self, kind: int, body: bytes) -> None:
        """Send a frame of the connection's own; dropped when it is gone."""
        raise NotImplementedError
