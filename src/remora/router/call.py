"""One request as its caller holds it: queued, sent, answered, given up.

A call ends exactly once: with an answer, an error, its deadline, or the caller's `cancel`.
What a replica still sends for a call that has ended only updates the load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from remora.errors import ConnectionLostError, RequestCancelledError, RequestTimeoutError
from remora.transport.errors import decode_error_frame
from remora.wire import values
from remora.wire.codec import decode_how, pack
from remora.wire.framing import RawFrame
from remora.wire.messages import Envelope, FrameKind
from remora.wire.parcel import Body, raw
from remora.wire.window import WINDOW_BYTES, cost, is_grant_due

if TYPE_CHECKING:
    from remora.router.link import ReplicaLink
    from remora.router.router import Router
    from remora.router.upload import Upload

_RESPONSE = int(FrameKind.RESPONSE)
_ITEM = int(FrameKind.ITEM)
_END = int(FrameKind.END)
_ERROR = int(FrameKind.ERROR)
_REJECT = int(FrameKind.REJECT)
_UPSTREAM = frozenset((int(FrameKind.CREDIT), int(FrameKind.CANCEL)))
_FINAL_BUT_REJECT = frozenset((_RESPONSE, _END, _ERROR))


class CallState(IntEnum):
    """Where a call is."""

    NEW = 0
    QUEUED = 1
    SENT = 2
    DONE = 3


# A member of an enumeration is slow to look up, and these are looked up for every request.
_NEW, _QUEUED, _SENT, _DONE = CallState


class Call:
    """What unary calls and streams share. Lives on its router's loop alone."""

    __slots__ = (
        "_timer",
        "answered",
        "body",
        "deadline",
        "envelope",
        "link",
        "number",
        "on_close",
        "pinned",
        "router",
        "sequence",
        "state",
        "upload",
    )

    def __init__(self, router: Router, envelope: Envelope, body: Body) -> None:
        self.router = router
        self.envelope = envelope
        self.body = body
        self.state = _NEW
        self.link: ReplicaLink | None = None
        self.number = 0
        #: Place in the order of arrival at its router; kept when it has to be sent again.
        self.sequence = 0
        #: Part of the answer has arrived, or part of the body was taken: no second try any more.
        self.answered = False
        #: The streams among its arguments.
        self.upload: Upload | None = None
        #: The replica that it is for, and no other; None: any.
        self.pinned: ReplicaLink | None = None
        #: Called once when the call has ended; see `RequestContext.children`.
        self.on_close: Callable[[], object] | None = None
        self.deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        timeout_s = envelope.timeout_s
        if timeout_s is not None:
            self.deadline = router.loop.time() + timeout_s
            self._timer = router.loop.call_later(timeout_s, self._expire, timeout_s)

    def attach(self, upload: Upload) -> None:
        """Send these streams with the call; in the turn of the loop that made it."""
        self.upload = upload
        upload.call = self
        if self.state is _DONE:
            upload.close()

    def cancel(self) -> None:
        """Give the call up, at every level below. Idempotent."""
        self.give_up(RequestCancelledError(self.envelope.request_id))

    def give_up(self, error: Exception) -> None:
        """End the call with `error` and stop whatever was begun for it."""
        if self.state is _DONE:
            return
        state = self.state
        self.fail(error)
        if state is _QUEUED:
            if self.pinned is None:
                self.router.on_abandoned()
            else:
                self.pinned.pinned.on_abandoned()
        elif state is _SENT:
            self.stop()

    def stop(self) -> None:
        """Tell the replica to stop."""
        if self.link is not None and self.link.channel is not None:
            self.link.channel.send(FrameKind.CANCEL, self.number)

    def fail(self, error: Exception) -> None:
        """End the call with an error."""
        self._close()
        self._deliver_error(error)

    def on_frame(self, frame: RawFrame) -> None:
        """Take a frame from the replica."""
        kind = frame[0]
        if kind == _REJECT:
            self.router.returned.on_rejected(self)
            return
        final = kind in _FINAL_BUT_REJECT
        if final:
            self.router.on_answered(self, frame[2])
        elif self.upload is not None and kind in _UPSTREAM:
            # Of what was pulled, no second replica would get anything.
            self.answered = True
            self.upload.on_frame(frame)
            return
        if self.state is _DONE:
            return
        self.answered = True
        if final:
            self._close()
        self._deliver(frame)

    def on_lost(self, error: ConnectionLostError, never_started: bool) -> None:
        """The replica is gone."""
        self.router.returned.on_call_lost(self, error, never_started)

    def _expire(self, timeout_s: float) -> None:
        self.give_up(RequestTimeoutError(self.envelope.request_id, timeout_s))

    def _close(self) -> None:
        self.state = _DONE
        self.body = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.upload is not None:
            self.upload.close()
        on_close = self.on_close
        if on_close is not None:
            self.on_close = None
            on_close()

    def _deliver(self, frame: RawFrame) -> None:
        raise NotImplementedError

    def _deliver_error(self, error: Exception) -> None:
        raise NotImplementedError


def decode_value(frame: RawFrame) -> Any:
    """The Python value in a RESPONSE or ITEM, or raise what an ERROR carries."""
    kind, _, _, _, meta, body = frame
    if kind == _ERROR:
        raise decode_error_frame(meta, raw(body), unpickle=True)
    return values.loads(body, decode_how(meta) if meta else "")


def unopened(frame: RawFrame) -> values.Unopened:
    """The value in a RESPONSE as it is, or raise what an ERROR carries."""
    kind, _, _, _, meta, body = frame
    if kind == _ERROR:
        raise decode_error_frame(meta, raw(body), unpickle=True)
    return values.Unopened(body, decode_how(meta) if meta else "")


class UnaryCall(Call):
    """A call with one answer. `await call` gives the value or raises the error.

    A task that is cancelled while it awaits gives the call up: whoever awaits it beside or
    after that gets `RequestCancelledError`.
    """

    __slots__ = ("_future",)

    def __init__(self, router: Router, envelope: Envelope, body: Body) -> None:
        super().__init__(router, envelope, body)
        self._future: asyncio.Future[RawFrame | Exception] = router.loop.create_future()

    def __await__(self) -> Generator[Any, None, Any]:
        if self._future.done():
            return decode_value((yield from self.frame()))
        # As `frame` does, with a generator less on the way of every call.
        try:
            answer = yield from self._future
        except asyncio.CancelledError:
            self._on_cancelled_wait()
        else:
            if isinstance(answer, tuple):
                return decode_value(answer)
            raise answer
        raise RequestCancelledError(self.envelope.request_id)

    def frame(self) -> Generator[Any, None, RawFrame]:
        """Wait for the final frame, an ERROR too. May be done more than once.

        Raises:
            RequestError: the call ended without one (cancelled, expired, replica died).
        """
        future = self._future
        if not future.cancelled():
            try:
                # Errors are delivered as results: a call that nobody awaits is no warning.
                answer = yield from future.__await__()
            except asyncio.CancelledError:
                self._on_cancelled_wait()
            else:
                if isinstance(answer, tuple):
                    return answer
                raise answer
        raise RequestCancelledError(self.envelope.request_id)

    def _on_cancelled_wait(self) -> None:
        """Call in the handler of the cancellation; raises it again if it means this task."""
        self.cancel()
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise  # noqa: PLE0704 - the one that the caller handles
        # Another task that awaited this call was cancelled, and this one was not.

    async def unopened(self) -> values.Unopened:
        """Wait for the answer without opening it. Raises like `await`.

        Cancellation: ends this wait and not the call, for which others may be waiting.
        """
        future = self._future
        if not future.cancelled():
            try:
                answer = await asyncio.shield(future)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Another task that awaited the call was cancelled, and the call with it.
            else:
                if isinstance(answer, tuple):
                    return unopened(answer)
                raise answer
        raise RequestCancelledError(self.envelope.request_id)

    def done(self) -> bool:
        """The answer or an error is there."""
        return self._future.done()

    def _deliver(self, frame: RawFrame) -> None:
        if not self._future.done():
            self._future.set_result(frame)

    def _deliver_error(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_result(error)


class StreamCall(Call):
    """A call with any number of answers, taken frame by frame at the reader's own pace."""

    __slots__ = ("_consumed", "_error", "_frames", "_waiter")

    def __init__(self, router: Router, envelope: Envelope, body: Body) -> None:
        envelope.credit_bytes = WINDOW_BYTES
        super().__init__(router, envelope, body)
        self._frames: deque[RawFrame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._consumed = 0

    async def next_frame(self) -> RawFrame:
        """Wait for the next frame; ERROR frames are returned like others.

        Raises:
            RequestError: the call ended without one (cancelled, expired, replica died).
        """
        frames = self._frames
        while not frames:
            if self._error is not None:
                raise self._error
            self._waiter = self.router.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                self._waiter = None
        frame = frames.popleft()
        if self.state is _SENT:
            self._consumed += cost(len(frame[5]))
            if is_grant_due(self._consumed):
                self._grant()
        return frame

    def has_next(self) -> bool:
        """The next `anext` does not wait."""
        return bool(self._frames)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        """The next value of a generator."""
        frame = await self.next_frame()
        if frame[0] != _ITEM:
            self._end(frame)
        return decode_value(frame)

    async def next_unopened(self) -> values.Unopened:
        """The next value of a generator as the bytes that it came in; ends as `anext` does."""
        frame = await self.next_frame()
        if frame[0] != _ITEM:
            self._end(frame)
        return unopened(frame)

    def _end(self, frame: RawFrame) -> None:
        # Stay at the end, also behind an error: the next `anext` ends as well.
        self._frames.append((_END, 0, 0, self.number, b"", b""))
        if frame[0] == _END:
            raise StopAsyncIteration

    def _grant(self) -> None:
        if self.link is not None and self.link.channel is not None:
            self.link.channel.send(FrameKind.CREDIT, self.number, pack(self._consumed))
        self._consumed = 0

    def _deliver(self, frame: RawFrame) -> None:
        self._frames.append(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _deliver_error(self, error: Exception) -> None:
        self._error = error
        if isinstance(error, RequestCancelledError):
            self._frames.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
