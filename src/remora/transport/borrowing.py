"""Blocks of other processes that are used here, or lent on from here.

A segment is mapped once, privately: what this process writes into a view, through code that cares
for no read-only flag or through a tensor, nobody else sees. When the last view of a block is
gone, what was written is thrown away (before the block can be used again), and the block is
released: large ones at once, small ones a few in one frame.

A block that this process need not look at is not copied when it goes on to a third one: that one
is told where the file is, and maps it itself. Here the loan is kept until that one has released
it (`core/request/lent.py`). What was opened for writing is not lent on, and what was lent on is not
opened for writing, so that everybody gets the same bytes.

Concurrency: on the loop of the connection, except that views and loans are made and die in any
thread.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import mmap
import os
import stat
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from remora.errors import ProtocolError
from remora.transport.arena import TOKEN_BYTES, Lender, exported
from remora.wire.messages import FrameKind, SegmentOffer
from remora.wire.parcel import WRITABLE, Entry

_RELEASE = int(FrameKind.RELEASE)
_FORFEIT = int(FrameKind.FORFEIT)
#: A segment and an offset in it, as RELEASE and FORFEIT name a block.
PLACE = struct.Struct("<IQ")
#: No memory is set aside for what a private mapping could come to hold.
_MAP_NORESERVE = 0x4000
_PAGE = mmap.PAGESIZE

#: The interpreter shuts down: what is freed from here on needs no release.
_ending = threading.Event()
atexit.register(_ending.set)

#: A release wakes the other side up, so small ones wait this long for company.
_RETURN_S = 0.001
_RETURN_BYTES = 1024 * 1024

#: How segments of others are named where they are lent on; our own count from 1.
_numbers = itertools.count(2**31)
#: Segments come to an end on one loop while they are lent on from another.
_lock = threading.Lock()

#: Sends a frame that belongs to the connection: its kind and its body.
Send = Callable[[int, bytes], None]


class BorrowedSegment:
    """A file of another process, mapped here."""

    __slots__ = ("_is_over", "_lenders", "_offer", "map", "number")

    def __init__(self, offer: SegmentOffer, memory: mmap.mmap) -> None:
        self.map = memory
        self.number = next(_numbers)
        self._offer = msgspec.structs.replace(offer, number=self.number)
        self._is_over = False
        #: Who has told a reader of this file.
        self._lenders: weakref.WeakSet[Lender] = weakref.WeakSet()

    def offer(self, lender: Lender) -> SegmentOffer | None:
        """What to tell a reader that it is lent on to; None: its owner lends no more of it."""
        with _lock:
            if self._is_over:
                return None
            self._lenders.add(lender)
        return self._offer

    def end(self) -> None:
        """Nothing more comes of it: let those forget it, too, that it was lent on to."""
        with _lock:
            self._is_over = True
            lenders = list(self._lenders)
        for lender in lenders:
            lender.withdraw(self.number)


class Loan:
    """A block of somebody else's, which is not used anew before this object is gone."""

    __slots__ = ("_borrowed", "_has_gone_on", "_is_opened", "entry", "is_forfeited", "segment")

    def __init__(self, borrowed: Borrowed, segment: BorrowedSegment, entry: Entry) -> None:
        self._borrowed = borrowed
        self.segment = segment
        self.entry = entry
        self.is_forfeited = False
        self._is_opened = False
        self._has_gone_on = False

    @property
    def offset(self) -> int:
        """Where it begins in its segment."""
        return self.entry.offset

    def __len__(self) -> int:
        return self.entry.size

    def view(self) -> memoryview:
        """Its bytes, for somebody in this process; the view keeps the loan."""
        entry = self.entry
        view = exported(self.segment.map, entry.offset, entry.size, self)
        # In this order, because `lend_on` may be asked in another thread.
        self._is_opened = True
        return view if entry.flags & WRITABLE and not self._has_gone_on else view.toreadonly()

    def view_on(self) -> memoryview:
        """Its bytes, for somebody that they go on to; the view keeps the loan."""
        entry = self.entry
        view = exported(self.segment.map, entry.offset, entry.size, self)
        return view if entry.flags & WRITABLE else view.toreadonly()

    def lend_on(self) -> bool:
        """Whether a third process may read it; from then on nobody here writes to it."""
        self._has_gone_on = True
        return not (self._is_opened and self.entry.flags & WRITABLE)

    def forfeit(self) -> None:
        """Its place may never be used again: somebody out of reach may still read it."""
        self.is_forfeited = True

    def __del__(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._borrowed.give_back(self)


def loan_of(view: memoryview) -> Loan | None:
    """The loan that a view is the whole of."""
    owner = view.obj
    while type(owner) is memoryview:
        owner = owner.obj
    loan = getattr(owner, "keep", None)
    return loan if type(loan) is Loan and len(loan) == view.nbytes else None


class Borrowed:
    """The segments of the other side of one connection, and what is used of them here."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._send: Send | None = send
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._segments: dict[int, BorrowedSegment] = {}
        self._returns: deque[tuple[int, bytes]] = deque()
        self._returned_bytes = 0
        self._is_flushing = False

    def take(self, offer: SegmentOffer) -> bool:
        """Map a segment; False: it cannot be read from here."""
        found = map_segment(offer)
        if found is not None:
            self._segments[offer.number] = BorrowedSegment(offer, found)
        return found is not None

    def forget(self, number: int) -> None:
        """Let go of a segment; what lives of it keeps it."""
        segment = self._segments.pop(number, None)
        if segment is not None:
            segment.end()

    def loan(self, entry: Entry) -> Loan:
        """Borrow a block, until the last thing that was made of it is gone.

        Raises:
            ProtocolError: there is no such block.
        """
        segment = self._segments.get(entry.segment)
        start, end = entry.offset, entry.offset + entry.size
        if segment is None or not 0 < start < end <= len(segment.map) or start % _PAGE:
            raise ProtocolError(f"no block at {start}+{entry.size} of {entry.segment}")
        return Loan(self, segment, entry)

    def give_back(self, loan: Loan) -> None:
        """Release a block that is used here no more. In any thread, at any moment."""
        if self._send is None or _ending.is_set() or os.getpid() != self._pid:
            return  # the owner knows that we are gone or going, or will hear it from our parent
        entry = loan.entry
        loan.segment.map.madvise(mmap.MADV_DONTNEED, entry.offset, entry.size)
        kind = _FORFEIT if loan.is_forfeited else _RELEASE
        self._returns.append((kind, PLACE.pack(entry.segment, entry.offset)))
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
        places: dict[int, list[bytes]] = {}
        while self._returns:
            kind, place = self._returns.popleft()
            places.setdefault(kind, []).append(place)
        for kind, found in places.items():
            if self._send is not None:
                self._send(kind, b"".join(found))

    def close(self) -> None:
        """Forget everything; what lives keeps its memory."""
        self._send = None
        for number in list(self._segments):
            self.forget(number)


def map_segment(offer: SegmentOffer) -> mmap.mmap | None:
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
