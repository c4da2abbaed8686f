"""What a call through a handle returns: one answer, or a stream of them.

A response is made at once and awaited (`await response`) or waited for (`response.result()`)
later, or never. Behind it stands one of four kinds of call:

- a router's own call, when the caller's loop is the router's loop (the fast path);
- `FailedCall`, when the arguments could not be sent;
- `ChainedCall`, when an argument is itself a response that has to arrive first;
- `ThreadCall`, when the caller has no loop: the call lives on the background loop.

Errors are delivered when the answer is asked for, not by `remote()`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from asyncio.events import _get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from remora.errors import RemoraError, RequestCancelledError
from remora.router.call import CallState, UnaryCall
from remora.wire import values
from remora.wire.messages import CallKind, Envelope

if TYPE_CHECKING:
    from remora.handle import DeploymentHandle
    from remora.request_context import RequestContext
    from remora.router.router import Router

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    #: What is awaited. Written without brackets, a response is one of `Any`.
    _T = TypeVar("_T", default=Any)
else:
    from typing import TypeVar

    _T = TypeVar("_T")

_STREAM = CallKind.STREAM
#: Items of a stream that cross from one thread to another at a time. Beyond a few dozen the
#: cost of a turn no longer shows; the bound keeps a slow reader's memory small.
_MAX_TAKEN = 128
#: Tasks that hand answers over to threads: a loop alone keeps only weak references.
_finishing: set[asyncio.Task[None]] = set()


def submit_now(
    router: Router, envelope: Envelope, body: bytes, context: RequestContext | None
) -> Any:
    """Send a call from the loop that the router lives on."""
    envelope.caller = router.name
    if envelope.kind is _STREAM:
        call: Any = router.stream(envelope, body)
    else:
        call = router.call(envelope, body)
    if context is not None and call.state is not CallState.DONE:
        call.on_close = partial(context.add_child(call).discard, call)
    return call


def submit_later(
    handle: DeploymentHandle[Any],
    loop: asyncio.AbstractEventLoop | None,
    envelope: Envelope,
    args: Any,
    kwargs: dict[str, Any] | None,
    context: RequestContext | None,
) -> Any:
    """Send a call that cannot go out at once: other responses come first, or no loop runs here.

    Args:
        handle: what to call.
        loop: the caller's; None: it has none.
        envelope: of the call.
        args: the positional arguments; with `kwargs=None` the ready body.
        kwargs: the keyword arguments.
        context: the request that this call is made for.
    """
    owners = None if context is None else context.children_set()
    work = _Body(envelope, args, kwargs)
    try:
        if loop is not None:
            return ChainedCall(handle, loop, envelope, work, owners)
        from remora.router.process import background_client

        return ThreadCall(handle, background_client().loop, envelope, work, owners)
    except RemoraError as error:
        return FailedCall(error)


class _Body:
    """The arguments of a call, to be turned into bytes once they are all there."""

    __slots__ = ("args", "envelope", "kwargs")

    def __init__(self, envelope: Envelope, args: Any, kwargs: dict[str, Any] | None) -> None:
        self.envelope = envelope
        self.args = args
        self.kwargs = kwargs

    async def ready(self) -> bytes:
        """Wait for what is missing and pickle."""
        if self.kwargs is None:
            return self.args  # type: ignore[no-any-return]
        return await _resolved(self.args, self.kwargs, self.envelope)


async def _resolved(args: tuple[Any, ...], kwargs: dict[str, Any], envelope: Envelope) -> bytes:
    """Wait for every response among the arguments at once, then pickle the lot."""
    found: list[DeploymentResponse[Any]] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, DeploymentResponseGenerator):
            raise RuntimeError(
                "A streaming response cannot be an argument of another call: iterate over it "
                "and pass what it yields."
            )
        if isinstance(value, DeploymentResponse):
            found.append(value)
    # Shielded: giving up this call must not cancel one that others may be waiting for.
    answers = await asyncio.gather(
        *(asyncio.shield(asyncio.ensure_future(one._wait())) for one in found)
    )
    by_response = dict(zip(map(id, found), answers, strict=True))

    def value_of(value: Any) -> Any:
        return by_response.get(id(value), value)

    given = tuple(map(value_of, args)), {name: value_of(v) for name, v in kwargs.items()}
    data, buffers = values.dumps(given)
    if buffers:
        envelope.buffer_sizes, data = values.join(data, buffers)
    return data


class FailedCall:
    """A call that could not be made: raises its error to whoever asks for the answer."""

    __slots__ = ("_error",)

    loop = None

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def _fail(self) -> Any:
        raise self._error

    def __await__(self) -> Generator[Any, None, Any]:
        return self._fail().__await__()

    async def __anext__(self) -> Any:
        raise self._error

    def has_next(self) -> bool:
        """Say that nothing waits here."""
        return True

    def cancel(self) -> None:
        """Nothing to cancel."""


class ChainedCall:
    """A call that is sent from a loop once its arguments are there."""

    __slots__ = ("_call", "_cancelled", "_envelope", "_member", "_owners", "_task", "loop")

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        loop: asyncio.AbstractEventLoop,
        envelope: Envelope,
        body: _Body,
        owners: set[Any] | None,
        member: object = None,
    ) -> None:
        """Begin to wait for the arguments. Must be called on `loop`.

        Args:
            handle: what to call.
            loop: the running one.
            envelope: of the call.
            body: its arguments.
            owners: calls to be cancelled with the request that this one is made for.
            member: what stands for this call in `owners`; None: the call itself.
        """
        self.loop = loop
        self._envelope = envelope
        self._call: Any = None
        self._cancelled = False
        self._owners = owners
        self._member = member or self
        if owners is not None:
            owners.add(self._member)
        self._task = loop.create_task(self._submit(handle._find_router(loop), body))

    async def _submit(self, router: Router, body: _Body) -> None:
        """Send the call. A failure is kept as a call that fails: nobody may ever ask."""
        call: Any = None
        try:
            call = self._call = submit_now(router, self._envelope, await body.ready(), None)
        except Exception as error:  # noqa: BLE001 - border: the user's exception of another call
            self._call = FailedCall(error)
        finally:
            if self._owners is not None:
                leave = partial(self._owners.discard, self._member)
                if call is None or call.state is CallState.DONE:
                    leave()
                else:
                    call.on_close = leave

    async def _submitted(self) -> Any:
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._cancelled:
                raise RequestCancelledError(self._envelope.request_id) from None
            self.cancel()
            raise
        return self._call

    @property
    def request_id(self) -> str:
        """Of the request."""
        return self._envelope.request_id

    async def _answer(self) -> Any:
        return await (await self._submitted())

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def __anext__(self) -> Any:
        return await (await self._submitted()).__anext__()

    def has_next(self) -> bool:
        """The next `anext` does not wait."""
        return self._call is not None and bool(self._call.has_next())

    def cancel(self) -> None:
        """Give the call up, sent or not. Idempotent."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()
        else:
            self._task.cancel()


class ThreadCall:
    """A call of a caller without a loop: lives on the background loop, waited for in a thread."""

    __slots__ = ("_call", "_cancelled", "_owners", "answer", "loop")

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        loop: asyncio.AbstractEventLoop,
        envelope: Envelope,
        body: _Body,
        owners: set[Any] | None,
    ) -> None:
        self.loop = loop
        self._call: ChainedCall | None = None
        self._cancelled = False
        self._owners = owners
        if owners is not None:
            owners.add(self)
        #: The answer of a unary call; of a stream, that the call has been made.
        self.answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        loop.call_soon_threadsafe(self._begin, handle, envelope, body)

    def _begin(self, handle: DeploymentHandle[Any], envelope: Envelope, body: _Body) -> None:
        call = self._call = ChainedCall(handle, self.loop, envelope, body, self._owners, self)
        if self._cancelled:
            call.cancel()
        if envelope.kind is _STREAM:
            self.answer.set_result(None)
        else:
            task = self.loop.create_task(self._finish(call))
            _finishing.add(task)
            task.add_done_callback(_finishing.discard)

    async def _finish(self, call: ChainedCall) -> None:
        try:
            answer = await call
        except asyncio.CancelledError:
            self.answer.set_exception(RequestCancelledError(call.request_id))
            raise
        except Exception as error:  # noqa: BLE001 - border: handed over to the waiting thread
            self.answer.set_exception(error)
        else:
            self.answer.set_result(answer)

    async def _wait(self) -> Any:
        future = asyncio.wrap_future(self.answer)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def __anext__(self) -> Any:
        """The next item. Runs on the background loop."""
        assert self._call is not None
        return await self._call.__anext__()

    def has_next(self) -> bool:
        """The next `anext` does not wait."""
        return self._call is not None and self._call.has_next()

    def cancel(self) -> None:
        """Give the call up; from any thread."""
        self._cancelled = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._cancel_on_loop)

    def _cancel_on_loop(self) -> None:
        if self._call is not None:
            self._call.cancel()


def _loop_of(call: Any) -> asyncio.AbstractEventLoop | None:
    router = getattr(call, "router", None)
    return router.loop if router is not None else call.loop  # type: ignore[no-any-return]


def _not_in_a_loop(what: str, instead: str) -> None:
    if _get_running_loop() is not None:
        raise RuntimeError(
            f"{what} would block the event loop that runs in this thread; use {instead} instead."
        )


class _Response:
    """What both kinds of response share."""

    __slots__ = ("__weakref__", "_call", "_cancelled", "request_id")

    def __init__(self, call: Any, envelope: Envelope) -> None:
        self._call = call
        self._cancelled = False
        #: The same at every level of a chain of calls.
        self.request_id: str = envelope.request_id

    @property
    def by_reference(self) -> bool:
        """Always True, as in Ray Serve's default transport."""
        return True

    def cancel(self) -> None:
        """Give the call up: what waits never starts, what runs is cancelled. Idempotent.

        Concurrency: from any thread.
        """
        self._cancelled = True
        loop = _loop_of(self._call)
        if loop is None or _get_running_loop() is loop:
            self._call.cancel()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._call.cancel)

    def cancelled(self) -> bool:
        """True as soon as `cancel` was called."""
        return self._cancelled

    def __reduce__(self) -> NoReturn:
        raise RemoraError(
            f"A {type(self).__name__} cannot be pickled. It can be an argument of another call "
            "only at the top level, not inside a list, dict or object: there, pass the value "
            "itself (await the response first)."
        )


class DeploymentResponse(_Response, Generic[_T]):
    """The answer of one call, which may still be under way."""

    __slots__ = ()

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
            loop = _loop_of(call)
            if loop is None or type(call) is ThreadCall or loop is _get_running_loop():
                return call.__await__()  # type: ignore[no-any-return]
        return self._wait_elsewhere(loop).__await__()

    async def _wait(self) -> _T:
        return await self

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
        _not_in_a_loop("result()", "`await response`")
        call = self._call
        loop = _loop_of(call)
        if loop is None:
            return next(call.__await__())  # type: ignore[no-any-return]  # raises its error
        if type(call) is ThreadCall:
            future = call.answer
        else:
            future = asyncio.run_coroutine_threadsafe(self._wait(), loop)
        try:
            return future.result(timeout_s)  # type: ignore[no-any-return]
        except concurrent.futures.CancelledError:
            raise RequestCancelledError(self.request_id) from None
        except TimeoutError:
            if future.done():
                raise  # the request itself failed with one
            raise TimeoutError(
                f"Request {self.request_id} has no answer after {timeout_s}s. It runs on; "
                "cancel() ends it."
            ) from None

    def __repr__(self) -> str:
        return f"DeploymentResponse(request_id={self.request_id!r})"


class DeploymentResponseGenerator(_Response, Generic[_T]):
    """The answers of one call of a generator method, taken at the reader's own pace.

    Dropping it unread gives the call up, as with any Python generator.
    """

    __slots__ = ("_ending", "_finished", "_taken")

    def __init__(self, call: Any, envelope: Envelope) -> None:
        super().__init__(call, envelope)
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

    def __aiter__(self) -> AsyncIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        call = self._call
        loop = _loop_of(call)
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

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        _not_in_a_loop("Iterating over a streaming response", "`async for`")
        call = self._call
        loop = _loop_of(call)
        if loop is None:
            next(call.__await__())  # raises its error
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
        try:
            if not self._finished:
                self.cancel()
        except (AttributeError, RuntimeError):
            pass  # half made, or the loop is closing: then the call ends anyway

    def __repr__(self) -> str:
        return f"DeploymentResponseGenerator(request_id={self.request_id!r})"


async def _take(call: Any) -> tuple[list[Any], BaseException | None]:
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
