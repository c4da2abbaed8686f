"""Python values to bytes and back, between our own processes.

Pickle protocol 5 with out-of-band buffers: the bytes of arrays are neither copied into the
pickle nor out of it. Plain pickle first, because it is several times faster; cloudpickle where
plain pickle cannot, or where it would name something in `__main__`, which is another module on
the other side.

Unpickling runs code: only ever called on bytes from a peer inside the instance.
"""

from __future__ import annotations

import pickle
from typing import Any

_MAIN = b"__main__"


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


def loads(body: bytes | memoryview, sizes: list[int]) -> Any:
    """Unpickle a body made by `join`. Arrays are read-only views into it."""
    if not sizes:
        return pickle.loads(body)
    view = memoryview(body).toreadonly()
    position = len(view) - sum(sizes)
    data = view[:position]
    buffers = []
    for size in sizes:
        buffers.append(view[position : position + size])
        position += size
    return pickle.loads(data, buffers=buffers)
