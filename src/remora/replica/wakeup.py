"""Waiting, by any number of tasks, for the next time that something changes."""

from __future__ import annotations

import asyncio


class WakeUp:
    """Wakes all who wait, and lets the next ones wait anew."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Something has changed: whoever waits looks again."""
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    async def wait(self) -> None:
        """Wait for the next change.

        Cancellation: ends this wait, and not that of others.
        """
        future = self._future
        if future is None or future.done():
            future = self._future = asyncio.get_running_loop().create_future()
        await asyncio.shield(future)
