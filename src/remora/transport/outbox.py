"""Lets everything that is written in one turn of the loop leave in one system call.

Measured on two cores with 32 requests under way: a write of a small frame costs 10-15 µs of
system call, encoding it 0.3 µs. Joined, 32 frames cost one system call.
"""

from __future__ import annotations

import asyncio

from remora.wire import framing
from remora.wire.framing import LARGE_BODY_BYTES


class Outbox:
    """What is to be written to one transport at the end of this turn of the loop.

    Attributes:
        is_broken: the other side had closed when something was written: none of that has left.
        is_batch_lost: so it was when what had come together in a turn was written.
    """

    __slots__ = ("_loop", "_parts", "_transport", "is_batch_lost", "is_broken")

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._parts: list[bytes | memoryview] = []
        self.is_broken = False
        self.is_batch_lost = False

    @property
    def is_empty(self) -> bool:
        """Nothing waits for the end of the turn."""
        return not self._parts

    def send(
        self,
        kind: int,
        number: int,
        meta: bytes = b"",
        body: bytes | memoryview = b"",
        flags: int = 0,
        load: int = 0,
    ) -> None:
        """Write a frame in order, soon; a large body without copying it.

        Raises:
            ProtocolError: the frame would be too large; nothing of it was written.
        """
        if len(body) > LARGE_BODY_BYTES:
            self.write(framing.encode_head(kind, number, meta, len(body), flags, load))
            self.write_large(body)
        else:
            self.write(framing.encode(kind, number, meta, body, flags, load))

    def send_parts(
        self,
        kind: int,
        number: int,
        meta: bytes,
        parts: list[bytes | memoryview],
        flags: int = 0,
        load: int = 0,
    ) -> None:
        """Write a frame whose body is in parts, in order, now; a large body without copying it.

        Raises:
            ProtocolError: the frame would be too large; nothing of it was written.
        """
        size = sum(map(len, parts))
        if size <= LARGE_BODY_BYTES:
            self.write_now(framing.encode(kind, number, meta, b"".join(parts), flags, load))
            return
        self._parts.append(framing.encode_head(kind, number, meta, size, flags, load))
        for part in parts:
            if len(part) > LARGE_BODY_BYTES:
                self.write_large(part)
            else:
                self._parts.append(part)
        self.flush()

    def write(self, data: bytes | memoryview) -> None:
        """Write in order, soon."""
        parts = self._parts
        if not parts:
            self._loop.call_soon(self.flush)
        parts.append(data)

    def write_now(self, data: bytes) -> None:
        """Write in order, without waiting for the end of the turn.

        For a lone message: nothing else will join it, and a turn of the loop is 5 µs.
        """
        if self._parts:
            self._parts.append(data)
            self.flush()
        elif not self._transport.is_closing():
            self._write(data)

    def write_large(self, data: bytes | memoryview) -> None:
        """Write in order, now, without copying `data`."""
        self.flush()
        if not self._transport.is_closing():
            self._write(data)

    def flush(self) -> None:
        """Hand everything to the transport now."""
        parts = self._parts
        if parts:
            self._parts = []
            if not self._transport.is_closing():
                self._write(parts[0] if len(parts) == 1 else b"".join(parts))
                self.is_batch_lost = self.is_broken

    def _write(self, data: bytes | memoryview) -> None:
        self._transport.write(data)
        # A transport that could not write to a socket closes itself in there.
        if self._transport.is_closing():
            self.is_broken = True
