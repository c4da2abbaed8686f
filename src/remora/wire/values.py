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

import copyreg
import io
import pickle
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from remora.wire import parcel
from remora.wire.parcel import Body, Parcel, raw

_MAIN = b"__main__"
#: Formats that a call may ask for. The first is what travels anyway.
FORMATS = ("cloudpickle", "pickle", "msgpack", "orjson")
#: A small answer that is passed on is copied into the pickle: a buffer beside it costs more.
_IN_BAND_BYTES = 4096
#: Those that carry plain data only.
PLAIN_FORMATS = ("msgpack", "orjson")
_KeepBuffer = Callable[[pickle.PickleBuffer], object]


def dumps(
    value: Any, writable: list[pickle.PickleBuffer] | None = None, wanted: str = ""
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle a value: the pickle and the large buffers that go beside it.

    Args:
        value: anything.
        writable: those buffers are added to it which the other side must be able to write to.
        wanted: `pickle`: nothing that plain pickle cannot carry.

    Raises:
        TypeError, pickle.PicklingError: the value cannot be pickled at all.
    """
    buffers: list[pickle.PickleBuffer] = []
    torch = sys.modules.get("torch")
    try:
        if torch is None or writable is None:
            data = pickle.dumps(value, 5, buffer_callback=buffers.append)
        else:
            data = _dumps_with_tensors(value, torch, buffers.append, writable)
    except (pickle.PicklingError, AttributeError, TypeError):
        if wanted == "pickle":
            raise
        data = b""
    if not data or (_MAIN in data and wanted != "pickle"):
        import cloudpickle

        buffers.clear()
        data = cloudpickle.dumps(value, 5, buffer_callback=buffers.append)
    return data, buffers


def _dumps_with_tensors(
    value: Any, torch: Any, keep: _KeepBuffer, writable: list[pickle.PickleBuffer]
) -> bytes:
    """Pickle as `pickle.dumps` does, but for tensors: pickle would copy them, slowly."""
    kind = getattr(torch, "Tensor", None)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5, buffer_callback=keep)
    if kind is not None:
        from remora.wire import tensors

        reduce = partial(tensors.reduce, torch, writable.append)
        pickler.dispatch_table = {**copyreg.dispatch_table, kind: reduce}
    pickler.dump(value)
    return file.getvalue()


def encode_plain(value: Any, wanted: str) -> bytes:
    """Make a body of a value in one of `PLAIN_FORMATS`.

    Raises:
        TypeError: the value does not go into that format.
    """
    encode = msgspec.msgpack.encode if wanted == "msgpack" else msgspec.json.encode
    try:
        return encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TypeError(
            f"{wanted} carries plain data only ({error}): convert the value, or leave the "
            "serialization at cloudpickle"
        ) from error


class Unopened:
    """A value as the bytes that it arrived in: pickled, it becomes the value on the other side.

    So an answer goes on to the next call without being taken apart and put together between.
    """

    __slots__ = ("_body", "_how")

    def __init__(self, body: Body, how: str) -> None:
        self._body = body
        self._how = how

    def __reduce__(self) -> Any:
        body = self._body
        if isinstance(body, Parcel):
            parts: list[Any] = [body.data, *body.views_on()]
            return _open, tuple(map(pickle.PickleBuffer, parts))
        if len(body) < _IN_BAND_BYTES:
            return loads, (bytes(body), self._how)
        return loads, (pickle.PickleBuffer(body), self._how)


def _open(data: Any, *buffers: Any) -> Any:
    return pickle.loads(data, buffers=buffers)


def loads(body: Body, how: str = "") -> Any:
    """Open a body. Arrays are read-only views into it.

    Args:
        body: as it came.
        how: its format; empty: pickle.
    """
    if how:
        body = raw(body)
        return msgspec.msgpack.decode(body) if how == "msgpack" else msgspec.json.decode(body)
    if isinstance(body, Parcel):
        return pickle.loads(body.data, buffers=body.views())
    if not body or body[0] != parcel.WITH_BUFFERS:
        return pickle.loads(body)
    _, data, buffers = parcel.split(body)
    return pickle.loads(data, buffers=buffers)
