"""Messages to bytes and back: the msgpack half of a frame.

Rules: no input or output. Unknown fields of a newer peer are ignored, missing ones of an older
peer take their defaults. Nothing here unpickles.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from remora.errors import ProtocolError
from remora.wire.messages import Envelope, ErrorMeta, Hello, HttpStart

_encoder = msgspec.msgpack.Encoder()
#: Any struct of `wire/messages.py` or `wire/control.py` to msgpack.
pack = _encoder.encode

decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
decode_error = msgspec.msgpack.Decoder(ErrorMeta).decode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_http_start = msgspec.msgpack.Decoder(HttpStart).decode
decode_credit = msgspec.msgpack.Decoder(int).decode
decode_sizes = msgspec.msgpack.Decoder(list[int]).decode

T = TypeVar("T")


def unpack(data: bytes | memoryview, kind: type[T]) -> T:
    """Decode msgpack into a struct.

    Raises:
        ProtocolError: the bytes are not that struct; says where they differ.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from error


def to_json(value: Any) -> bytes:
    """Any struct as JSON, for people and scripts."""
    return msgspec.json.encode(value)
