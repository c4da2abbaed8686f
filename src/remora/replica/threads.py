"""Waiting for what runs in a thread, which nobody can stop."""

from __future__ import annotations

import asyncio
from typing import Any


async def wait_ended(future: asyncio.Future[Any]) -> None:
    """Wait until a thread is through, however often the waiting task is cancelled meanwhile.

    The thread holds the slot of its request: one that let go of it earlier would let in more
    requests than there may be. The caller goes on with the cancellation that it has already.
    """
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError:
            continue
