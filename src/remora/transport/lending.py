"""Blocks that are lent over one connection, in both directions.

Lending: before the first block of a segment, the other side is told where the segment is. Until
it has answered that it can read it, and for good if it cannot (another host, another container),
buffers are sent as bytes. What is lent is kept until the other side releases it. When the
connection is lost, nobody knows what the other side still reads: see `arena.py`.

Borrowing: a segment is mapped once, privately: what this process writes into a view, through code
that cares for no read-only flag or through a tensor, nobody else sees. When the last view of a
block is gone, what was written is thrown away (before the block can be used again), and the block
is released: large ones at once, small ones a few in one frame.

Concurrency: on the loop of the connection, except that views die in any thread.
"""

from __future__ import annotations

import asyncio
import atexit
import mmap
import os
import stat
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from remora.errors import ProtocolError
from remora.transport.arena import TOKEN_BYTES, Block, Segment, arena, exported
from remora.wire import framing
from remora.wire.codec import pack, unpack
from remora.wire.framing import RawFrame
from remora.wire.messages import FrameKind, SegmentAnswer, SegmentOffer
from remora.wire.parcel import WRITABLE, Entry, Parcel, encode_table, raw, split

_SEGMENT = int(FrameKind.SEGMENT)
_SEGMENT_TAKEN = int(FrameKind.SEGMENT_TAKEN)
_SEGMENT_GONE = int(FrameKind.SEGMENT_GONE)
_RELEASE = int(FrameKind.RELEASE)
_PLACE = struct.Struct("<IQ")
#: No memory is set aside for what a private mapping could come to hold.
_MAP_NORESERVE = 0x4000

#: The interpreter shuts down: what is freed from here on needs no release.
_ending = threading.Event()
atexit.register(_ending.set)

#: A release wakes the other side up, so small ones wait this long for company.
_RETURN_S = 0.001
_RETURN_BYTES = 1024 * 1024

#: For the envelope, which is bounded by the limits of HTTP heads and pickled calls.
FRAME_ROOM_BYTES = 1024 * 1024

#: Sends a frame that belongs to the connection: its kind and its body.
Send = Callable[[int, bytes], None]


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
        self._is_lost = False
        #: By segment of ours: the other side reads it; None: it was asked and has not answered.
        self._offered: dict[int, bool | None] = {}
        #: What the other side may be reading, and how often it was lent.
        self._lent: dict[tuple[int, int], tuple[Block, int]] = {}
        self._borrowed = _Borrowed(self._loop, send)

    # -- lending ------------------------------------------------------------------------------

    def address(self, parcel: Parcel) -> tuple[bool, list[bytes | memoryview]]:
        """Lend what can be lent of a parcel, for a frame that is sent now.

        Returns:
            whether anything was lent, and the parts of the body, in order.

        Raises:
            ProtocolError: what cannot be lent is too large for a frame; nothing was lent.
        """
        lent: list[Block] = []
        entries: list[Entry] = []
        inline: list[bytes | memoryview] = []
        for buffer, flags in zip(parcel.buffers, parcel.flags, strict=True):
            if isinstance(buffer, Block) and self._may_lend(buffer.segment):
                lent.append(buffer)
                entries.append(Entry(buffer.size, buffer.offset, buffer.segment.number, flags))
            else:
                data = buffer if isinstance(buffer, bytes | memoryview) else buffer.view()
                entries.append(Entry(len(data), flags=flags))
                inline.append(data)
        parts = [encode_table(entries), parcel.data, *inline]
        framing.check_size(sum(map(len, parts)) + FRAME_ROOM_BYTES)
        for block in lent:
            self._lend(block)
        if any(type(buffer) is Block for buffer in parcel.buffers):
            # Also what goes as bytes, before the other side can read ours, is in the arena.
            arena().tidy_later(self._loop)
        return bool(lent), parts

    def _may_lend(self, segment: Segment) -> bool:
        if self._is_lost:
            return False
        number = segment.number
        if number not in self._offered:
            self._offered[number] = None
            arena().offer(segment, self)
            offer = SegmentOffer(number, os.getpid(), segment.fd, segment.size, segment.token)
            self._send(_SEGMENT, pack(offer))
        return self._offered[number] is True

    def _lend(self, block: Block) -> None:
        place = block.segment.number, block.offset
        _, count = self._lent.get(place, (block, 0))
        self._lent[place] = block, count + 1

    def _take_back(self, places: bytes | memoryview) -> None:
        try:
            for place in _PLACE.iter_unpack(places):
                block, count = self._lent.pop(place)
                if count > 1:
                    self._lent[place] = block, count - 1
        except (struct.error, KeyError) as error:
            raise ProtocolError(f"what is released was not lent: {error}") from error
        arena().tidy_later(self._loop)

    def withdraw(self, segment: Segment) -> None:
        """Nothing of this segment will be lent any more; from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and so is the connection
            self._loop.call_soon_threadsafe(self._withdraw, segment.number)

    def _withdraw(self, number: int) -> None:
        self._offered[number] = False
        if not self._is_lost:
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
        elif kind == _SEGMENT:
            offer = unpack(body, SegmentOffer)
            taken = self._borrowed.take(offer)
            self._send(_SEGMENT_TAKEN, pack(SegmentAnswer(offer.number, taken)))
        elif kind == _SEGMENT_TAKEN:
            answer = unpack(body, SegmentAnswer)
            # A segment that was withdrawn in the meantime stays so.
            if self._offered.get(answer.number, False) is None:
                self._offered[answer.number] = answer.taken
        elif kind == _SEGMENT_GONE:
            self._borrowed.forget(unpack(body, int))

    def opened(self, frame: RawFrame) -> RawFrame:
        """Borrow the buffers of a frame that came with some of them lent.

        Raises:
            ProtocolError: it refers to what was not lent.
        """
        kind, flags, load, number, meta, body = frame
        entries, data, found = split(raw(body))
        buffers: list[memoryview] = []
        for entry, inline in zip(entries, found, strict=True):
            buffers.append(self._borrowed.view(entry) if inline is None else inline)
        parcel = Parcel(data, buffers, [entry.flags for entry in entries])
        return kind, flags, load, number, meta, parcel

    def on_lost(self) -> None:
        """The connection is gone."""
        self._is_lost = True
        self._borrowed.close()
        lent, self._lent = self._lent, {}
        segments = set()
        for block, _ in lent.values():
            block.forfeit()
            segments.add(block.segment)
        for segment in segments:
            arena().leave(segment)
        if self._offered:
            arena().revoke(self)
        if segments:
            arena().tidy_later(self._loop)


class _Borrowed:
    """The other side's segments, and the views of them that live in this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._send: Send | None = send
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._maps: dict[int, mmap.mmap] = {}
        self._returns: deque[bytes] = deque()
        self._returned_bytes = 0
        self._is_flushing = False

    def take(self, offer: SegmentOffer) -> bool:
        """Map a segment; False: it cannot be read from here."""
        found = _map(offer)
        if found is not None:
            self._maps[offer.number] = found
        return found is not None

    def forget(self, number: int) -> None:
        """Let go of a segment; views of it that live keep it."""
        self._maps.pop(number, None)

    def view(self, entry: Entry) -> memoryview:
        """View a block, until the last thing that was made of the view is gone."""
        memory = self._maps.get(entry.segment)
        if memory is None or not 0 < entry.offset < entry.offset + entry.size <= len(memory):
            raise ProtocolError(f"no block at {entry.offset}+{entry.size} of {entry.segment}")
        loan = _Loan(self, memory, entry)
        view = exported(memory, entry.offset, entry.size, loan)
        return view if entry.flags & WRITABLE else view.toreadonly()

    def give_back(self, memory: mmap.mmap, entry: Entry) -> None:
        """Release a block that is used here no more. In any thread, at any moment."""
        if self._send is None or _ending.is_set() or os.getpid() != self._pid:
            return  # the owner knows that we are gone or going, or will hear it from our parent
        memory.madvise(mmap.MADV_DONTNEED, entry.offset, entry.size)
        self._returns.append(_PLACE.pack(entry.segment, entry.offset))
        self._returned_bytes += entry.size
        if self._is_flushing:
            return
        self._is_flushing = True
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._flush_soon)
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if self._returned_bytes >= _RETURN_BYTES:
            self._loop.call_soon(self._flush)
        else:
            self._loop.call_later(_RETURN_S, self._flush)

    def _flush(self) -> None:
        # In this order: what is returned from now on, in another thread, may flush again.
        self._is_flushing = False
        self._returned_bytes = 0
        places = []
        while self._returns:
            places.append(self._returns.popleft())
        if self._send is not None and places:
            self._send(_RELEASE, b"".join(places))

    def close(self) -> None:
        """Forget everything; views that live keep their memory."""
        self._send = None
        self._maps.clear()


class _Loan:
    """Lives as long as a borrowed block is used."""

    __slots__ = ("_entry", "_lender", "_memory")

    def __init__(self, lender: _Borrowed, memory: mmap.mmap, entry: Entry) -> None:
        self._lender = lender
        self._memory = memory
        self._entry = entry

    def __del__(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._lender.give_back(self._memory, self._entry)


def _map(offer: SegmentOffer) -> mmap.mmap | None:
    """Map the file behind another process's descriptor, if that is the one that is meant."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(f"/proc/{offer.pid}/fd/{offer.fd}", flags)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != offer.size:
            return None
        if os.pread(fd, TOKEN_BYTES, 0) != offer.token:
            return None
        return mmap.mmap(
            fd,
            offer.size,
            flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
