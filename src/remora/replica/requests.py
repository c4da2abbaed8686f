"""Runs the user's code for one request and sends what it gives.

The border to user code: whatever it raises becomes an ERROR frame, logged once, here.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from remora.errors import USER_ERRORS, RemoraError, RemoteError, RequestCancelledError, RequestError
from remora.observe.tracebacks import has_user_frames, user_traceback
from remora.replica.inbound import Inbound
from remora.replica.methods import MethodKind, UserMethod
from remora.replica.sync_stream import iterate_in_thread
from remora.replica.threads import wait_ended
from remora.replica.user_code import UserCode
from remora.replica.work import Work
from remora.request_context import RequestContext, current
from remora.transport.errors import encode_error
from remora.transport.packing import PICKLE_ERRORS, explained, pack_value
from remora.wire import values
from remora.wire.codec import pack
from remora.wire.messages import Envelope, FrameKind
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.replica.connection import ReplicaConnection
    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")
_RESPONSE = int(FrameKind.RESPONSE)
_ASYNC = MethodKind.ASYNC
_ERROR = int(FrameKind.ERROR)
_GENERATORS = frozenset((AsyncGeneratorType, GeneratorType))
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
        body: Body,
        inbound: Inbound | None = None,
    ) -> None:
        """Run a method with one answer."""
        context = self.enter(envelope, connection.task_of(number))
        try:
            method = self.code.methods.find(envelope.method)
            args, kwargs = _arguments(envelope, body, inbound)
            body = b""
            # Not by way of `run`: a coroutine less for every request.
            if method.kind is _ASYNC:
                result = await method.function(*args, **kwargs)
            else:
                result = await self.run(method, args, kwargs)
            if type(result) in _GENERATORS:
                raise TypeError(
                    f"{envelope.deployment}.{envelope.method} is a generator: call it with "
                    "handle.options(stream=True) and iterate over what that returns"
                )
            meta, data = _encode_value(result, envelope)
        except asyncio.CancelledError:
            context.cancel_children()
            self.refuse_cancelled(connection, number)
        except USER_ERRORS as error:  # Border: user code.
            connection.finish(number, _ERROR, *self.describe(error, envelope))
        else:
            connection.finish(number, _RESPONSE, meta, data)

    async def stream(self, work: Work) -> None:
        """Run a generator method, item by item."""
        envelope = work.envelope
        context = self.enter(envelope, work.task)
        try:
            method = self.code.methods.find(envelope.method)
            args, kwargs = _arguments(envelope, work.body, work.inbound)
            work.body = b""
            await self._send_items(work, await self._begin_stream(method, args, kwargs))
        except asyncio.CancelledError:
            context.cancel_children()
            self.finish_cancelled(work)
        except USER_ERRORS as error:  # Border: user code.
            work.finish(FrameKind.ERROR, *self.describe(error, envelope))
        else:
            work.finish(FrameKind.END)

    def refuse_cancelled(self, connection: ReplicaConnection, number: int) -> None:
        """Answer a request that was cancelled.

        When it is the end of this process that cancels it, nothing is said: its caller has not
        given it up, sees the connection end, and decides whether another replica gets it.
        """
        if not self._replica.stopped.is_set():
            connection.finish(number, _ERROR, _CANCELLED_META, _CANCELLED_BODY)

    def finish_cancelled(self, work: Work) -> None:
        """As `refuse_cancelled`, for a request that may have been answered already."""
        if not self._replica.stopped.is_set():
            work.finish(FrameKind.ERROR, _CANCELLED_META, _CANCELLED_BODY)

    def refuse_broken(
        self, connection: ReplicaConnection, number: int, error: BaseException
    ) -> None:
        """Answer a request whose own answer could not be sent (too large, for example)."""
        _log.error("A request could not be answered: %r", error, exc_info=error)
        if not isinstance(error, Exception):
            error = RemoteError(f"{type(error).__name__}: {error}")
        connection.finish(number, _ERROR, *encode_error(error))

    async def _begin_stream(self, method: UserMethod, args: Any, kwargs: Any) -> Any:
        result = await self.run(method, args, kwargs)
        if not (inspect.isasyncgen(result) or inspect.isgenerator(result)):
            raise TypeError(
                f"{method.name} is no generator, so it cannot be called with stream=True: "
                "call it without, or let it yield"
            )
        return result

    async def _send_items(self, work: Work, items: Any) -> None:
        envelope = work.envelope
        if inspect.isasyncgen(items):
            try:
                async for item in items:
                    meta, data = _encode_value(item, envelope)
                    await work.send_item(meta, data)
            finally:
                await items.aclose()
            return
        encode = partial(_encode_value, envelope=envelope)
        encoded = iterate_in_thread(self._replica.threads, items, encode, _weight)
        try:
            async for meta, data in encoded:
                await work.send_item(meta, data)
        finally:
            # Left to the garbage collector, the thread would outlive the request's slot.
            await encoded.aclose()

    # -- shared -------------------------------------------------------------------------------

    @property
    def code(self) -> UserCode:
        """The user's code, which is there for as long as requests are taken."""
        code = self._replica.code
        assert code is not None
        return code

    def enter(self, envelope: Envelope, task: asyncio.Task[None] | None) -> RequestContext:
        """Make this request the one that `task`, which is the running one, works on."""
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
        context.task = task
        current.set(context)
        return context

    async def run(self, method: UserMethod, args: Any, kwargs: Any) -> Any:
        """Call a method of the user's, in a thread if it is a plain one."""
        kind = method.kind
        if kind is _ASYNC:
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
                await wait_ended(future)
            raise
        if failure is not None:
            raise failure
        return result

    def describe(self, error: BaseException, envelope: Envelope) -> tuple[bytes, bytes]:
        """Log what the user's code raised, and make an ERROR frame's content of it."""
        request_id = envelope.request_id
        self._replica.counts.failed(envelope.route, error)
        if isinstance(error, RemoraError) and not _needs_traceback(error, envelope):
            _log.info("Request %s: %s", request_id, error)
            return encode_error(error)
        traceback = user_traceback(error)
        # Which replica it was stands in front of each line of its log.
        what = f"{envelope.deployment} failed, {path_of(envelope)}"
        if envelope.http is None:
            what = f"{envelope.deployment}.{envelope.method} failed"
        _log.error("%s, request %s\n%s", what, request_id, traceback)
        if isinstance(error, RemoraError):
            return encode_error(error)
        return encode_error(error, traceback)


def path_of(envelope: Envelope) -> str:
    """Method and path of an HTTP request, for the log."""
    head = envelope.http
    return f"{head.method} {head.path}" if head is not None else envelope.method


def _needs_traceback(error: RemoraError, envelope: Envelope) -> bool:
    """Say whether an error of ours came out of the user's code and tells the client nothing."""
    if envelope.http is None:
        return False  # Its caller gets all of it.
    if isinstance(error, RequestError) and (error.http_status < 500 or error.http_status == 503):
        return False
    return has_user_frames(error)


def _run_plain(
    context: contextvars.Context, function: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[BaseException | None, Any]:
    """Run in a pool thread. Exceptions are returned: StopIteration cannot cross a future."""
    try:
        return None, context.run(function, *args, **kwargs)
    except USER_ERRORS as error:  # Border: user code.
        return error, None


def _arguments(envelope: Envelope, body: Body, inbound: Inbound | None) -> Any:
    found = values.loads(body, envelope.request_serialization)
    return found if inbound is None else inbound.put_into(*found)


def _weight(encoded: tuple[bytes, Body]) -> int:
    return len(encoded[1])


def _encode_value(value: Any, envelope: Envelope) -> tuple[bytes, Body]:
    wanted = envelope.response_serialization
    try:
        how, body = pack_value(value, wanted)
    except PICKLE_ERRORS as error:
        if wanted in values.PLAIN_FORMATS:
            raise
        what = f"What {envelope.deployment}.{envelope.method} returns"
        raise explained(error, what) from error
    return (pack(how) if how else b""), body
