"""How a request that failed looks to a gRPC client: the one place where an error becomes a status.

Rules: pure; knows no gRPC library. The numbers are those of the gRPC protocol.
"""

from __future__ import annotations

from enum import IntEnum

from remora.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    RemoraError,
    ReplicaUnavailableError,
    RequestCancelledError,
    RequestTimeoutError,
    gRPCStatusError,
)
from remora.wire.messages import ErrorMeta

#: Bytes of details that a client gets of an exception. They travel in a header whose size clients
#: limit, most of them to 8 KiB for all headers together.
MAX_DETAILS_BYTES = 4096


class GrpcCode(IntEnum):
    """Status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


#: What an ERROR frame says in the words of HTTP, in those of gRPC.
_FROM_HTTP = {
    408: GrpcCode.DEADLINE_EXCEEDED,
    413: GrpcCode.RESOURCE_EXHAUSTED,
    429: GrpcCode.RESOURCE_EXHAUSTED,
    499: GrpcCode.CANCELLED,
    503: GrpcCode.UNAVAILABLE,
}


def code_of(error: BaseException) -> int:
    """The status code of a request that ended in `error`."""
    if isinstance(error, gRPCStatusError):
        return code_number(error.grpc_code)
    if isinstance(error, BackPressureError):
        # Whatever HTTP status its deployment has chosen for it.
        return GrpcCode.RESOURCE_EXHAUSTED
    if isinstance(error, RequestTimeoutError):
        return GrpcCode.DEADLINE_EXCEEDED
    if isinstance(error, RequestCancelledError):
        return GrpcCode.CANCELLED
    if isinstance(error, DeploymentUnavailableError | ReplicaUnavailableError):
        return GrpcCode.UNAVAILABLE
    return GrpcCode.INTERNAL


def details_of(error: BaseException) -> str:
    """What a client is told of `error`: its text, without a traceback."""
    if isinstance(error, gRPCStatusError) and error.grpc_details:
        return error.grpc_details
    text = str(error)
    if not isinstance(error, RemoraError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return clip(text)


def of_error_meta(meta: ErrorMeta) -> tuple[int, str]:
    """The status that an ERROR frame stands for."""
    if meta.from_user:
        return GrpcCode.INTERNAL, clip(f"{meta.type_name}: {meta.message}")
    return _FROM_HTTP.get(meta.http_status, GrpcCode.INTERNAL), clip(meta.message)


def code_number(code: object) -> int:
    """The number of a status code, given as gRPC's own enum, as `GrpcCode` or as a number.

    Raises:
        ValueError: there is no such code.
    """
    value = getattr(code, "value", code)
    number = value[0] if isinstance(value, tuple) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 16:
        raise ValueError(f"{code!r} is no status code of gRPC: use grpc.StatusCode")
    return number


def clip(text: str, limit: int = MAX_DETAILS_BYTES) -> str:
    """Cut a text so that it takes at most `limit` bytes on the wire.

    There every byte outside printable ASCII, and `%`, takes three.
    """
    size = 0
    for index, char in enumerate(text):
        size += (
            1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode("utf-8", "replace"))
        )
        if size > limit:
            return text[:index]
    return text
