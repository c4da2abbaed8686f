"""Response heads as bytes.

Rules: pure, but for what it remembers. A header that could break out of its line is refused, whoever set it.
"""

from __future__ import annotations

import http
import re
from typing import NamedTuple

from remora.wire.codec import decode_http_start

_BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]").search
#: RFC 9110: a field value holds no control characters but the tab.
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search

#: Headers that the writer of a response sets itself, and so has to know about.
_LENGTH, _CONNECTION, _CODING, _DATE, _REQUEST_ID = range(1, 6)
_MEANINGS = {
    b"content-length": _LENGTH,
    b"connection": _CONNECTION,
    b"transfer-encoding": _CODING,
    b"date": _DATE,
    b"x-request-id": _REQUEST_ID,
}
#: `name: ` and its meaning (0: none) by name as the application wrote it; few different exist.
_names: dict[bytes, tuple[bytes, int]] = {}
_MAX_NAMES = 1024
#: Responses that have no body, and so say no length of one.
WITHOUT_LENGTH = frozenset((204, 304))
#: Heads that replicas have sent, by the bytes that they came in: an application has few different
#: ones, and reading one again costs more than the rest of an answer.
_read: dict[bytes, Head] = {}
_MAX_READ = 256
_MAX_READ_BYTES = 1024


def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES = {status: _status_line(status) for status in range(200, 600)}


class Head(NamedTuple):
    """What a response's head says about its body and the connection.

    Attributes:
        status: of the response.
        text: status line and headers, each with its line end; length and transfer coding are
            left out, because the writer decides how the body is framed.
        content_length: what the application said; None: nothing.
        close: the application wants the connection closed.
        has_date: the application has set the date itself.
        has_request_id: the application has set `x-request-id` itself.
        route: template of the route that answered, below the application's prefix.
    """

    status: int
    text: bytes
    content_length: int | None
    close: bool
    has_date: bool = False
    has_request_id: bool = False
    route: str = ""


def read(meta: bytes) -> Head:
    """Make a head of what a replica has sent of it.

    Args:
        meta: a packed `HttpStart`.

    Raises:
        ValueError: as `render`.
        msgspec.MsgspecError: it is something else.
    """
    head = _read.get(meta)
    if head is None:
        start = decode_http_start(meta)
        head = render(start.status, start.headers, start.route)
        if len(meta) <= _MAX_READ_BYTES:
            if len(_read) >= _MAX_READ:
                _read.clear()
            _read[meta] = head
    return head


def render(status: int, headers: list[tuple[bytes, bytes]], route: str = "") -> Head:
    """Make the lines of a head.

    Raises:
        ValueError: a status or header that HTTP does not allow; says which.
    """
    line = _STATUS_LINES.get(status)
    if line is None:
        raise ValueError(f"status {status} is outside 200..599")
    lines = [line]
    length: int | None = None
    close = has_date = has_request_id = False
    for name, value in headers:
        known = _names.get(name)
        if known is None:
            known = _learn(name)
        if _BAD_VALUE(value) is not None:
            raise ValueError(f"the value of header {name!r} has a control character")
        prefix, meaning = known
        if not meaning:
            lines.append(prefix + value + b"\r\n")
        elif meaning == _LENGTH:
            if not value.isdigit():
                raise ValueError(f"content-length is {value!r}, not a number")
            length = int(value)
        elif meaning == _CONNECTION:
            close = close or b"close" in value.lower()
        elif meaning != _CODING:
            lines.append(prefix + value + b"\r\n")
            has_date = has_date or meaning == _DATE
            has_request_id = has_request_id or meaning == _REQUEST_ID
    return Head(status, b"".join(lines), length, close, has_date, has_request_id, route)


def _learn(name: bytes) -> tuple[bytes, int]:
    if not name or _BAD_NAME(name) is not None:
        raise ValueError(f"{name!r} is no header name")
    lower = name.lower()
    known = (lower + b": ", _MEANINGS.get(lower, 0))
    if len(_names) < _MAX_NAMES:
        _names[name] = known
    return known


def has_body(method: str, status: int) -> bool:
    """Whether a response to `method` with `status` may carry a body (RFC 9110, 6.4.1)."""
    return method != "HEAD" and status >= 200 and status not in WITHOUT_LENGTH
