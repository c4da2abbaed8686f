"""The one place where an error becomes an HTTP response."""

from __future__ import annotations

from typing import NamedTuple

from remora.errors import RequestError
from remora.wire.messages import PLAIN_TEXT, ErrorMeta

#: What a front door says of itself, to load balancers and over gRPC.
NODE_DRAINS = "This node is being drained: it is about to be taken away."

#: What a client is told of a failure inside user code: nothing that it could abuse.
_OPAQUE = b"Internal Server Error"
#: In the log and the counters only: the client left before its answer.
STATUS_CLIENT_LEFT = 499


class Response(NamedTuple):
    """A complete response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def text(status: int, body: str | bytes, *extra: tuple[bytes, bytes]) -> Response:
    """A plain text response."""
    data = body.encode() if isinstance(body, str) else body
    return Response(status, [PLAIN_TEXT, *extra], data)


def json_body(status: int, body: bytes) -> Response:
    """A response with a JSON body that is encoded already."""
    return Response(status, [(b"content-type", b"application/json")], body)


def from_error(error: Exception) -> Response:
    """The response for a request that failed on the way to a replica, or with it."""
    if not isinstance(error, RequestError):
        return text(500, _OPAQUE)
    if error.http_status >= 500 and error.http_status != 503:
        return text(error.http_status, _OPAQUE)
    return text(error.http_status, str(error), *_retry_after(error.retry_after_s))


def from_error_meta(meta: ErrorMeta) -> Response:
    """The response for an ERROR frame of a replica."""
    if meta.from_user or (meta.http_status >= 500 and meta.http_status != 503):
        return text(500, _OPAQUE)
    return text(meta.http_status, meta.message, *_retry_after(meta.retry_after_s))


def not_found(path: str) -> Response:
    """No application has this path."""
    return text(404, f"Path '{path}' not found. Ping http://.../-/routes for available routes.")


def leaving(app: str) -> Response:
    """The application of this path finishes what it has and takes no more."""
    return text(503, f"Application '{app}' is being deleted, or its instance shut down.")


def ending() -> Response:
    """The instance finishes what it has and takes no more."""
    return text(503, "The instance is shutting down.")


def draining() -> Response:
    """The node of this front door goes away soon."""
    return text(503, NODE_DRAINS)


def _retry_after(seconds: float | None) -> tuple[tuple[bytes, bytes], ...]:
    if seconds is None:
        return ()
    return ((b"retry-after", b"%d" % -int(-seconds // 1)),)
