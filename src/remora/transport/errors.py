"""Exceptions across a connection: what travels, and what comes out on the other side."""

from __future__ import annotations

import logging
import pickle
import types
import weakref
from typing import Any

from remora.errors import RemoraError, RemoteError, rebuild
from remora.wire import values
from remora.wire.codec import decode_error, pack
from remora.wire.messages import ErrorMeta

_log = logging.getLogger("remora.transport")
#: Classes of which it was logged that they do not travel.
_told: weakref.WeakSet[type[BaseException]] = weakref.WeakSet()
_CURE = (
    "Pass all arguments of its constructor to super().__init__(), keep in it only what can be "
    "pickled, or give it a __reduce__."
)


def encode_error(
    error: BaseException, traceback: str = "", *, never_started: bool = False
) -> tuple[bytes, bytes]:
    """Describe an exception for the other side.

    Args:
        error: any exception.
        traceback: what the reader should see of where it came from.
        never_started: True: the user's code never saw the request.

    Returns:
        the meta and the body of an ERROR frame.
    """
    ours = isinstance(error, RemoraError)
    body, obstacle = _pickle(error)
    if obstacle:
        name = type(error).__qualname__
        obstacle = f"{name} cannot be sent to the caller as itself: {obstacle}. {_CURE}"
        if type(error) not in _told:
            _told.add(type(error))
            _log.warning("%s Callers get a RemoteError.", obstacle)
    meta = ErrorMeta(
        type_name=type(error).__qualname__,
        message=_text_of(error),
        # Half characters (surrogates) are no UTF-8 and so would not travel.
        traceback=traceback.encode("utf-8", "backslashreplace").decode(),
        http_status=getattr(error, "http_status", 500) if ours else 500,
        never_started=never_started,
        from_user=not ours,
        retry_after_s=getattr(error, "retry_after_s", None) if ours else None,
        obstacle=obstacle,
    )
    return pack(meta), body


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - border: a user's `__str__`
        text = f"(its text cannot be shown: {type(failure).__name__})"
    return text.encode("utf-8", "backslashreplace").decode()


def _pickle(error: BaseException) -> tuple[bytes, str]:
    """Pickle an exception; without one, say why there is none.

    Many exceptions pickle and then fail to unpickle, or say something else than before, because
    their constructor takes other arguments than `args`. Only the side that has the class loaded
    can find out cheaply. Those are made again without their constructor.
    """
    data, obstacle = _tried(error, error)
    if obstacle and _reduces_as_usual(type(error)):
        again, other = _tried(_Remade(error), error)
        if not other:
            return again, ""
    return data, "" if data else obstacle


def _tried(value: object, error: BaseException) -> tuple[bytes, str]:
    """Pickle what shall become `error`; the pickle, if it opens, and what is wrong with it."""
    try:
        data, buffers = values.dumps(value)
        if buffers:
            import cloudpickle

            data = cloudpickle.dumps(value, 5)
        text = _text_of(pickle.loads(data))
    except Exception as failure:  # noqa: BLE001 - user classes may raise anything
        return b"", f"{type(failure).__name__}: {_text_of(failure)}"
    return data, "" if text == _text_of(error) else "its copy has another text"


def _reduces_as_usual(kind: type[BaseException]) -> bool:
    """Whether a class leaves it to Python how its exceptions are pickled."""
    plain = isinstance(kind.__reduce__, types.MethodDescriptorType)
    return plain and kind.__reduce_ex__ is object.__reduce_ex__


class _Remade:
    """Pickled, it becomes the exception, whose constructor is not run again."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        reduced: Any = self._error.__reduce__()
        kind, args, *state = reduced
        return rebuild, (kind, args, state[0] if state else {})


def decode_error_frame(meta: bytes, body: bytes | memoryview, *, unpickle: bool) -> BaseException:
    """Make the exception that the other side raised, with its traceback as a note.

    Args:
        meta: of the ERROR frame.
        body: of the ERROR frame: the pickled exception, or nothing.
        unpickle: False: make a RemoteError with its text and leave the pickle alone. Opening it
            runs code of the sender's choosing and gives exceptions that this process may take
            for its own (a user's ConnectionLostError is no lost connection).
    """
    about = decode_error(meta)
    error: BaseException | None = None
    if not unpickle:
        text = f"{about.type_name}: {about.message}" if about.from_user else about.message
        error = RemoteError(text)
    elif body:
        try:
            error = pickle.loads(body)
        except Exception as failure:  # noqa: BLE001 - the class may not exist on this side
            error = RemoteError(
                f"{about.type_name}: {about.message} (the exception itself could not be "
                f"unpickled here: {failure})"
            )
    # What would end the caller's own process (SystemExit) stays an error of this one call.
    if not isinstance(error, Exception):
        why = f" ({about.obstacle})" if about.obstacle else ""
        error = RemoteError(f"{about.type_name}: {about.message}{why}")
    if about.traceback:
        error.add_note(f"Remote traceback:\n{about.traceback.rstrip()}")
    return error
