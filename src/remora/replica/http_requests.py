"""Runs the user's ASGI app or plain handler for one HTTP request.

The border to user code: whatever it raises becomes an answer or an ERROR frame.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cached_property
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from remora.errors import USER_ERRORS, RemoraError
from remora.observe.tracebacks import user_traceback
from remora.replica.http_values import to_reply
from remora.replica.methods import MethodKind
from remora.replica.requests import RequestRunner, path_of
from remora.replica.sync_stream import iterate_in_thread
from remora.replica.user_code import UserCode
from remora.replica.work import Work
from remora.wire.codec import pack
from remora.wire.framing import octets
from remora.wire.messages import Envelope, FrameKind, HttpStart

if TYPE_CHECKING:
    from starlette.requests import Request

    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_ASYNC = MethodKind.ASYNC
_RESPONSE = int(FrameKind.RESPONSE)


class HttpRequests:
    """Answers HTTP requests with one replica's user code."""

    def __init__(self, replica: Replica, runner: RequestRunner) -> None:
        self._replica = replica
        self._runner = runner

    async def answer(self, work: Work) -> None:
        """Run the ASGI app, or the plain handler, for an HTTP request."""
        envelope = work.envelope
        context = self._runner.enter(envelope, work.task)
        try:
            code = self._runner.code
            if code.asgi_app is not None:
                scope = work.scope = self._scope(envelope)
                await code.asgi_app(scope, work.receive, work.send)
                if not work.finished:
                    raise RuntimeError("The ASGI app returned without completing its response")
            else:
                await self._plain(code, work)
        except asyncio.CancelledError:
            context.cancel_children()
            self._runner.finish_cancelled(work)
        except USER_ERRORS as error:  # Border: user code.
            if work.finished:
                _log_late(error, work)
                return
            answer = None if work.response_started else _http_exception(error)
            if answer is not None:
                work.finish(FrameKind.RESPONSE, *answer)
            else:
                work.finish(FrameKind.ERROR, *self._runner.describe(error, envelope))

    async def _plain(self, code: UserCode, work: Work) -> None:
        envelope = work.envelope
        method = code.methods.find("__call__")
        args: tuple[Any, ...] = ()
        scope = None
        if code.methods.num_http_parameters:
            scope = self._scope(envelope)
            request = self._request_class(scope, work.receive)
            if method.kind in (MethodKind.SYNC, MethodKind.GENERATOR):
                # A plain `def` cannot await the body, so it finds it read.
                await request.body()
            args = (request,)
        if method.kind is _ASYNC:  # a coroutine less for every request
            result = await method.function(*args)
        else:
            result = await self._runner.run(method, args, {})
        if _is_response(result):
            scope = scope or self._scope(envelope)
            await result(scope, work.receive, work.send)
        elif isinstance(result, (AsyncGeneratorType, GeneratorType)):
            await self._send_generator(work, result)
        else:
            status, headers, body = to_reply(result, f"{envelope.deployment}.__call__")
            work.finish(_RESPONSE, pack(HttpStart(status, headers)), body)

    @cached_property
    def _request_class(self) -> type[Request]:
        # Imported by the first that needs it: a replica is to be there in tens of milliseconds.
        from starlette.requests import Request

        return Request

    async def _send_generator(self, work: Work, items: Any) -> None:
        """A handler that yields text or bytes is a streamed response."""
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
        await work.send(start)
        if isinstance(items, GeneratorType):
            # What it makes ahead of its reader is bounded by what that takes of memory.
            items = iterate_in_thread(self._replica.threads, items, _part, len)
        try:
            async for item in items:
                part = {"type": "http.response.body", "body": _part(item), "more_body": True}
                await work.send(part)
        finally:
            await items.aclose()
        await work.send({"type": "http.response.body"})

    def _scope(self, envelope: Envelope) -> dict[str, Any]:
        scope = scope_of(envelope, self._runner.code)
        scope["type"] = "http"
        scope["asgi"] = _ASGI
        return scope


def _part(item: Any) -> bytes | memoryview:
    """What a streaming handler yields, as a part of the body."""
    return item.encode() if isinstance(item, str) else octets(item)


def scope_of(envelope: Envelope, code: UserCode) -> dict[str, Any]:
    """What the ASGI scopes of an HTTP request and of a WebSocket have in common."""
    head = envelope.http
    assert head is not None
    lifespan = code.lifespan
    return {
        "http_version": head.http_version,
        "method": head.method,
        "scheme": head.scheme,
        "path": head.path,
        "raw_path": head.raw_path,
        "query_string": head.query_string,
        "root_path": head.root_path,
        "headers": _with_request_id(head.headers, envelope.request_id),
        "client": head.client,
        "server": head.server,
        "state": dict(lifespan.state) if lifespan is not None else {},
    }


def _with_request_id(
    headers: list[tuple[bytes, bytes]], request_id: str
) -> list[tuple[bytes, bytes]]:
    """The headers of the client and, where it named no id for its request, the one it was given."""
    for name, _ in headers:
        if name == b"x-request-id":
            return headers
    return [*headers, (b"x-request-id", request_id.encode("latin-1", "replace"))]


def _log_late(error: BaseException, work: Work) -> None:
    """Log what came out of an app that has sent its whole response.

    Starlette answers a route's exception with 500 and then raises it on: that is no news after
    the response. A background task, or the tail of a middleware, fails by itself.
    """
    when = "" if work.answered_error is error else " after its response"
    envelope = work.envelope
    _log.error(
        "%s failed%s, %s, request %s\n%s",
        envelope.deployment,
        when,
        path_of(envelope),
        envelope.request_id,
        user_traceback(error),
    )


def _is_response(value: Any) -> bool:
    """A Starlette response, without importing Starlette for those who do not use it."""
    return callable(value) and hasattr(value, "status_code") and hasattr(value, "raw_headers")


def _http_exception(error: BaseException) -> tuple[bytes, bytes] | None:
    """A Starlette or FastAPI `HTTPException` of a plain handler, as a response."""
    status = getattr(error, "status_code", None)
    detail = getattr(error, "detail", None)
    if not isinstance(status, int) or detail is None or isinstance(error, RemoraError):
        return None
    try:
        _, headers, body = to_reply({"detail": detail})
        for name, value in (getattr(error, "headers", None) or {}).items():
            headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    except (TypeError, ValueError, AttributeError):
        return None  # It only looked like one, or carries what HTTP cannot.
    return pack(HttpStart(status, headers)), body
