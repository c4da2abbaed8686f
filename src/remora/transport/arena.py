"""This process's recycled shared memory, out of which large buffers are lent to other processes.

Theory of operation: the arena is one sparse file in memory (`memfd_create`) that no folder
names. A buffer is copied into a block of it, a process on the same host maps the file and reads
the block where it lies, and says when nobody there uses it any more (`transport/lending.py`).
Then the block is used again: its pages are there already, and filling them is 5 times as fast as
filling fresh ones (measured on a virtual machine with 100 MB: 9.5 against 1.8 GB/s; through
`pwrite`, which need not clear them first, 3.7).

Nothing leaks, however processes die: the kernel keeps the file for as long as a process has it
open or mapped. A block is freed when the last Python reference to it is gone: of the call that
it was made for, of each connection that it is lent over, of a transport that sends it as bytes.

When a connection is lost, its reader may live on and still read. Its blocks are never used
again: the arena leaves the whole file to its readers and begins a new one.

Rules: no waiting and no error. When the arena is full, `keep` says no, and bytes go inline.

Concurrency: `keep` from any thread; blocks die in any thread, also inside the garbage collector.
"""

from __future__ import annotations

import asyncio
import functools
import mmap
import os
import secrets
import threading
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, Protocol

from remora.core.request.free_list import FreeList
from remora.types import Seconds
from remora.wire.messages import SegmentOffer

#: What an arena may hold, as a share of the memory that this process may use.
SHARE = 1 / 8
#: A file begins with this many bytes that only its owner knows, for readers to compare.
TOKEN_BYTES = 16
#: What was not used for this long is given back to the system.
TIDY_S: Seconds = 10.0
#: Giving back 64 MiB takes 5 ms, for which the loop does not turn: then others get a turn.
_TIDY_STEP_BYTES = 64 * 1024 * 1024
_TIDY_PAUSE_S: Seconds = 0.01
_PAGE = mmap.PAGESIZE


class Lender(Protocol):
    """Lends blocks over one connection."""

    def withdraw(self, number: int) -> None:
        """Nothing of this segment will be lent any more; from any thread."""


class Segment:
    """One file of an arena. Closed when its arena and its blocks are done with it."""

    __slots__ = ("__weakref__", "fd", "freed", "lenders", "map", "number", "places", "resident_end",
                 "size", "token", "trimmed_to")  # fmt: skip

    def __init__(self, number: int, size: int) -> None:
        """Make a file.

        Raises:
            OSError: the system has none to give.
        """
        self.fd = -1
        self.number = number
        self.size = size
        self.fd = os.memfd_create(f"remora-{number}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self.token = secrets.token_bytes(TOKEN_BYTES)
        os.pwrite(self.fd, self.token, 0)
        self.places = FreeList(_PAGE, size, _PAGE)
        #: Blocks that died, to be given back to `places` under the arena's lock.
        self.freed: deque[tuple[int, int]] = deque()
        #: Above this nothing has memory.
        self.resident_end = _PAGE
        #: Free places above this have been given back since anything changed.
        self.trimmed_to = _PAGE
        #: Who has told a reader of this file.
        self.lenders: weakref.WeakSet[Lender] = weakref.WeakSet()

    @property
    def is_used(self) -> bool:
        """A block lives, or has died since the last `collect`."""
        return self.places.used_end > _PAGE

    def collect(self) -> None:
        """Take back what died."""
        freed = self.freed
        if freed:
            self.trimmed_to = self.resident_end
        while freed:
            self.places.give(*freed.popleft())

    def remove_free(self, floor: int, budget: int) -> int:
        """Give memory of free places back to the system, from the top down.

        Args:
            floor: nothing below it.
            budget: at most this many bytes.

        Returns:
            what is left of the budget; 0: there may be more to do.
        """
        for start, end in reversed(self.places.ranges()):
            end = min(end, self.trimmed_to)
            start = max(start, floor, end - budget)
            if start >= end:
                continue
            self.map.madvise(mmap.MADV_REMOVE, start, end - start)
            self.trimmed_to = start
            budget -= end - start
            if budget <= 0:
                break
        self.resident_end = max(self.places.used_end, min(self.resident_end, self.trimmed_to))
        return budget

    def let_go(self) -> None:
        """In a forked child: the file is the parent's."""
        with suppress(OSError):
            os.close(self.fd)
        self.fd = -1
        with suppress(BufferError):
            self.map.close()

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Block:
    """A buffer in the arena; its place is free again when this object is gone."""

    __slots__ = ("_is_forfeited", "offset", "segment", "size")

    def __init__(self, segment: Segment, offset: int, size: int) -> None:
        self.segment = segment
        self.offset = offset
        self.size = size
        self._is_forfeited = False

    def __len__(self) -> int:
        return self.size

    def view(self) -> memoryview:
        """Its bytes; the view keeps the block."""
        return exported(self.segment.map, self.offset, self.size, self).toreadonly()

    view_on = view

    def forfeit(self) -> None:
        """Never use its place again: somebody out of reach may still read it."""
        self._is_forfeited = True

    def __del__(self) -> None:
        if not self._is_forfeited:
            self.segment.freed.append((self.offset, self.size))


class Arena:
    """The segments of this process."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        """Make an arena.

        Args:
            limit_bytes: what it may hold; None: its share of what this process may use.
        """
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._segment: Segment | None = None
        self._left: weakref.WeakSet[Segment] = weakref.WeakSet()
        self._num_segments = 0
        self._is_possible = hasattr(os, "memfd_create")
        #: The end of the highest block since the last time of tidying up.
        self._peak = 0
        self._timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def keep(self, data: memoryview) -> Block | None:
        """Copy bytes into a block; None: there is no room for them."""
        with self._lock:
            segment = self._segment or self._begin()
            if segment is None:
                return None
            segment.collect()
            offset = segment.places.take(data.nbytes)
            if offset is None:
                return None
            block = Block(segment, offset, data.nbytes)
            end = offset + segment.places.rounded(data.nbytes)
            is_fresh = end > segment.resident_end
            segment.resident_end = max(segment.resident_end, end)
            segment.trimmed_to = segment.resident_end
            self._peak = max(self._peak, end)
        if is_fresh:
            return block if _write(segment.fd, data, offset) else None
        memoryview(segment.map)[offset : offset + data.nbytes] = data
        return block

    def leave(self, segment: Segment) -> None:
        """Use a segment no more: its readers keep it."""
        with self._lock:
            if self._segment is segment:
                self._segment = None
                self._left.add(segment)
            lenders = list(segment.lenders)
        for lender in lenders:
            lender.withdraw(segment.number)

    def offer(self, segment: Segment, lender: Lender) -> SegmentOffer | None:
        """What to tell a reader of a segment; None: it is used no more."""
        with self._lock:
            if segment is not self._segment:
                return None
            segment.lenders.add(lender)
        return SegmentOffer(segment.number, os.getpid(), segment.fd, segment.size, segment.token)

    def revoke(self, lender: Lender) -> None:
        """Note that a connection is gone; what nobody reads any more is given back at once."""
        with self._lock:
            segment = self._segment
            if segment is not None and lender in segment.lenders:
                segment.lenders.discard(lender)
                if not segment.lenders:
                    self._segment = None
                    self._left.add(segment)

    def tidy_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that what is used no more is given back. Called on a running loop."""
        if self._timer is None or self._timer[0].is_closed():
            self._timer = loop, loop.call_later(TIDY_S, self._tidy, loop)

    def _tidy(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        with self._lock:
            done = self._tidy_step()
        if not done:
            self._timer = loop, loop.call_later(_TIDY_PAUSE_S, self._tidy, loop)
            return
        with self._lock:
            # What is still used will die at a time that nobody here hears of.
            is_over = not self._peak and not any(segment.is_used for segment in self._all())
            self._peak = 0
        if not is_over:
            self.tidy_later(loop)

    def _all(self) -> list[Segment]:
        return [each for each in (self._segment, *self._left) if each is not None]

    def _tidy_step(self) -> bool:
        """Give some memory back; True: all that can be."""
        budget = _TIDY_STEP_BYTES
        for segment in self._all():
            segment.collect()
            # What was used since the last time will be used again.
            floor = self._peak if segment is self._segment else 0
            budget = segment.remove_free(floor, budget)
            if budget <= 0:
                return False
        return True

    def _begin(self) -> Segment | None:
        if not self._is_possible:
            return None
        if self._limit_bytes is None:
            self._limit_bytes = int(memory_limit_bytes() * SHARE)
        try:
            self._num_segments += 1
            self._segment = Segment(self._num_segments, self._limit_bytes // _PAGE * _PAGE)
        except (OSError, ValueError):
            # No such system call, or no address space: it will not be better next time.
            self._is_possible = False
        return self._segment

    def let_go(self) -> None:
        """In a forked child: nothing of the parent's arena is ours."""
        for segment in self._all():
            segment.let_go()


def exported(memory: mmap.mmap, offset: int, size: int, keep: object) -> memoryview:
    """View a part of a mapping; `keep` lives for as long as the view, or anything made of it."""
    # Python 3.11 has no other object that lends memory and carries something along.
    array = _array_type(-(-size // _PAGE)).from_buffer(memory, offset)
    array.keep = keep
    return PickleBuffer(array).raw()[:size]


@functools.lru_cache(maxsize=256)
def _array_type(num_pages: int) -> Any:
    import ctypes  # 1 MB of memory, for those alone who send large values

    return ctypes.c_ubyte * (num_pages * _PAGE)


def _write(fd: int, data: memoryview, offset: int) -> bool:
    """Fill fresh pages; False: there is no memory."""
    try:
        while data.nbytes:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written
    except OSError:
        return False
    return True


def memory_limit_bytes() -> int:
    """What this process may use: the machine's memory, or the limit of its container."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such limit, or "max"
        limit = min(limit, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return limit


_arena = Arena()


def arena() -> Arena:
    """The arena of this process; it costs nothing until the first block."""
    return _arena


def _start_over_in_child() -> None:
    """After a fork: the blocks, and who borrows them, are the parent's."""
    global _arena
    _arena.let_go()
    _arena = Arena()


os.register_at_fork(after_in_child=_start_over_in_child)
