"""Bodies of pickled values: a pickle alone, or a pickle with its buffers beside it.

    body    pickle                                       begins with 0x80, as every pickle does
            0x00 | count u32 | entry … | pickle | buffer …
    entry   size u64 | offset u64 | segment u32 | flags u8

A buffer with a segment is not in the body: it lies in that segment of the sender's arena
(`transport/arena.py`), lent to the receiver until it says that it needs it no more. Segment 0
stands for the body itself.

Rules: no input or output.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from remora.errors import ProtocolError

_HEAD = struct.Struct("<BI")
_ENTRY = struct.Struct("<QQIB")
#: The first byte of a body with buffers, which no pickle begins with.
WITH_BUFFERS = 0
#: The reader may write to its view: what it writes is seen by nobody else.
WRITABLE = 1


class Block(Protocol):
    """A buffer in memory that can be lent."""

    def view(self) -> memoryview:
        """Its bytes, for as long as the view lives."""

    def view_on(self) -> memoryview:
        """The same, for somebody else that they go on to."""

    def __len__(self) -> int: ...


class Entry(NamedTuple):
    """Where a buffer is."""

    size: int
    offset: int = 0
    #: 0: in the body.
    segment: int = 0
    flags: int = 0


class Parcel:
    """A pickle and its buffers, before they are sent or after they have come.

    Its length is that of everything in it, wherever it lies: what windows count.
    """

    __slots__ = ("_size", "buffers", "data", "flags")

    def __init__(
        self,
        data: bytes | memoryview,
        buffers: Sequence[bytes | memoryview | Block],
        flags: list[int],
    ) -> None:
        self.data = data
        self.buffers = buffers
        #: For each buffer, as in its entry.
        self.flags = flags
        self._size = len(data) + sum(map(len, buffers))

    def __len__(self) -> int:
        return self._size

    def views(self) -> list[bytes | memoryview]:
        """The buffers, to be read."""
        return [b if isinstance(b, bytes | memoryview) else b.view() for b in self.buffers]

    def views_on(self) -> list[bytes | memoryview]:
        """The buffers, to be passed on unread."""
        return [b if isinstance(b, bytes | memoryview) else b.view_on() for b in self.buffers]


#: What a frame can carry.
Body: TypeAlias = bytes | memoryview | Parcel


def raw(body: Body) -> bytes | memoryview:
    """A body that is read as bytes.

    Raises:
        ProtocolError: buffers of it were lent, which only pickled values have.
    """
    if isinstance(body, Parcel):
        raise ProtocolError("a body with lent buffers came where only bytes can be")
    return body


def encode_table(entries: list[Entry]) -> bytes:
    """Encode what stands before the pickle."""
    return _HEAD.pack(WITH_BUFFERS, len(entries)) + b"".join(
        _ENTRY.pack(*entry) for entry in entries
    )


def join(data: bytes, buffers: list[memoryview], flags: list[int]) -> bytes:
    """Put a pickle and its buffers into one body, copying them."""
    entries = [Entry(view.nbytes, flags=flag) for view, flag in zip(buffers, flags, strict=True)]
    return b"".join((encode_table(entries), data, *buffers))


def split(
    body: bytes | memoryview,
) -> tuple[list[Entry], memoryview, list[memoryview | None]]:
    """Take a body with buffers apart, without copying.

    Returns:
        the entries, the pickle, and the buffers; None for each that lies in a segment.

    Raises:
        ProtocolError: the sizes do not add up.
    """
    view = memoryview(body).toreadonly()
    try:
        _, count = _HEAD.unpack_from(view)
        start = _HEAD.size + count * _ENTRY.size
        if start > len(view):
            raise ProtocolError(f"a body of {len(view)} bytes cannot have {count} buffers")
        entries = [Entry(*found) for found in _ENTRY.iter_unpack(view[_HEAD.size : start])]
    except struct.error as error:
        raise ProtocolError(f"not a body with buffers: {error}") from error
    position = len(view) - sum(entry.size for entry in entries if not entry.segment)
    if position < start:
        raise ProtocolError(
            f"a body of {len(view)} bytes cannot hold buffers of "
            f"{[entry.size for entry in entries if not entry.segment]} bytes"
        )
    data = view[start:position]
    buffers: list[memoryview | None] = []
    for entry in entries:
        if entry.segment:
            buffers.append(None)
        else:
            buffers.append(view[position : position + entry.size])
            position += entry.size
    return entries, data, buffers
