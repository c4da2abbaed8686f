"""Python values to bytes and back, between our own processes.

Pickle protocol 5 with out-of-band buffers: the bytes of arrays are neither copied into the
pickle nor out of it. Plain pickle first, because it is several times faster; cloudpickle where
plain pickle cannot, or where it would name something in `__main__`, which is another module on
the other side.

A call may ask for another format, for its arguments and for its answer. The bytes of an answer
say themselves how they are to be opened, so that they can be passed on unopened.

Unpickling runs code: only ever called on bytes from a peer inside the instance.
"""

from __future__ import annotations

import pickle
from typing import Any

import msgspec

_MAIN = b"__main__"

#: Formats that a call may ask for. The first is what travels anyway.
FORMATS = ("cloudpickle", "pickle", "msgpack", "orjson")
#: How a body is to be opened: the sizes of the buffers behind its pickle, or a format's name.
How = list[int] | str
_MSGPACK = "msgpack"
_JSON = "orjson"


def dumps(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle a value: the pickle and the large buffers that go beside it.

    Raises:
        TypeError, pickle.PicklingError: the value cannot be pickled at all.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    except (pickle.PicklingError, AttributeError, TypeError):
        data = b""
    if not data or _MAIN in data:
        import cloudpickle

        buffers.clear()
        data = cloudpickle.dumps(value, 5, buffer_callback=buffers.append)
    return data, buffers


def join(data: bytes, buffers: list[pickle.PickleBuffer]) -> tuple[list[int], bytes]:
    """Put a pickle and its buffers into one body; returns the buffers' sizes and the body."""
    views = [buffer.raw() for buffer in buffers]
    return [view.nbytes for view in views], b"".join((data, *views))


def encode(value: Any, wanted: str = "") -> tuple[How, bytes]:
    """Make a body of a value, in a format of `FORMATS`; returns how to open it, and the body.

    Raises:
        TypeError, ValueError, pickle.PicklingError: the value does not go into that format.
    """
    if wanted in (_MSGPACK, _JSON):
        encode_plain = msgspec.msgpack.encode if wanted == _MSGPACK else msgspec.json.encode
        try:
            return wanted, encode_plain(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise TypeError(
                f"{wanted} carries plain data only ({error}): convert the value, or leave the "
                "serialization at cloudpickle"
            ) from error
    buffers: list[pickle.PickleBuffer] = []
    if wanted == "pickle":
        data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    else:
        data, buffers = dumps(value)
    return join(data, buffers) if buffers else ([], data)


class Unopened:
    """A value as the bytes that it arrived in: pickled, it becomes the value on the other side.

    So an answer goes on to the next call without being taken apart and put together between.
    """

    __slots__ = ("_body", "_how")

    def __init__(self, body: bytes | memoryview, how: How) -> None:
        self._body = body
        self._how = how

    def __reduce__(self) -> Any:
        return loads, (pickle.PickleBuffer(self._body), self._how)


def loads(body: bytes | memoryview, how: How) -> Any:
    """Open a body made by `join` or `encode`. Arrays are read-only views into it."""
    if not how:
        return pickle.loads(body)
    if how.__class__ is str:
        return msgspec.msgpack.decode(body) if how == _MSGPACK else msgspec.json.decode(body)
    sizes: list[int] = how  # type: ignore[assignment]  # checked above, in the quickest way
    view = memoryview(body).toreadonly()
    position = len(view) - sum(sizes)
    data = view[:position]
    buffers = []
    for size in sizes:
        buffers.append(view[position : position + size])
        position += size
    return pickle.loads(data, buffers=buffers)
