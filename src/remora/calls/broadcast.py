"""`handle.broadcast`: one call to every running replica of a deployment, and its answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from remora.calls.pending import FindRouter, MakeBody, in_time_of
from remora.errors import RequestCancelledError
from remora.request_context import Cancellable, RequestContext
from remora.response import not_in_a_loop
from remora.router.call import CallState, UnaryCall
from remora.router.pinned import call_each
from remora.wire.messages import Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class DeploymentBroadcastResponse:
    """The answers of every replica that was running when the call was made.

    Concurrency: may be asked from any thread and any event loop, more than once.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        envelope: Envelope,
        begin: Callable[[], Awaitable[list[UnaryCall]]],
        context: RequestContext | None,
    ) -> None:
        """Begin on `loop`, which may run in another thread.

        Args:
            loop: of the router.
            envelope: of every call.
            begin: sends them.
            context: the request that they are made for.
        """
        self._loop = loop
        self._envelope = envelope
        self._cancelled = False
        self._begun: concurrent.futures.Future[list[UnaryCall]] = concurrent.futures.Future()
        self._task: asyncio.Task[None] | None = None
        if context is not None:
            children = context.children_set()
            children.add(self)
            self._begun.add_done_callback(lambda _: children.discard(self))
        if _running_loop() is loop:
            self._start(begin)
        else:
            loop.call_soon_threadsafe(self._start, begin)

    @property
    def request_id(self) -> str:
        """The same for all of its calls."""
        return self._envelope.request_id

    def results(
        self, *, timeout_s: float | None = None, return_exceptions: bool = False
    ) -> list[Any]:
        """Wait for all answers, in a thread without an event loop.

        Args:
            timeout_s: how long to wait; None: until all are there. The calls run on.
            return_exceptions: put what a replica failed with into its place in the list. False:
                raise the first failure.

        Raises:
            RuntimeError: an event loop runs in this thread; use `results_async`.
            TimeoutError: not all answers are there yet.
            Exception: what a replica failed with.
        """
        not_in_a_loop("results()", "`await response.results_async()`")
        wanted = asyncio.run_coroutine_threadsafe(self._gather(return_exceptions), self._loop)
        try:
            return wanted.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise RequestCancelledError(self.request_id) from None
        except TimeoutError:
            if wanted.done():
                raise  # a replica failed with one
            raise self._too_late(timeout_s) from None

    async def results_async(
        self, *, timeout_s: float | None = None, return_exceptions: bool = False
    ) -> list[Any]:
        """Wait for all answers; as `results`, in an event loop.

        Cancellation: the calls are cancelled when the task that awaits this is.
        """
        gathering = self._gather(return_exceptions)
        if _running_loop() is self._loop:
            wanted: asyncio.Future[list[Any]] = asyncio.ensure_future(gathering)
        else:
            wanted = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(gathering, self._loop))
        try:
            done, _ = await asyncio.wait((wanted,), timeout=timeout_s)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not done:
            wanted.add_done_callback(_heard)
            raise self._too_late(timeout_s)
        return wanted.result()

    def cancel(self) -> None:
        """Give every call up that has not ended. From any thread; idempotent."""
        self._cancelled = True
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel_on_loop)

    def cancelled(self) -> bool:
        """True as soon as `cancel` was called."""
        return self._cancelled

    def __repr__(self) -> str:
        return f"DeploymentBroadcastResponse(request_id={self.request_id!r})"

    # -- on the loop ------------------------------------------------------------------------

    def _start(self, begin: Callable[[], Awaitable[list[UnaryCall]]]) -> None:
        self._task = self._loop.create_task(self._begin(begin))

    async def _begin(self, begin: Callable[[], Awaitable[list[UnaryCall]]]) -> None:
        try:
            self._begun.set_result(await begin())
        except asyncio.CancelledError:
            self._begun.set_exception(RequestCancelledError(self.request_id))
        except Exception as error:  # noqa: BLE001 - border: handed over to whoever asks
            self._begun.set_exception(error)

    def _cancel_on_loop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._begun.done() and self._begun.exception() is None:
            for call in self._begun.result():
                call.cancel()

    async def _gather(self, return_exceptions: bool) -> list[Any]:
        calls = await asyncio.shield(asyncio.wrap_future(self._begun))
        return await asyncio.gather(*map(_answer, calls), return_exceptions=return_exceptions)

    def _too_late(self, timeout_s: float | None) -> TimeoutError:
        return TimeoutError(
            f"Request {self.request_id} has not all of its answers after {timeout_s}s. It runs "
            "on; cancel() ends it."
        )


async def _answer(call: UnaryCall) -> Any:
    return await call


def _heard(wanted: asyncio.Future[list[Any]]) -> None:
    """Nobody waits any more: its failure is no news."""
    if not wanted.cancelled():
        wanted.exception()


def _running_loop() -> AbstractEventLoop | None:
    return asyncio.events._get_running_loop()


async def send_to_all(
    find_router: FindRouter,
    loop: AbstractEventLoop,
    envelope: Envelope,
    make_body: MakeBody,
    context: RequestContext | None,
) -> list[UnaryCall]:
    """Send a call to every running replica, once it is known which those are.

    Raises:
        RequestTimeoutError: the deadline passed before.
        DeploymentUnavailableError: there is no such deployment, or it failed.
    """
    router = find_router(loop)

    async def prepare() -> Body:
        body, _ = await make_body()
        await router.wait_known()
        return body

    body = await in_time_of(envelope, prepare())
    calls = call_each(router, envelope, body)
    if context is not None:
        children: set[Cancellable] = context.children_set()
        for call in calls:
            if call.state is not CallState.DONE:
                children.add(call)
                call.on_close = partial(children.discard, call)
    return calls
