"""What a call through a handle returns: one answer, or a stream of them.

A response is made at once and awaited (`await response`) or waited for (`response.result()`)
later, or never. Errors are delivered when the answer is asked for, not by `remote()`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from remora.calls.pending import (
    FailedCall,
    FrameOf,
    PendingAnswer,
    PendingCall,
    PendingStream,
    ThreadCall,
    loop_of,
)
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

#: Items of a stream that cross from one thread to another at a time. Beyond a few dozen the
#: cost of a turn no longer shows; the bound keeps a slow reader's memory small.
_MAX_TAKEN = 128


def not_in_a_loop(what: str, instead: str) -> None:
    """Refuse to wait where that would block an event loop.

    Raises:
        RuntimeError: one runs in this thread.
    """
    if _get_running_loop() is not None:
        raise RuntimeError(
            f"{what} would block the event loop that runs in this thread; use {instead} instead."
        )


def _object_ref(value: Any) -> Any:
    from remora.engine.ray.near import put

    return put(value)


def _is_in_cluster() -> bool:
    from remora.engine.ray.near import is_joined

    return is_joined()


def _require_ray() -> None:
    """See that this program is in a cluster of Ray; asked for an object, Ray would start one.

    Raises:
        RuntimeError: it is not.
    """
    if "ray" not in sys.modules or not _is_in_cluster():
        raise RuntimeError(
            "Object references belong to Ray, and this program is in no Ray cluster. Pass the response "
            "itself to the next call: its value goes on without being opened."
        )


def _no_object_refs() -> NoReturn:
    _require_ray()
    raise RuntimeError(
        "A stream has no object references: iterate over it, and put its items with ray.put()."
    )


class _Response:
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


class DeploymentResponse(_Response, Generic[_T]):
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
        _require_ray()
        return _object_ref(await self)

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
        _require_ray()
        return _object_ref(self.result(timeout_s=_timeout_s))

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


class DeploymentResponseGenerator(_Response, Generic[_T]):
    """The answers of one call of a generator method, taken at the reader's own pace.

    Dropping it unread gives the call up, as with any Python generator.
    """

    __slots__ = ("_call", "_ending", "_finished", "_taken")

    def __init__(self, call: PendingStream, envelope: Envelope) -> None:
        super().__init__(envelope)
        self._call: PendingStream = call
        self._finished = False
        #: Items fetched from the call's loop that the reader has not had yet.
        self._taken: deque[Any] = deque()
        #: What comes after those: the end or an error; None: more items.
        self._ending: BaseException | None = None

    def __await__(self) -> NoReturn:
        raise TypeError("A streaming response cannot be awaited; use `async for`.")

    def result(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there is more than one answer."""
        raise TypeError("A streaming response has no result(); use `for` or `async for`.")

    async def _to_object_ref_gen(self) -> Any:
        """Refuse: a stream has no object references."""
        _no_object_refs()

    def _to_object_ref_gen_sync(
        self,
        _timeout_s: float | None = None,
        _allow_running_in_asyncio_loop: bool = False,
    ) -> Any:
        """Refuse: a stream has no object references."""
        _no_object_refs()

    def __aiter__(self) -> AsyncIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        call = self._call
        loop = loop_of(call)
        try:
            if loop is None or loop is _get_running_loop():
                return await call.__anext__()  # type: ignore[no-any-return]
            while not self._taken:
                if self._ending is not None:
                    raise self._ending
                taking = asyncio.run_coroutine_threadsafe(_take(call), loop)
                self._keep(await asyncio.wrap_future(taking))
            return self._taken.popleft()  # type: ignore[no-any-return]
        except BaseException:
            self._finished = True
            raise

    async def _unopened_items(self) -> AsyncGenerator[Any, None]:
        """The items as the bytes that they came in; opened only if they cross loops anyway."""
        call = self._call
        if self._taken or loop_of(call) is not _get_running_loop():
            async for item in self:
                yield item
            return
        try:
            while True:
                yield await call.next_unopened()
        except StopAsyncIteration:
            self._finished = True

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        not_in_a_loop("Iterating over a streaming response", "`async for`")
        call = self._call
        if isinstance(call, FailedCall):
            raise call.error
        loop = loop_of(call)
        assert loop is not None
        if type(call) is ThreadCall:
            call.answer.result()
        while not self._taken:
            if self._ending is not None:
                self._finished = True
                if isinstance(self._ending, StopAsyncIteration):
                    raise StopIteration
                raise self._ending
            self._keep(asyncio.run_coroutine_threadsafe(_take(call), loop).result())
        return self._taken.popleft()  # type: ignore[no-any-return]

    def _keep(self, found: tuple[list[Any], BaseException | None]) -> None:
        items, self._ending = found
        self._taken.extend(items)

    def __del__(self) -> None:
        # The garbage collector comes at any moment, also in the middle of this very call.
        try:
            if not self._finished and (loop := loop_of(self._call)) is not None:
                loop.call_soon_threadsafe(self._call.cancel)
        except (AttributeError, RuntimeError):
            pass  # half made, or the loop is closed: then the call has ended

    def __repr__(self) -> str:
        return f"DeploymentResponseGenerator(request_id={self.request_id!r})"


async def _frame_of(call: PendingAnswer) -> RawFrame:
    return await FrameOf(call)


async def _take(call: PendingStream) -> tuple[list[Any], BaseException | None]:
    """Wait for an item and take all that are there, so that few turns cross threads.

    Returns:
        the items, and what ends them (StopAsyncIteration at the end of the stream), if it came.
    """
    items: list[Any] = []
    try:
        items.append(await call.__anext__())
        while len(items) < _MAX_TAKEN and call.has_next():
            items.append(await call.__anext__())
    except Exception as ending:  # noqa: BLE001 - border: handed to the reader
        return items, ending
    return items, None
