"""What a call through a handle returns, if it has one answer; `calls.streamed` has the other kind.

A response is made at once and awaited (`await response`) or waited for (`response.result()`)
later, or never. Errors are delivered when the answer is asked for, not by `remote()`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from asyncio.events import _get_running_loop
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from remora.calls import object_refs
from remora.calls.pending import FailedCall, FrameOf, PendingAnswer, PendingCall
from remora.calls.submit import loop_of
from remora.calls.threaded import ThreadCall
from remora.errors import RemoraError, RequestCancelledError
from remora.router.call import UnaryCall, decode_value, unopened
from remora.wire import values
from remora.wire.framing import RawFrame
from remora.wire.messages import Envelope

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    #: What is awaited. Written without brackets, a response is one of `Any`.
    _T = TypeVar("_T", default=Any)
else:
    from typing import TypeVar

    _T = TypeVar("_T")


def not_in_a_loop(what: str, instead: str) -> None:
    """Refuse to wait where that would block an event loop.

    Raises:
        RuntimeError: one runs in this thread.
    """
    if _get_running_loop() is not None:
        raise RuntimeError(
            f"{what} would block the event loop that runs in this thread; use {instead} instead."
        )


class Response:
    """What both kinds of response share."""

    __slots__ = ("__weakref__", "_cancelled", "_envelope")

    _call: PendingCall

    def __init__(self, envelope: Envelope) -> None:
        self._cancelled = False
        self._envelope = envelope

    @property
    def request_id(self) -> str:
        """The same at every level of a chain of calls."""
        return self._envelope.request_id

    @property
    def attempts(self) -> int:
        """How often this call was made so far: more than once only after a replica died with it."""
        return self._envelope.attempt + 1

    @property
    def by_reference(self) -> bool:
        """Always True, as in Ray Serve's default transport."""
        return True

    def cancel(self) -> None:
        """Give the call up: what waits never starts, what runs is cancelled. Idempotent.

        Concurrency: from any thread.
        """
        self._cancelled = True
        loop = loop_of(self._call)
        if loop is None or _get_running_loop() is loop:
            self._call.cancel()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._call.cancel)

    def cancelled(self) -> bool:
        """True as soon as `cancel` was called."""
        return self._cancelled

    def __reduce__(self) -> NoReturn:
        # Only what is an argument itself is replaced by its value before it is pickled.
        raise RemoraError(
            f"A {type(self).__name__} cannot be pickled. It can be an argument of another call "
            "only at the top level, not inside a list, dict or object: there, pass the value "
            "itself (await the response first)."
        )


class DeploymentResponse(Response, Generic[_T]):
    """The answer of one call, which may still be under way."""

    __slots__ = ("_call",)

    def __init__(self, call: PendingAnswer, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._call: PendingAnswer = call

    def __await__(self) -> Generator[Any, None, _T]:
        """Wait for the answer; may be done more than once.

        Raises:
            Exception: what the method raised, or a `RequestError`.

        Cancellation: the request is cancelled when the task that awaits it is.
        """
        call = self._call
        if type(call) is UnaryCall:
            loop: asyncio.AbstractEventLoop | None = call.router.loop
            if loop is _get_running_loop():
                return call.__await__()
            assert loop is not None
        else:
            loop = loop_of(call)
            if loop is None or type(call) is ThreadCall or loop is _get_running_loop():
                return call.__await__()
        return self._wait_elsewhere(loop).__await__()

    async def _to_object_ref(self) -> Any:
        """Wait for the answer and keep it in Ray's object store; return the reference.

        Raises:
            RuntimeError: this program is in no Ray cluster.
            Exception: what the method raised, or a `RequestError`.
        """
        object_refs.require_ray()
        return object_refs.put(await self)

    def _to_object_ref_sync(
        self,
        _timeout_s: float | None = None,
        _allow_running_in_asyncio_loop: bool = False,
    ) -> Any:
        """Do what `_to_object_ref` does, from code without an event loop.

        Args:
            _timeout_s: seconds to wait for the answer; None: as long as it takes.
            _allow_running_in_asyncio_loop: accepted and without effect: waiting would block it.

        Raises:
            RuntimeError: this program is in no Ray cluster, or a loop runs in this thread.
            TimeoutError: no answer in time.
            Exception: what the method raised, or a `RequestError`.
        """
        object_refs.require_ray()
        return object_refs.put(self.result(timeout_s=_timeout_s))

    def as_argument(self) -> _T:
        """Return this very response, typed as its value: to pass it to another call.

        The callee gets the value; here nothing is waited for.
        """
        return self  # type: ignore[return-value]  # that is what it is for

    async def _wait(self) -> _T:
        return await self

    async def _unopened(self) -> values.Unopened:
        """Wait for the answer as the bytes that it came in. Raises like `await`.

        Cancellation: ends the wait and nothing else.
        """
        call = self._call
        if type(call) is UnaryCall and call.router.loop is _get_running_loop():
            return await call.unopened()
        return await asyncio.shield(asyncio.ensure_future(self._unopened_anywhere()))

    async def _unopened_anywhere(self) -> values.Unopened:
        call = self._call
        loop = loop_of(call)
        if loop is None or type(call) is ThreadCall or loop is _get_running_loop():
            return unopened(await FrameOf(call))
        there = asyncio.run_coroutine_threadsafe(self._unopened_anywhere(), loop)
        return await asyncio.wrap_future(there)

    async def _wait_elsewhere(self, loop: asyncio.AbstractEventLoop) -> _T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._wait(), loop))

    def result(self, timeout_s: float | None = None) -> _T:
        """Wait for the answer in a thread without an event loop.

        Args:
            timeout_s: how long to wait, >= 0; None: until it is there. The request runs on.

        Raises:
            RuntimeError: an event loop runs in this thread; `await` the response.
            TimeoutError: the answer is not there yet.
            Exception: what the method raised, or a `RequestError`.
        """
        not_in_a_loop("result()", "`await response`")
        call = self._call
        if isinstance(call, FailedCall):
            raise call.error
        loop = loop_of(call)
        assert loop is not None
        future: concurrent.futures.Future[Any]
        if type(call) is ThreadCall:
            future = call.answer
        else:
            future = asyncio.run_coroutine_threadsafe(_frame_of(call), loop)
        try:
            frame = future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise RequestCancelledError(self.request_id) from None
        except TimeoutError:
            if future.done():
                raise  # the request itself failed with one
            raise TimeoutError(
                f"Request {self.request_id} has no answer after {timeout_s}s. It runs on; "
                "cancel() ends it."
            ) from None
        # Opened here: unpickling a large answer would hold the loop up.
        return decode_value(frame)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"DeploymentResponse(request_id={self.request_id!r})"


async def _frame_of(call: PendingAnswer) -> RawFrame:
    return await FrameOf(call)
