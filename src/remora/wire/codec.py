"""Messages to bytes and back: the msgpack half of a frame.

Rules: no input or output. Unknown fields of a newer peer are ignored, missing ones of an older
peer take their defaults. Nothing here unpickles.
"""

from __future__ import annotations

import numbers
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


def plain(value: object) -> str | int | float:
    """Make a text or number of another class, such as numpy's, one that can be written.

    Pure. Asked only for what msgspec does not know itself.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_encoder = msgspec.msgpack.Encoder(enc_hook=plain)
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
    return msgspec.json.encode(value, enc_hook=plain)


def to_ordered_json(value: Any) -> bytes:
    """Any value as JSON that is the same for equal values, whatever order their keys are in.

    Pure. Numbers as keys, which a `user_config` may have, are not the texts that look like them.
    """
    try:
        return msgspec.json.encode(value, enc_hook=plain, order="deterministic")
    except TypeError:
        # msgspec orders keys only where all of them are texts.
        return msgspec.json.encode(_listed(msgspec.to_builtins(value, enc_hook=plain)))


def _listed(value: Any) -> Any:
    """Mappings as sorted lists of what kind their keys are, their keys and their values."""
    if isinstance(value, dict):
        items = [(type(key).__name__, str(key), _listed(item)) for key, item in value.items()]
        return sorted(items, key=lambda item: item[:2])
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return value
