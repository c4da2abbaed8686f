"""What a handler of gRPC requests sees beside its messages: the context, and a stream of requests.

A handler that has a parameter named `grpc_context` gets a `RayServegRPCContext` in it. It has the
methods of gRPC's own `ServicerContext`, except those that would block.

Rules: imports no gRPC library; who uses none pays for none.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

from remora.core.request.grpc_status import GrpcCode, code_number
from remora.wire.messages import GrpcEnd, GrpcHead

__all__ = ["GrpcContext", "RayServegRPCContext", "gRPCInputStream"]

T = TypeVar("T")
_KEY = re.compile(r"[0-9a-z_.\-]+").fullmatch
_TEXT = re.compile(r"[ -~]*").fullmatch


class RayServegRPCContext:
    """One gRPC request, as its handler sees it and wants it to end."""

    def __init__(
        self,
        head: GrpcHead,
        *,
        request_id: str = "",
        application: str = "",
        multiplexed_model_id: str = "",
        session_id: str = "",
        traceparent: str = "",
    ) -> None:
        self._head = head
        self._request_id = request_id
        self._application = application
        self._model_id = multiplexed_model_id
        self._session_id = session_id
        self._traceparent = traceparent
        self._code: int | None = None
        self._details: str | None = None
        self._trailing: list[tuple[str, str | bytes]] = []
        self._compression = 0

    # -- what came with the request ---------------------------------------------------------

    def request_id(self) -> str:
        """Id of the request; the client gets it in the trailing metadata."""
        return self._request_id

    def application(self) -> str:
        """Name of the application that the request is for."""
        return self._application

    def multiplexed_model_id(self) -> str:
        """Model that the client asked for; empty: none."""
        return self._model_id

    def session_id(self) -> str:
        """Session that the client named; empty: none."""
        return self._session_id

    def traceparent(self) -> str:
        """W3C `traceparent` of the client; empty: none."""
        return self._traceparent

    def tracestate(self) -> str:
        """W3C `tracestate` of the client; empty: none."""
        return self._head.trace_state

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """Metadata of the client."""
        return list(self._head.metadata)

    def peer(self) -> str:
        """Address of the client, such as `ipv4:127.0.0.1:50123`."""
        return self._head.peer

    def auth_context(self) -> dict[str, list[bytes]]:
        """Properties of the client's certificate; empty without one."""
        return self._head.auth

    def peer_identity_key(self) -> str | None:
        """Which of these properties says who the client is; None: it has not proved it."""
        return self._head.identity_key or None

    def peer_identities(self) -> list[bytes] | None:
        """Who the client is; None: it has not proved it."""
        key = self._head.identity_key
        return self._head.auth.get(key) if key else None

    # -- how it is to end -------------------------------------------------------------------

    def code(self) -> Any:
        """The `grpc.StatusCode` that was set; None: none."""
        if self._code is None:
            return None
        import grpc

        return next(code for code in grpc.StatusCode if code.value[0] == self._code)

    def details(self) -> str | None:
        """The details that were set; None: none."""
        return self._details

    def trailing_metadata(self) -> list[tuple[str, str | bytes]]:
        """The trailing metadata that were set."""
        return list(self._trailing)

    def set_code(self, code: Any) -> None:
        """End the request with this status, whether the handler returns or raises.

        Args:
            code: a `grpc.StatusCode`, or its number.

        Raises:
            ValueError: no such code.
        """
        self._code = code_number(code)

    def set_details(self, details: str) -> None:
        """Tell the client this beside the status."""
        if not isinstance(details, str):
            raise TypeError(f"details must be a str, not {type(details).__name__}")
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send this metadata behind the answer; the last call counts.

        Raises:
            TypeError: bytes under a key that does not end in `-bin`, or text under one that does.
            ValueError: a key or a text that gRPC does not allow.
        """
        self._trailing = [_checked(key, value) for key, value in trailing_metadata]

    def set_compression(self, compression: Any) -> None:
        """Compress the answer; of a stream: before its first message.

        Args:
            compression: a `grpc.Compression`, or its number.
        """
        number = int(getattr(compression, "value", compression))
        if not 0 <= number <= 2:
            raise ValueError(f"{compression!r} is no compression: use grpc.Compression")
        self._compression = number

    def _end(self) -> GrpcEnd | None:
        """How the request ends when its handler returned; None: in no special way."""
        if self._code or self._details or self._trailing or self._compression:
            return GrpcEnd(
                self._code or GrpcCode.OK, self._details or "", self._trailing, self._compression
            )
        return None

    def _end_with(self, code: int, details: str) -> GrpcEnd:
        """How it ends when its handler raised: what the handler has set comes first."""
        return GrpcEnd(self._code or code, self._details or details, self._trailing)


def _checked(key: str, value: str | bytes) -> tuple[str, str | bytes]:
    if not _KEY(key) or key.startswith("grpc-"):
        raise ValueError(
            f"{key!r} is no key of gRPC metadata: use lower-case letters, digits, '-', '_' and '.', "
            "and no 'grpc-' in front"
        )
    kind = bytes if key.endswith("-bin") else str
    if not isinstance(value, kind):
        raise TypeError(
            f"the value of metadata {key!r} must be {kind.__name__}, not {type(value).__name__}; "
            "keys of bytes end in -bin"
        )
    if isinstance(value, str) and not _TEXT(value):
        raise ValueError(
            f"the value of metadata {key!r} must be printable ASCII; under a key that ends in -bin "
            "bytes of any kind can be sent"
        )
    return key, value


#: A shorter name for it; the other one is what Ray Serve's users know, and what errors say.
GrpcContext = RayServegRPCContext


class gRPCInputStream(Generic[T]):  # noqa: N801 - the name that Ray Serve's users know
    """The messages of a client that sends a stream: `async for message in stream`."""

    def __init__(
        self, receive: Callable[[], Awaitable[T | None]], is_cancelled: Callable[[], bool]
    ) -> None:
        """Read messages with `receive`, which gives None at the end."""
        self._receive = receive
        self._client_left = is_cancelled
        self._cancelled = False
        self._exhausted = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if self._exhausted or self._cancelled:
            raise StopAsyncIteration
        message = await self._receive()
        if message is None:
            self._exhausted = True
            raise StopAsyncIteration
        return message

    def is_cancelled(self) -> bool:
        """The client has cancelled the request, or `cancel` was called."""
        return self._cancelled or self._client_left()

    def cancel(self) -> None:
        """Read no more: the iteration ends at its next step."""
        self._cancelled = True

    @property
    def is_exhausted(self) -> bool:
        """Every message of the client has been read."""
        return self._exhausted
