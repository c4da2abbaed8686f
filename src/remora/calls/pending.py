"""Calls that are under way, as the response to a handle's `remote()` holds them.

Four kinds stand behind a response:

- a router's own call, when the caller's loop is the router's loop (the fast path);
- `FailedCall`, when the arguments could not be sent;
- `ChainedCall`, when an argument is itself a response that has to arrive first;
- `ThreadCall`, when the caller has no loop: the call lives on the background loop.

Errors are kept until the answer is asked for.

Rules: how a router is found and how arguments become bytes is handed in.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from remora.errors import (
    InstanceError,
    RemoraError,
    RequestCancelledError,
    RequestTimeoutError,
)
from remora.router.call import Call, CallState, StreamCall, UnaryCall, decode_value
from remora.wire.framing import RawFrame
from remora.wire.messages import CallKind, Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.request_context import Cancellable, RequestContext
    from remora.router.router import Router
    from remora.router.upload import Upload

#: Finds the router of a loop, on that loop.
FindRouter: TypeAlias = "Callable[[asyncio.AbstractEventLoop], Router]"
#: Waits for the arguments of a call; gives its body and the streams among them.
MakeBody: TypeAlias = "Callable[[], Awaitable[tuple[Body, Upload | None]]]"

_T = TypeVar("_T")
_STREAM = CallKind.STREAM
#: Tasks that hand answers over to threads: a loop alone keeps only weak references.
_finishing: set[asyncio.Task[None]] = set()


class PendingCall(Protocol):
    """What every call under way can do. On its loop alone, except where it says otherwise."""

    def cancel(self) -> object:
        """Give the call up. Idempotent."""


class PendingAnswer(PendingCall, Protocol):
    """A call with one answer, which may be awaited more than once."""

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for the answer, or raise the error."""

    def frame(self) -> Generator[Any, None, RawFrame]:
        """Wait for the answer as it came; an ERROR is an answer, too."""


class PendingStream(PendingCall, Protocol):
    """A call with any number of answers."""

    def __anext__(self) -> Awaitable[Any]:
        """Wait for the next answer."""

    def next_unopened(self) -> Awaitable[Any]:
        """Wait for the next answer as the bytes that it came in."""

    def has_next(self) -> bool:
        """The next `anext` does not wait."""


def submit_now(
    router: Router, envelope: Envelope, body: Body, context: RequestContext | None
) -> UnaryCall | StreamCall:
    """Send a call from the loop that the router lives on."""
    envelope.caller = router.name
    call: UnaryCall | StreamCall
    if envelope.kind is _STREAM:
        call = router.stream(envelope, body)
    else:
        call = router.call(envelope, body)
    if context is not None and call.state is not CallState.DONE:
        call.on_close = partial(context.add_child(call).discard, call)
    return call


def submit_later(
    find_router: FindRouter,
    loop: asyncio.AbstractEventLoop | None,
    envelope: Envelope,
    make_body: MakeBody,
    context: RequestContext | None,
) -> ChainedCall | ThreadCall | FailedCall:
    """Send a call that cannot go out at once: other responses come first, or no loop runs here.

    Args:
        find_router: of what is called.
        loop: the caller's; None: it has none.
        envelope: of the call.
        make_body: of its arguments; may add to the envelope.
        context: the request that this call is made for.
    """
    owners = None if context is None else context.children_set()
    try:
        if loop is not None:
            return ChainedCall(find_router, loop, envelope, make_body, owners)
        from remora.router.process import background_client

        return ThreadCall(find_router, background_client().loop, envelope, make_body, owners)
    except RemoraError as error:
        return FailedCall(error)


async def in_time_of(envelope: Envelope, work: Awaitable[_T]) -> _T:
    """Wait for what comes before a call is sent. That takes of the call's own time.

    Raises:
        RequestTimeoutError: the call's time is up.
        Exception: what `work` raises.
    """
    timeout_s = envelope.timeout_s
    if timeout_s is None:
        return await work
    limit = asyncio.timeout(timeout_s)
    before = asyncio.get_running_loop().time()
    try:
        async with limit:
            done = await work
    except TimeoutError:
        if limit.expired():
            raise RequestTimeoutError(envelope.request_id, timeout_s) from None
        raise
    envelope.timeout_s = max(0.0, timeout_s - (asyncio.get_running_loop().time() - before))
    return done


class FrameOf:
    """Awaits a call's final frame instead of its value."""

    __slots__ = ("_call",)

    def __init__(self, call: PendingAnswer) -> None:
        self._call = call

    def __await__(self) -> Generator[Any, None, RawFrame]:
        return self._call.frame()


class FailedCall:
    """A call that could not be made: raises its error to whoever asks for the answer."""

    __slots__ = ("error",)

    loop = None

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def _fail(self) -> Any:
        raise self.error

    def __await__(self) -> Generator[Any, None, Any]:
        return self._fail().__await__()

    frame = __await__

    async def __anext__(self) -> Any:
        raise self.error

    next_unopened = __anext__

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
        find_router: FindRouter,
        loop: asyncio.AbstractEventLoop,
        envelope: Envelope,
        make_body: MakeBody,
        owners: set[Cancellable] | None,
        member: Cancellable | None = None,
    ) -> None:
        """Begin to wait for the arguments. Must be called on `loop`.

        Args:
            find_router: of what is called.
            loop: the running one.
            envelope: of the call.
            make_body: of its arguments.
            owners: calls to be cancelled with the request that this one is made for.
            member: what stands for this call in `owners`; None: the call itself.

        Raises:
            InstanceError: this process is in no instance.
        """
        router = find_router(loop)
        self.loop = loop
        self._envelope = envelope
        self._call: UnaryCall | StreamCall | FailedCall | None = None
        self._cancelled = False
        self._owners = owners
        self._member = member or self
        if owners is not None:
            owners.add(self._member)
        self._task = loop.create_task(self._submit(router, make_body))

    async def _submit(self, router: Router, make_body: MakeBody) -> None:
        """Send the call. A failure is kept as a call that fails: nobody may ever ask."""
        call: UnaryCall | StreamCall | None = None
        try:
            from remora.router.process import routing_client_behind

            behind = routing_client_behind(self.loop)
            if behind is not None:
                await behind.wait_caught_up()
            body, upload = await in_time_of(self._envelope, make_body())
            call = self._call = submit_now(router, self._envelope, body, None)
            if upload is not None:
                call.attach(upload)
        except Exception as error:  # noqa: BLE001 - border: the user's exception of another call
            self._call = FailedCall(error)
        finally:
            if self._owners is not None:
                leave = partial(self._owners.discard, self._member)
                if call is None or call.state is CallState.DONE:
                    leave()
                else:
                    call.on_close = leave

    def on_submitted(self, callback: Callable[[], object]) -> None:
        """Call back when the call was sent or will never be."""
        self._task.add_done_callback(lambda _: callback())

    async def _submitted(self) -> UnaryCall | StreamCall | FailedCall:
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._cancelled:
                raise RequestCancelledError(self._envelope.request_id) from None
            self.cancel()
            raise
        assert self._call is not None
        return self._call

    @property
    def request_id(self) -> str:
        """Of the request."""
        return self._envelope.request_id

    def __await__(self) -> Generator[Any, None, Any]:
        return decode_value((yield from self.frame()))

    def frame(self) -> Generator[Any, None, RawFrame]:
        """Wait for the answer as it came."""
        call = yield from self._submitted().__await__()
        assert not isinstance(call, StreamCall)
        return (yield from call.frame())

    async def __anext__(self) -> Any:
        call = await self._submitted()
        assert not isinstance(call, UnaryCall)
        return await call.__anext__()

    async def next_unopened(self) -> Any:
        """The next item as the bytes that it came in."""
        call = await self._submitted()
        assert not isinstance(call, UnaryCall)
        return await call.next_unopened()

    def has_next(self) -> bool:
        """The next `anext` does not wait."""
        call = self._call
        return call is not None and not isinstance(call, UnaryCall) and call.has_next()

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
        find_router: FindRouter,
        loop: asyncio.AbstractEventLoop,
        envelope: Envelope,
        make_body: MakeBody,
        owners: set[Cancellable] | None,
    ) -> None:
        self.loop = loop
        self._call: ChainedCall | None = None
        self._cancelled = False
        self._owners = owners
        if owners is not None:
            owners.add(self)
        #: The answer of a unary call, opened by whoever wants it; of a stream, that the call
        #: has been made.
        self.answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            loop.call_soon_threadsafe(self._begin, find_router, envelope, make_body)
        except RuntimeError:  # the loop is closed
            self._fail(InstanceError("The instance was shut down when this call was made."))

    def _fail(self, error: Exception) -> None:
        if self._owners is not None:
            self._owners.discard(self)
        self.answer.set_exception(error)

    def _begin(self, find_router: FindRouter, envelope: Envelope, make_body: MakeBody) -> None:
        try:
            call = ChainedCall(find_router, self.loop, envelope, make_body, self._owners, self)
        except Exception as error:  # noqa: BLE001 - border: handed over to the waiting thread
            # Another thread may have left the instance since the loop was looked up.
            self._fail(error)
            return
        self._call = call
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
            answer = await FrameOf(call)
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
        return decode_value((yield from self.frame()))

    def frame(self) -> Generator[Any, None, RawFrame]:
        """Wait for the answer as it came; on any loop."""
        return self._wait().__await__()

    async def __anext__(self) -> Any:
        """The next item. Runs on the background loop."""
        if self._call is None:
            self.answer.result()  # raises why it was never made
        assert self._call is not None
        return await self._call.__anext__()

    async def next_unopened(self) -> Any:
        """The next item as the bytes that it came in. Runs on the background loop."""
        if self._call is None:
            self.answer.result()  # raises why it was never made
        assert self._call is not None
        return await self._call.next_unopened()

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


def loop_of(call: PendingCall) -> asyncio.AbstractEventLoop | None:
    """The loop that a call lives on; None: on none, it has failed already."""
    if isinstance(call, Call):
        return call.router.loop
    assert isinstance(call, FailedCall | ChainedCall | ThreadCall)
    return call.loop
