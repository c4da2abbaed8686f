"""Blocks that are lent over one connection, in both directions.

Before the first block of a segment, the other side is told where the segment is. Until it has
answered that it can read it, and for good if it cannot (another host, another container), buffers
are sent as bytes. What is lent is kept until the other side releases it. When the connection is
lost, nobody knows what the other side still reads: see `arena.py`. What is borrowed, and how it
is lent on: see `borrowing.py`.

Concurrency: on the loop of the connection.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from contextlib import suppress

from remora.core.request.lent import Lent, Way
from remora.errors import ProtocolError
from remora.transport.arena import Block, Segment, arena
from remora.transport.borrowing import PLACE, Borrowed, BorrowedSegment, Loan, Send
from remora.wire import framing
from remora.wire.codec import pack, unpack
from remora.wire.framing import RawFrame
from remora.wire.messages import FrameKind, SegmentAnswer, SegmentOffer
from remora.wire.parcel import WRITABLE, Entry, Parcel, encode_table, raw, split

_SEGMENT = int(FrameKind.SEGMENT)
_SEGMENT_TAKEN = int(FrameKind.SEGMENT_TAKEN)
_SEGMENT_GONE = int(FrameKind.SEGMENT_GONE)
_RELEASE = int(FrameKind.RELEASE)
_FORFEIT = int(FrameKind.FORFEIT)

#: For the envelope, which is bounded by the limits of HTTP heads and pickled calls.
FRAME_ROOM_BYTES = 1024 * 1024


def count_others(frames: list[RawFrame]) -> int:
    """How many frames are about something else than memory; more than two count as all."""
    number = len(frames)
    if number == 1:  # on the path of every call
        return int(frames[0][0] < _SEGMENT)
    return sum([frame[0] < _SEGMENT for frame in frames]) if number == 2 else number


class Lending:
    """What one connection lends and borrows. Made by its first large buffer."""

    def __init__(self, send: Send) -> None:
        """Make it on the loop of the connection, which sends with `send`."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        #: What the other side has of us.
        self.books: Lent[Block | Loan] = Lent()
        self._borrowed = Borrowed(self._loop, send)

    # -- lending ------------------------------------------------------------------------------

    def address(self, parcel: Parcel) -> tuple[bool, list[bytes | memoryview]]:
        """Lend what can be lent of a parcel, for a frame that is sent now.

        Returns:
            whether anything was lent, and the parts of the body, in order.

        Raises:
            ProtocolError: what cannot be lent is too large for a frame; nothing was lent.
        """
        lent: list[Entry] = []
        entries: list[Entry] = []
        inline: list[bytes | memoryview] = []
        for buffer, flags in zip(parcel.buffers, parcel.flags, strict=True):
            block = self._lend(buffer, flags) if isinstance(buffer, Block | Loan) else None
            if block is not None:
                entries.append(Entry(len(block), block.offset, block.segment.number, flags))
                lent.append(entries[-1])
            else:
                data = buffer if isinstance(buffer, bytes | memoryview) else buffer.view_on()
                entries.append(Entry(len(data), flags=flags))
                inline.append(data)
        parts = [encode_table(entries), parcel.data, *inline]
        try:
            framing.check_size(sum(map(len, parts)) + FRAME_ROOM_BYTES)
        except ProtocolError:
            for entry in lent:
                self.books.take_back((entry.segment, entry.offset))
            raise
        if any(type(buffer) is Block for buffer in parcel.buffers):
            # Also what goes as bytes, before the other side can read ours, is in the arena.
            arena().tidy_later(self._loop)
        return bool(lent), parts

    def _lend(self, block: Block | Loan, flags: int) -> Block | Loan | None:
        """Lend a block, or a copy of it; None: it has to go as bytes."""
        books = self.books
        place = block.segment.number, block.offset
        way = books.way(place, bool(flags & WRITABLE))
        if way is Way.LEND:
            books.lend(place, block)
            return block
        if way is Way.ASK:
            self._ask(block.segment)
        if isinstance(block, Block):
            return None
        # 50 MB take 20 ms so, and 120 ms as bytes.
        copy = arena().keep(block.view_on())
        arena().tidy_later(self._loop)
        return None if copy is None else self._lend(copy, flags)

    def _ask(self, segment: Segment | BorrowedSegment) -> None:
        self.books.ask(segment.number)
        if isinstance(segment, Segment):
            offer = arena().offer(segment, self)
        else:
            offer = segment.offer(self)
        if offer is None:
            self.books.answer(segment.number, False)
        else:
            self._send(_SEGMENT, pack(offer))

    def _take_back(self, places: bytes | memoryview) -> list[Block | Loan]:
        try:
            found = [self.books.take_back(place) for place in PLACE.iter_unpack(places)]
        except (struct.error, KeyError) as error:
            raise ProtocolError(f"what is released was not lent: {error}") from error
        arena().tidy_later(self._loop)
        return found

    def _forfeit(self, blocks: Iterable[Block | Loan]) -> None:
        """Never use these again."""
        segments = set()
        for block in blocks:
            block.forfeit()
            if isinstance(block, Block):
                segments.add(block.segment)
        for segment in segments:
            arena().leave(segment)
        if segments:
            arena().tidy_later(self._loop)

    def withdraw(self, number: int) -> None:
        """Nothing of this segment will be lent any more; from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and so is the connection
            self._loop.call_soon_threadsafe(self._withdraw, number)

    def _withdraw(self, number: int) -> None:
        if self.books.withdraw(number):
            self._send(_SEGMENT_GONE, pack(number))

    # -- both -----------------------------------------------------------------------------------

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame that concerns segments.

        Raises:
            ProtocolError: the other side says what cannot be.
        """
        kind, _, _, _, _, body = frame
        body = raw(body)
        if kind == _RELEASE:
            self._take_back(body)
        elif kind == _FORFEIT:
            self._forfeit(self._take_back(body))
        elif kind == _SEGMENT:
            offer = unpack(body, SegmentOffer)
            taken = self._borrowed.take(offer)
            self._send(_SEGMENT_TAKEN, pack(SegmentAnswer(offer.number, taken)))
        elif kind == _SEGMENT_TAKEN:
            answer = unpack(body, SegmentAnswer)
            self.books.answer(answer.number, answer.taken)
        elif kind == _SEGMENT_GONE:
            self._borrowed.forget(unpack(body, int))

    def opened(self, frame: RawFrame) -> RawFrame:
        """Borrow the buffers of a frame that came with some of them lent.

        Raises:
            ProtocolError: it refers to what was not lent.
        """
        kind, flags, load, number, meta, body = frame
        entries, data, found = split(raw(body))
        buffers: list[memoryview | Loan] = []
        for entry, inline in zip(entries, found, strict=True):
            buffers.append(self._borrowed.loan(entry) if inline is None else inline)
        parcel = Parcel(data, buffers, [entry.flags for entry in entries])
        return kind, flags, load, number, meta, parcel

    def on_lost(self) -> None:
        """The connection is gone."""
        self._borrowed.close()
        self._forfeit(self.books.lose())
        if self.books.readable:
            arena().revoke(self)
