"""Messages to bytes and back: the msgpack half of a frame.

Rules: no input or output. Unknown fields of a newer peer are ignored, missing ones of an older
peer take their defaults. Nothing here unpickles.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from remora.errors import ProtocolError, RefusedError
from remora.wire.framing import RawFrame
from remora.wire.messages import (
    WIRE_VERSION,
    Envelope,
    ErrorMeta,
    FrameKind,
    Grant,
    GrpcEnd,
    Hello,
    HttpStart,
    Part,
    WebSocketClose,
)

_encoder = msgspec.msgpack.Encoder()
#: Any struct of `wire/messages.py` or `wire/control.py` to msgpack.
pack = _encoder.encode

decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
decode_error = msgspec.msgpack.Decoder(ErrorMeta).decode
decode_http_start = msgspec.msgpack.Decoder(HttpStart).decode
decode_websocket_close = msgspec.msgpack.Decoder(WebSocketClose).decode
decode_grpc_end = msgspec.msgpack.Decoder(GrpcEnd).decode
decode_credit = msgspec.msgpack.Decoder(int).decode
decode_part = msgspec.msgpack.Decoder(Part).decode
decode_grant = msgspec.msgpack.Decoder(Grant).decode
decode_stream_number = decode_credit
#: How the body of a RESPONSE or ITEM is to be opened; see `wire/values.py`.
decode_how = msgspec.msgpack.Decoder(str).decode

#: What decoding raises for bytes that are not what they should be.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError)

T = TypeVar("T")


def read_hello(frame: RawFrame) -> Hello:
    """Read the first frame of a peer.

    Raises:
        ProtocolError: it is no greeting, or one of another version.
        RefusedError: it is a refusal.
    """
    if frame[0] != FrameKind.HELLO:
        raise ProtocolError(f"the first frame is of kind {frame[0]}, not HELLO")
    hello = unpack(frame[4], Hello)
    if hello.refused:
        raise RefusedError(hello.refused)
    if hello.version != WIRE_VERSION:
        raise ProtocolError(
            f"{hello.name or 'the peer'} speaks version {hello.version}, this process "
            f"{WIRE_VERSION}: run the same version of remora on both sides"
        )
    return hello


def unpack(data: bytes | memoryview, kind: type[T]) -> T:
    """Decode msgpack into a struct.

    Raises:
        ProtocolError: the bytes are not that struct; says where they differ.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except UNREADABLE as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from error


def to_json(value: Any) -> bytes:
    """Any struct as JSON, for people and scripts."""
    return msgspec.json.encode(value)
