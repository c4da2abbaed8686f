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
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from remora.errors import RequestTimeoutError
from remora.router.call import CallState, StreamCall, UnaryCall
from remora.wire.framing import RawFrame
from remora.wire.messages import CallKind, Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.request_context import RequestContext
    from remora.router.router import Router
    from remora.router.upload import Upload

#: Finds the router of a loop, on that loop.
FindRouter: TypeAlias = "Callable[[asyncio.AbstractEventLoop], Router]"
#: Waits for the arguments of a call; gives its body and the streams among them.
MakeBody: TypeAlias = "Callable[[], Awaitable[tuple[Body, Upload | None]]]"

_T = TypeVar("_T")
_STREAM = CallKind.STREAM


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
