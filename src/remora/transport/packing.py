"""Python values to bodies that can be sent, large buffers in the arena.

A body holds a copy: what the caller does with its array afterwards does not reach the other side.

Large `bytes` lie in the pickle itself in protocol 5, where they would be copied three times on
their way to the socket. Where they are a whole argument or answer they go beside it; whoever
unpickles gets `bytes` again, for one more copy.
"""

from __future__ import annotations

import pickle
from typing import Any

from remora.transport.arena import Block, arena
from remora.transport.borrowing import Loan, loan_of
from remora.wire import parcel, values
from remora.wire.parcel import WRITABLE, Body, Parcel

#: Smaller buffers are quicker through the socket. Measured on two busy cores, as processor time of
#: both sides for one call with one array, socket against arena: 64 KiB 0.34 and 0.45 ms, 128 KiB
#: 0.40 and 0.38, 256 KiB 0.50 and 0.44, 1 MiB 1.7 and 0.41.
LEND_BYTES = 128 * 1024

_RAW = frozenset((bytes, bytearray))
#: Values of these types are a pickle of their own: nothing goes beside it, and no code is in it.
_ATOMS = frozenset((str, int, float, bool, type(None)))
#: What pickle raises itself; anything else comes from a user's `__reduce__`.
PICKLE_ERRORS = (TypeError, AttributeError, pickle.PicklingError)


class _Beside:
    """Bytes that are pickled beside the pickle."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return type(self.value), (pickle.PickleBuffer(self.value),)


def _is_atom(value: Any) -> bool:
    kind = type(value)
    return kind in _ATOMS or (kind is bytes and len(value) < LEND_BYTES)


def _beside(value: Any) -> Any:
    return _Beside(value) if type(value) in _RAW and len(value) >= LEND_BYTES else value


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any], wanted: str = "") -> tuple[str, Body]:
    """Make the body of a call.

    Args:
        args: its arguments.
        kwargs: those with a name.
        wanted: a format of `values.FORMATS`; empty: the first.

    Returns:
        how it is to be opened (see `values.loads`), and the body.

    Raises:
        Exception: an argument does not go into the format.

    Concurrency: in any thread.
    """
    if wanted and wanted in values.PLAIN_FORMATS:
        return wanted, values.encode_plain((args, kwargs), wanted)
    if not kwargs:
        for value in args:
            if not _is_atom(value):
                break
        else:
            return "", pickle.dumps((args, kwargs), 5)
    for value in args:
        if type(value) in _RAW and len(value) >= LEND_BYTES:
            args = tuple(map(_beside, args))
            break
    if kwargs:
        kwargs = {name: _beside(value) for name, value in kwargs.items()}
    return "", _pack((args, kwargs), wanted)


def pack_value(value: Any, wanted: str = "") -> tuple[str, Body]:
    """Make the body of an answer, or of an item of a stream; as `pack_call`."""
    if wanted and wanted in values.PLAIN_FORMATS:
        return wanted, values.encode_plain(value, wanted)
    if _is_atom(value):
        # Tokens, ids, numbers: most items of streams, and many answers.
        return "", pickle.dumps(value, 5)
    return "", _pack(_beside(value), wanted)


def explained(error: Exception, what: str) -> Exception:
    """Say of a value that does not pickle which one it is: pickle names only a type in it.

    Args:
        error: one of `PICKLE_ERRORS`.
        what: names the value.

    Returns:
        one of the same type; the very same, when it was not pickle that raised it.
    """
    if type(error) not in PICKLE_ERRORS:
        return error
    text = f"{what} cannot be pickled: {error}."
    if "generator' object" in str(error):
        text += (
            " A generator can be an argument (and is streamed then) or what a method returns, but "
            "not inside a list, dict or object."
        )
    return type(error)(text)


def _pack(value: Any, wanted: str) -> Body:
    writable: list[pickle.PickleBuffer] = []
    data, found = values.dumps(value, writable, wanted)
    if not found:
        return data
    marked = set(map(id, writable))
    flags = [WRITABLE if id(buffer) in marked else 0 for buffer in found]
    views = [buffer.raw() for buffer in found]
    if sum(view.nbytes for view in views) < LEND_BYTES:
        return parcel.join(data, views, flags)
    kept = [_keep(view) for view in views]
    for index, buffer in enumerate(kept):
        if isinstance(buffer, Loan):
            flags[index] = buffer.entry.flags
    return Parcel(data, kept, flags)


def _keep(view: memoryview) -> bytes | memoryview | Block | Loan:
    """Keep a copy of a buffer, or the loan that it is."""
    if view.nbytes >= LEND_BYTES:
        loan = loan_of(view)
        if loan is not None and loan.lend_on():
            return loan
        block = arena().keep(view)
        if block is not None:
            return block
    # What cannot change needs no copy.
    return view if type(view.obj) is bytes else bytes(view)
