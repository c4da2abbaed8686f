"""What a caller of a batched function waits for: one answer, or a stream of them.

Rules: lives on one event loop; knows nothing of batches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Protocol

from remora.errors import RemoraError

#: Items that a reader may be behind before its whole batch waits for it.
MAX_BEHIND = 256
#: How long its batch waits for such a reader while it takes nothing at all; then that reader fails.
MAX_STALL_S = 30.0


class Reply(Protocol):
    """The end of one call, as its batch sees it."""

    @property
    def done(self) -> bool:
        """Nothing that comes now would reach the caller."""

    def put(self, value: object) -> None:
        """Give the caller a value: the only one, or the next."""

    def fail(self, error: BaseException) -> None:
        """End the call with an error."""

    def leave(self) -> None:
        """The caller is gone."""


class Answer:
    """One value. `future` is what the caller awaits; it is cancelled when the caller is."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()

    @property
    def done(self) -> bool:
        """It has its value or its error, or nobody waits for it."""
        return self.future.done()

    def put(self, value: object) -> None:
        """Give the caller its value."""
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Give the caller an error."""
        if isinstance(error, StopIteration):
            # A future cannot carry one; a coroutine that raises it does the same to it.
            raised = RuntimeError("StopIteration among the results of a batch that does not stream")
            raised.__cause__ = error
            error = raised
        if not self.future.done():
            self.future.set_exception(error)

    def leave(self) -> None:
        """The caller is gone."""
        self.future.cancel()


class Items:
    """A stream of values, in order, which the caller iterates over.

    Invariants: nothing is put after the end; an error comes after the values before it.
    """

    __slots__ = ("_change", "_error", "_loop", "_room", "_traceback", "_values", "ended")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._values: deque[object] = deque()
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._change: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.ended = False

    @property
    def done(self) -> bool:
        """It has ended, or nobody reads it."""
        return self.ended

    def put(self, value: object) -> None:
        """Give the reader its next value."""
        if not self.ended:
            self._values.append(value)
            _wake(self._change)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error."""
        if not self.ended:
            self._error = error
            self._traceback = error.__traceback__
            self.end()

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True
        _wake(self._change)
        _wake(self._room)

    def leave(self) -> None:
        """The reader is gone."""
        self._values.clear()
        self.end()

    async def wait_room(self, name: str) -> None:
        """Wait until the reader is not far behind, or gone, or fails because it takes nothing.

        Args:
            name: of the function, for messages.
        """
        while len(self._values) >= MAX_BEHIND and not self.ended:
            self._room = self._loop.create_future()
            done, _ = await asyncio.wait((self._room,), timeout=MAX_STALL_S)
            if not done:
                self.fail(
                    RemoraError(
                        f"{name}: this stream was not read for {MAX_STALL_S:g} s while "
                        f"{len(self._values)} items waited in it, and the other streams of its "
                        "batch waited with it. Read streams of one batch at the same time."
                    )
                )

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Any:
        while not self._values:
            if self._error is not None:
                # The readers of a batch share it: each begins where the body raised it.
                raise self._error.with_traceback(self._traceback)
            if self.ended:
                raise StopAsyncIteration
            self._change = self._loop.create_future()
            await self._change
        value = self._values.popleft()
        if len(self._values) < MAX_BEHIND:
            _wake(self._room)
        return value


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
