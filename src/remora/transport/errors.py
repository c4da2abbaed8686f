"""Exceptions across a connection: what travels, and what comes out on the other side."""

from __future__ import annotations

import pickle

from remora.errors import RemoraError, RemoteError
from remora.wire import values
from remora.wire.codec import decode_error, pack
from remora.wire.messages import ErrorMeta


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
    meta = ErrorMeta(
        type_name=type(error).__qualname__,
        message=_text_of(error),
        # Half characters (surrogates) are no UTF-8 and so would not travel.
        traceback=traceback.encode("utf-8", "backslashreplace").decode(),
        http_status=getattr(error, "http_status", 500) if ours else 500,
        never_started=never_started,
        from_user=not ours,
        retry_after_s=getattr(error, "retry_after_s", None) if ours else None,
    )
    return pack(meta), _pickle(error)


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - border: a user's `__str__`
        text = f"(its text cannot be shown: {type(failure).__name__})"
    return text.encode("utf-8", "backslashreplace").decode()


def _pickle(error: BaseException) -> bytes:
    try:
        data, buffers = values.dumps(error)
        if buffers:
            return b""
        # Many exceptions pickle and then fail to unpickle (a constructor with other
        # arguments). Only the side that has the class loaded can find out cheaply.
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - user classes may raise anything; the text still travels
        return b""
    return data


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
        error = RemoteError(f"{about.type_name}: {about.message}")
    if about.traceback:
        error.add_note(f"Remote traceback:\n{about.traceback.rstrip()}")
    return error
