"""Runs a coroutine on an event loop whose time jumps to the next timer when nothing is to do.

Thirty simulated minutes take as long as the work that is done in them. There is no input from
outside: a loop that has neither work nor a timer can never go on, and says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Args = TypeVarTuple("Args")


class DeadlockError(RuntimeError):
    """Every task waits for something that cannot happen."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with a time of its own, which begins at 1000 s."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        super().__init__(_JumpingSelector(self))

    @property
    def _clock_resolution(self) -> float:
        """How early a timer may be: not at all.

        Who looks at the clock and finds that it is not time yet would look again, at the same
        time, for ever.
        """
        return math.ulp(self._now_s)

    @_clock_resolution.setter
    def _clock_resolution(self, value: float) -> None:
        """Asyncio's own loops say here what their clock can tell apart."""

    def time(self) -> float:
        """The virtual present."""
        return self._now_s

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[[Unpack[Args]], object],
        *args: *Args,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Like uvloop: what is due already gets a plain handle, which knows no time."""
        if when <= self.time():
            return self.call_soon(callback, *args, context=context)
        return super().call_at(when, callback, *args, context=context)

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        # What is smaller than the gap between two floats would let time stand still.
        self._now_s += max(seconds, 1e-9)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[Unpack[Args]], T],
        *args: *Args,
    ) -> asyncio.Future[T]:
        """Do at once what is meant for a thread: real threads need real time, and here is none."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, as from a thread
            done.set_exception(error)
        return done


class _JumpingSelector(selectors.DefaultSelector):
    """Reports what is ready; where the loop would wait, time passes instead."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            waiting = [
                str(task.get_coro()) for task in asyncio.all_tasks(self._loop) if not task.done()
            ]
            raise DeadlockError(
                "nothing is to do and no timer runs, so these wait for ever: "
                + "; ".join(sorted(waiting))
            )
        self._loop.jump(timeout)
        return ready


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time, like `asyncio.run`.

    Raises:
        DeadlockError: it waits for something that cannot happen.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
