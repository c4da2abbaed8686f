"""What a caller of a batched function waits for: one answer, or a stream of them.

Rules: lives on one event loop; knows nothing of batches.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

#: Items that a reader may be behind before its whole batch waits for it.
MAX_BEHIND = 256


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

    __slots__ = ("_change", "_error", "_loop", "_room", "_values", "ended")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._values: deque[object] = deque()
        self._error: BaseException | None = None
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

    async def wait_room(self) -> None:
        """Wait until the reader is not far behind, or gone."""
        while len(self._values) >= MAX_BEHIND and not self.ended:
            self._room = self._loop.create_future()
            await self._room

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> Any:
        while not self._values:
            if self._error is not None:
                raise self._error
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
