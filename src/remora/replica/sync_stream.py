"""Iterates a plain generator in a thread, for a reader on the loop.

The thread runs ahead by a bounded number of items, so that a fast generator is not slowed to
one thread switch per item, and a slow reader stops it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from remora.errors import RemoteError
from remora.replica.threads import wait_ended

T = TypeVar("T")

#: Items that the thread may be ahead of its reader.
READ_AHEAD_ITEMS = 256
#: As long as they are not larger than this together.
READ_AHEAD_BYTES = 1024 * 1024


class _Pipe:
    """What the thread and the loop share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.lock = threading.Condition()
        self.items: deque[Any] = deque()
        #: What they weigh together, in bytes.
        self.weight = 0
        self.stopped = False
        self.ended = False
        self.failure: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.notified = False

    def wake(self) -> None:
        """On the loop: let the reader look."""
        self.notified = False
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def _is_stopped(self) -> bool:
        return self.stopped

    def _has_room(self) -> bool:
        is_light = len(self.items) < READ_AHEAD_ITEMS and self.weight < READ_AHEAD_BYTES
        return self.stopped or is_light

    def notify(self) -> None:
        """In the thread, with the lock held: one wake-up for everything until it is seen."""
        if not self.notified:
            self.notified = True
            self.loop.call_soon_threadsafe(self.wake)

    def run(
        self,
        items: Generator[Any, Any, Any],
        convert: Callable[[Any], Any],
        weigh: Callable[[Any], int],
    ) -> None:
        """In the thread: iterate until the end, an error, or a stop."""
        failure: BaseException | None = None
        try:
            try:
                self._iterate(items, convert, weigh)
            finally:
                items.close()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            failure = error
        except BaseException as error:  # noqa: BLE001 - border: user code
            # As itself it would end the loop, or look like a cancellation.
            failure = RemoteError(f"{type(error).__name__}: {error}")
        with self.lock:
            self.failure = failure
            self.ended = True
            self.notify()

    def _iterate(
        self,
        items: Generator[Any, Any, Any],
        convert: Callable[[Any], Any],
        weigh: Callable[[Any], int],
    ) -> None:
        if self._is_stopped():
            return
        for item in items:
            made = convert(item)
            with self.lock:
                self.lock.wait_for(self._has_room)
                if self._is_stopped():
                    return
                self.items.append(made)
                self.weight += weigh(made)
                self.notify()


async def iterate_in_thread(
    threads: ThreadPoolExecutor,
    items: Generator[Any, Any, Any],
    convert: Callable[[Any], T],
    weigh: Callable[[T], int] = lambda _: 0,
) -> AsyncGenerator[T, None]:
    """Iterate over `items` in a thread.

    Args:
        threads: where.
        items: a plain generator.
        convert: applied to each item, in the thread as well.
        weigh: how many bytes of memory the result takes; the thread gets only so far ahead.

    Cancellation: closes the generator after the item it is at, and waits for that.
    """
    loop = asyncio.get_running_loop()
    pipe = _Pipe(loop)
    context = contextvars.copy_context()
    thread = loop.run_in_executor(threads, context.run, pipe.run, items, convert, weigh)
    try:
        while True:
            with pipe.lock:
                ready = list(pipe.items)
                pipe.items.clear()
                pipe.weight = 0
                ended = pipe.ended
                pipe.lock.notify()
            for item in ready:
                yield item
            if ready:
                continue
            if ended:
                break
            pipe.waiter = loop.create_future()
            with pipe.lock:
                if pipe.items or pipe.ended:
                    continue
            await pipe.waiter
        if pipe.failure is not None:
            raise pipe.failure
    finally:
        with pipe.lock:
            pipe.stopped = True
            pipe.lock.notify()
        await wait_ended(thread)
