"""Frames: how messages are cut out of a byte stream and put into one.

    size u32 | meta size u32 | kind u8 | flags u8 | load u16 | number u32 | meta | body

`size` counts everything after itself. Integers are little-endian. `number` is the request on
this connection (0 for the connection itself), `load` the sender's ongoing requests where it is
a replica. `meta` is msgpack, `body` raw bytes.

Rules: no input or output, no clock. Any chunking of the same bytes gives the same frames.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from remora.errors import ProtocolError
from remora.wire.foreign import describe
from remora.wire.messages import FrameKind
from remora.wire.parcel import Body

_HEADER = struct.Struct("<IIBBHI")
HEADER_BYTES = _HEADER.size
_pack = _HEADER.pack
_unpack_from = _HEADER.unpack_from

#: The size field has 32 bits; half of it keeps every sum below the limit.
MAX_FRAME_BYTES = 2**31 - 1
#: What a peer may send before its HELLO was checked.
MAX_HELLO_BYTES = 4096
#: Bodies above this size are handed to the transport on their own, without a copy.
LARGE_BODY_BYTES = 64 * 1024
#: The largest load that fits the header.
MAX_LOAD = 2**16 - 1

_KINDS = frozenset(int(kind) for kind in FrameKind)


class Frame(NamedTuple):
    """One frame. Comparable with a plain tuple, which is what the decoder makes."""

    kind: int
    flags: int
    load: int
    number: int
    meta: bytes
    body: bytes | memoryview


#: As the decoder makes it; its body becomes a `Parcel` where buffers of it were lent.
RawFrame = tuple[int, int, int, int, bytes, Body]


def encode(
    kind: int,
    number: int,
    meta: bytes = b"",
    body: bytes | memoryview = b"",
    flags: int = 0,
    load: int = 0,
) -> bytes:
    """Encode a frame whose body is small enough to copy. Pure."""
    meta_size = len(meta)
    head = _pack(12 + meta_size + len(body), meta_size, kind, flags, load, number)
    return b"".join((head, meta, body)) if body else head + meta


def encode_head(
    kind: int, number: int, meta: bytes, body_bytes: int, flags: int = 0, load: int = 0
) -> bytes:
    """Encode all of a frame but its body, which the caller sends after it.

    Raises:
        ProtocolError: the frame would be larger than `MAX_FRAME_BYTES`.
    """
    size = 12 + len(meta) + body_bytes
    check_size(size)
    return _pack(size, len(meta), kind, flags, load, number) + meta


def check_size(size: int) -> None:
    """Refuse what no frame can hold.

    Raises:
        ProtocolError: `size` is larger than `MAX_FRAME_BYTES`.
    """
    if size > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"A message of {size} bytes is larger than the limit of {MAX_FRAME_BYTES}: "
            "send it in parts (stream it) or put it into a file or store that both sides reach"
        )


def octets(data: object) -> bytes | memoryview:
    """Whatever holds bytes, as what a frame can carry: its length is its number of bytes.

    What can still change is copied, because it may leave after it was handed over.

    Raises:
        TypeError: `data` holds no bytes, or not in one piece.
    """
    if type(data) is bytes:
        return data
    view = memoryview(data)  # type: ignore[arg-type]  # the check is memoryview's own
    if not view.readonly or not view.nbytes:
        return view.tobytes()
    return view.cast("B")


class FrameDecoder:
    """Cuts a byte stream into frames.

    Bodies above `LARGE_BODY_BYTES` come as views into the received bytes, smaller ones as
    `bytes`. Before `trust` was called it gives the first frame and keeps the rest.
    """

    __slots__ = ("_have", "_limit", "_need", "_pieces", "_trusted")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = HEADER_BYTES
        self._limit = MAX_HELLO_BYTES
        self._trusted = False

    def trust(self) -> list[RawFrame]:
        """Accept frames up to the full size from now on: the peer has proved who it is.

        Returns:
            the frames that were received behind the greeting.
        """
        self._limit = MAX_FRAME_BYTES
        self._trusted = True
        return self.feed(b"")

    def feed(self, data: bytes) -> list[RawFrame]:
        """Take received bytes and return the frames that are complete now.

        Raises:
            ProtocolError: the bytes are no frames. The connection is of no more use.
        """
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
        frames: list[RawFrame] = []
        position = 0
        end = len(data)
        while True:
            left = end - position
            if left < HEADER_BYTES:
                need = HEADER_BYTES
                break
            size, meta_size, kind, flags, load, number = _unpack_from(data, position)
            if size > self._limit or meta_size > size - 12 or kind not in _KINDS:
                foreign = "" if self._trusted else describe(data[position:])
                raise ProtocolError(
                    foreign
                    or f"not a frame: size={size} (limit {self._limit}) meta={meta_size} "
                    f"kind={kind}"
                )
            need = size + 4
            if left < need:
                break
            meta_start = position + HEADER_BYTES
            body_start = meta_start + meta_size
            position += need
            body: bytes | memoryview
            if position - body_start > LARGE_BODY_BYTES:
                body = memoryview(data)[body_start:position]
            else:
                body = data[body_start:position]
            frames.append((kind, flags, load, number, data[meta_start:body_start], body))
            if not self._trusted:
                # What follows the greeting may be larger than a stranger's limit.
                need = HEADER_BYTES
                break
        if position < end:
            self._pieces.append(data[position:] if position else data)
        self._have = end - position
        self._need = need
        return frames
