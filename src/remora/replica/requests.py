"""Runs the user's code for one request and sends what it gives.

The border to user code: whatever it raises becomes an ERROR frame, logged once, here.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from remora.errors import RemoraError, RemoteError, RequestCancelledError
from remora.replica.http_values import to_reply
from remora.replica.sync_stream import iterate_in_thread
from remora.replica.user_code import MethodKind, UserCode, UserMethod, user_traceback
from remora.replica.work import Work
from remora.request_context import RequestContext, current
from remora.transport.errors import encode_error
from remora.wire import values
from remora.wire.codec import pack
from remora.wire.messages import Envelope, FrameKind, HttpStart

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection
    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")
_RESPONSE = int(FrameKind.RESPONSE)
_ERROR = int(FrameKind.ERROR)
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_CANCELLED_META, _CANCELLED_BODY = encode_error(RequestCancelledError())


class RequestRunner:
    """Runs requests on one replica's user code."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    # -- handle calls -----------------------------------------------------------------------

    async def unary(
        self,
        connection: ReplicaConnection,
        number: int,
        envelope: Envelope,
        body: bytes | memoryview,
    ) -> None:
        """Run a method with one answer."""
        context = self._enter(envelope)
        try:
            method = self._code.method(envelope.method)
            args, kwargs = values.loads(body, envelope.buffer_sizes)
            body = b""
            result = await self._call(method, args, kwargs)
            if inspect.isasyncgen(result) or inspect.isgenerator(result):
                raise TypeError(
                    f"{envelope.deployment}.{envelope.method} is a generator: call it with "
                    "handle.options(stream=True) and iterate over what that returns"
                )
            meta, data = _encode_value(result)
        except asyncio.CancelledError:
            context.cancel_children()
            self.refuse_cancelled(connection, number)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            connection.finish(number, _ERROR, *self._describe(error, envelope))
        else:
            connection.finish(number, _RESPONSE, meta, data)

    async def stream(self, work: Work) -> None:
        """Run a generator method, item by item."""
        envelope = work.envelope
        context = self._enter(envelope)
        try:
            method = self._code.method(envelope.method)
            args, kwargs = values.loads(work.body, envelope.buffer_sizes)
            work.body = b""
            await self._send_items(work, await self._begin_stream(method, args, kwargs))
        except asyncio.CancelledError:
            context.cancel_children()
            if not self._replica.stopped.is_set():
                work.finish(FrameKind.ERROR, _CANCELLED_META, _CANCELLED_BODY)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            work.finish(FrameKind.ERROR, *self._describe(error, envelope))
        else:
            work.finish(FrameKind.END)

    def refuse_cancelled(self, connection: ReplicaConnection, number: int) -> None:
        """Answer a request that was cancelled.

        When it is the end of this process that cancels it, nothing is said: its caller has not
        given it up, sees the connection end, and decides whether another replica gets it.
        """
        if not self._replica.stopped.is_set():
            connection.finish(number, _ERROR, _CANCELLED_META, _CANCELLED_BODY)

    def refuse_broken(
        self, connection: ReplicaConnection, number: int, error: BaseException
    ) -> None:
        """Answer a request whose own answer could not be sent (too large, for example)."""
        _log.error("%s could not answer: %r", self._replica.replica_id, error, exc_info=error)
        if not isinstance(error, Exception):
            error = RemoteError(f"{type(error).__name__}: {error}")
        connection.finish(number, _ERROR, *encode_error(error))

    async def _begin_stream(self, method: UserMethod, args: Any, kwargs: Any) -> Any:
        result = await self._call(method, args, kwargs)
        if not (inspect.isasyncgen(result) or inspect.isgenerator(result)):
            raise TypeError(
                f"{method.name} is no generator, so it cannot be called with stream=True: "
                "call it without, or let it yield"
            )
        return result

    async def _send_items(self, work: Work, items: Any) -> None:
        if inspect.isasyncgen(items):
            try:
                async for item in items:
                    meta, data = _encode_value(item)
                    await work.send_item(meta, data)
            finally:
                await items.aclose()
            return
        encoded = iterate_in_thread(self._replica.threads, items, _encode_value)
        try:
            async for meta, data in encoded:
                await work.send_item(meta, data)
        finally:
            # Left to the garbage collector, the thread would outlive the request's slot.
            await encoded.aclose()

    # -- HTTP ---------------------------------------------------------------------------------

    async def http(self, work: Work) -> None:
        """Run the ASGI app, or the plain handler, for an HTTP request."""
        envelope = work.envelope
        context = self._enter(envelope)
        code = self._code
        try:
            if code.asgi_app is not None:
                await code.asgi_app(self._scope(envelope), work.receive, work.send)
                if not work.finished:
                    raise RuntimeError("The ASGI app returned without completing its response")
            else:
                await self._plain(code, work)
        except asyncio.CancelledError:
            context.cancel_children()
            if not self._replica.stopped.is_set():
                work.finish(FrameKind.ERROR, _CANCELLED_META, _CANCELLED_BODY)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            if work.finished:
                # A background task, or the tail of a middleware: the client has its answer.
                _log.exception("Request %s failed after its response", envelope.request_id)
                return
            answer = None if work.response_started else _http_exception(error)
            if answer is not None:
                work.finish(FrameKind.RESPONSE, *answer)
            else:
                work.finish(FrameKind.ERROR, *self._describe(error, envelope))

    async def _plain(self, code: UserCode, work: Work) -> None:
        envelope = work.envelope
        method = code.method("__call__")
        args: tuple[Any, ...] = ()
        scope = None
        if code.num_http_parameters:
            from starlette.requests import Request

            scope = self._scope(envelope)
            request = Request(scope, work.receive)
            if method.kind in (MethodKind.SYNC, MethodKind.GENERATOR):
                # A plain `def` cannot await the body, so it finds it read.
                await request.body()
            args = (request,)
        result = await self._call(method, args, {})
        if _is_response(result):
            scope = scope or self._scope(envelope)
            await result(scope, work.receive, work.send)
        elif inspect.isasyncgen(result) or inspect.isgenerator(result):
            await self._send_generator(work, result)
        else:
            status, headers, body = to_reply(result, f"{envelope.deployment}.__call__")
            work.finish(FrameKind.RESPONSE, pack(HttpStart(status, headers)), body)

    async def _send_generator(self, work: Work, items: Any) -> None:
        """A handler that yields text or bytes is a streamed response."""
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
        await work.send(start)
        if inspect.isgenerator(items):
            items = iterate_in_thread(self._replica.threads, items, lambda item: item)
        try:
            async for item in items:
                data = item.encode() if isinstance(item, str) else item
                await work.send({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            await items.aclose()
        await work.send({"type": "http.response.body"})

    def _scope(self, envelope: Envelope) -> dict[str, Any]:
        head = envelope.http
        assert head is not None
        lifespan = self._code.lifespan
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": head.http_version,
            "method": head.method,
            "scheme": head.scheme,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query_string,
            "root_path": head.root_path,
            "headers": head.headers,
            "client": head.client,
            "server": head.server,
            "state": dict(lifespan.state) if lifespan is not None else {},
        }

    # -- shared -------------------------------------------------------------------------------

    @property
    def _code(self) -> UserCode:
        code = self._replica.code
        assert code is not None
        return code

    def _enter(self, envelope: Envelope) -> RequestContext:
        replica = self._replica
        timeout_s = envelope.timeout_s
        context = RequestContext(
            envelope.request_id,
            envelope.application,
            envelope.deployment,
            replica.replica_id,
            envelope.route,
            envelope.multiplexed_model_id,
            envelope.session_id,
            None if timeout_s is None else replica.loop.time() + timeout_s,
            envelope.trace_context,
        )
        current.set(context)
        return context

    async def _call(self, method: UserMethod, args: Any, kwargs: Any) -> Any:
        kind = method.kind
        if kind is MethodKind.ASYNC:
            return await method.function(*args, **kwargs)
        if kind is MethodKind.SYNC:
            result = await self._in_thread(method.function, args, kwargs)
            return await result if inspect.iscoroutine(result) else result
        return method.function(*args, **kwargs)

    async def _in_thread(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a plain function in the pool.

        Its slot is taken until it ends, even when the request is cancelled, because a thread
        cannot be stopped.
        """
        context = contextvars.copy_context()
        run = self._replica.threads.submit(_run_plain, context, function, args, kwargs)
        future = asyncio.wrap_future(run)
        try:
            failure, result = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The thread's own future knows whether it has begun; the loop's one does not.
            if not run.cancel():
                await asyncio.wait((future,))
            raise
        if failure is not None:
            raise failure
        return result

    def _describe(self, error: BaseException, envelope: Envelope) -> tuple[bytes, bytes]:
        replica = self._replica.replica_id
        if isinstance(error, RemoraError):
            _log.info("%s request %s: %s", replica, envelope.request_id, error)
            return encode_error(error)
        traceback = user_traceback(error)
        _log.error(
            "%s.%s failed in %s, request %s\n%s",
            envelope.deployment,
            envelope.method,
            replica,
            envelope.request_id,
            traceback,
        )
        return encode_error(error, traceback)


def _run_plain(
    context: contextvars.Context, function: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[BaseException | None, Any]:
    """Run in a pool thread. Exceptions are returned: StopIteration cannot cross a future."""
    try:
        return None, context.run(function, *args, **kwargs)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
        return error, None


def _encode_value(value: Any) -> tuple[bytes, bytes]:
    data, buffers = values.dumps(value)
    if not buffers:
        return b"", data
    sizes, body = values.join(data, buffers)
    return pack(sizes), body


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
