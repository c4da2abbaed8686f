"""Asking Ray's head, which blocks, and may fail while the head is away.

Concurrency: used on one event loop. Questions are asked in a thread, one after the other; only
what the head answers belongs there, lest it holds up the saving of the controller's state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from remora.types import Seconds

_log = logging.getLogger("remora.engine")
T = TypeVar("T")

#: What failed is tried again after this long.
_TRY_AGAIN_S: Seconds = 1.0


class Ask(Protocol):
    """Does what blocks on Ray's head, one after the other."""

    def __call__(self, call: Callable[..., T], /, *args: Any) -> Awaitable[T]:
        """Do it in another thread."""


class SeeTo(Protocol):
    """Does what must be done on Ray's head, now or later."""

    async def __call__(self, what: str, call: Callable[..., None], /, *args: Any) -> None:
        """Try it until it works; `what` is for people."""


class Head:
    """Ray's head, as one event loop asks it."""

    def __init__(self, spawn: Callable[[Coroutine[Any, Any, None], str], None]) -> None:
        """Make it.

        Args:
            spawn: begins a task with a name; it is cancelled before `close`.
        """
        self._spawn = spawn
        self._thread = ThreadPoolExecutor(1, "remora-ray")

    async def ask(self, call: Callable[..., T], /, *args: Any) -> T:
        """Do what blocks on the head; raises what that raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def see_to(self, what: str, call: Callable[..., None], /, *args: Any) -> None:
        """Do what must be done, now or later: after a first try that fails, others follow.

        Args:
            what: for people; also names the task.
            call: may be called again after it has failed half-way.
            args: of `call`.
        """
        try:
            await self.ask(call, *args)
        # Border: Ray's client raises what it likes when its head is away.
        except Exception as error:  # noqa: BLE001
            _log.warning("%s failed and is tried until it works: %s", what, error)
            self._spawn(self._insist(call, *args), what)

    async def _insist(self, call: Callable[..., None], *args: Any) -> None:
        while True:
            await asyncio.sleep(_TRY_AGAIN_S)
            try:
                await self.ask(call, *args)
            # Border: as above; it has been told.
            except Exception as error:  # noqa: BLE001
                _log.debug("still failing: %s", error)
            else:
                return

    def close(self) -> None:
        """Let go."""
        self._thread.shutdown(wait=False)
