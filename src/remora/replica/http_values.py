"""Turn what a plain HTTP handler returned into a response.

Rules: pure, no I/O. Libraries that a value may come from (numpy, pandas) are never imported
here: a value of theirs exists only if somebody imported them before. Starlette responses are
recognised by the caller and never come here.

    None                        200  text/plain                  empty
    bytes-like                  200  text/plain                  as it is
    str                         200  text/plain; charset=utf-8   as it is
    anything JSON can carry     200  application/json            compact, ASCII only

An exception that was *returned* counts as its text. NaN and infinities are written as such.
"""

from __future__ import annotations

import json
import sys
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

import msgspec

from remora.wire.messages import PLAIN_TEXT

#: Status, headers as ASGI wants them, body.
Reply = tuple[int, list[tuple[bytes, bytes]], bytes]

_PLAIN = (b"content-type", b"text/plain")
_JSON = (b"content-type", b"application/json")

#: Most answers of small handlers are short; their length header is made once. Reply lists are
#: made anew each time, so a caller may add headers to them.
_SHORT = 256
_LENGTHS = [(b"content-length", b"%d" % n) for n in range(_SHORT)]

_ALLOWED = (
    "None, bytes, str, a value that JSON can carry (dict, list, number, bool, pydantic model, "
    "dataclass, numpy array, pandas DataFrame), or a Starlette response"
)


def to_reply(value: object, origin: str = "The handler") -> Reply:
    """Make a response of `value`.

    Pure. The list of headers is the caller's own.

    Args:
        value: what the user's handler returned; no Starlette response.
        origin: who returned it, for the error: `default/Model.__call__`.

    Raises:
        TypeError: the value cannot become a response; says what it was and what is allowed.
    """
    kind = type(value)
    if kind is bytes:
        body: bytes = value  # type: ignore[assignment]
        header = _PLAIN
    elif kind is str:
        try:
            body = value.encode()  # type: ignore[attr-defined]
        except UnicodeEncodeError as error:
            raise TypeError(f"{origin} returned a str that is no valid text: {error}.") from error
        header = PLAIN_TEXT
    elif value is None:
        return 200, [_PLAIN, _LENGTHS[0]], b""
    elif kind is not dict and isinstance(value, (bytes, bytearray, memoryview)):
        body = bytes(value)
        header = _PLAIN
    elif kind is not dict and isinstance(value, str):
        return to_reply(str.__str__(value), origin)
    else:
        body = _to_json(value, origin)
        header = _JSON
    size = len(body)
    length = _LENGTHS[size] if size < _SHORT else (b"content-length", b"%d" % size)
    return 200, [header, length], body


def _to_json(value: object, origin: str) -> bytes:
    """Encode `value`; slower ways are tried only when the quick one cannot."""
    if isinstance(value, (GeneratorType, AsyncGeneratorType, CoroutineType)):
        raise TypeError(
            f"{origin} returned {_a_type_name(value)}, which cannot become an HTTP response. "
            "To stream, return starlette.responses.StreamingResponse(generator); a coroutine "
            "must be awaited."
        )
    try:
        return _encode(value).encode("ascii")
    except (TypeError, ValueError, RecursionError) as quick_error:
        try:
            # Only this way converts keys of mappings, too.
            return _encode(_jsonable(value)).encode("ascii")
        except (TypeError, ValueError, RecursionError):
            raise TypeError(
                f"{origin} returned {_a_type_name(value)}, which cannot become an HTTP response: "
                f"{_reason(quick_error)}. Return {_ALLOWED}."
            ) from None


def _convert(value: Any) -> Any:
    """Give JSON's encoder something it knows in place of a value that it does not know."""
    if isinstance(value, BaseException):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value, str_keys=True)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return value.tolist()
        if isinstance(value, numpy.generic):
            return value.item()
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        if isinstance(value, pandas.DataFrame):
            return value.to_dict(orient="records")
        if isinstance(value, pandas.Series):
            return value.tolist()
    return _jsonable(value)


def _jsonable(value: Any) -> Any:
    """Convert pydantic models, dataclasses, dates and the like by FastAPI's rules."""
    # Imported here because most handlers never return such a value, and it costs a tenth of
    # a second.
    from fastapi.encoders import jsonable_encoder

    convert: dict[Any, Any] = {BaseException: str, msgspec.Struct: _convert}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        convert |= {numpy.ndarray: _convert, numpy.generic: _convert}
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        convert |= {pandas.DataFrame: _convert, pandas.Series: _convert}
    return jsonable_encoder(value, custom_encoder=convert)


_encode = json.JSONEncoder(separators=(",", ":"), default=_convert).encode


def _a_type_name(value: object) -> str:
    kind = type(value)
    builtin = kind.__module__ == "builtins"
    name = kind.__name__ if builtin else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _reason(error: Exception) -> str:
    """Say in one line why encoding failed; FastAPI reports several reasons as a list."""
    reason = error.args[0] if error.args else type(error).__name__
    if isinstance(reason, list):
        reason = "; ".join(str(part) for part in reason)
    return " ".join(str(reason).split()).rstrip(".")
