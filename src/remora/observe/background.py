"""Tasks that run beside everything else, and that nobody waits for.

Asyncio tells of an exception in a task when the task is collected. One that is held for as long as
the process lives would die of a bug unseen, and what it did would simply stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger("remora")


def run_beside(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None], what: str
) -> asyncio.Task[None]:
    """Begin a task that ends by being cancelled or of itself; a bug that ends it is logged.

    Args:
        loop: that it runs on.
        work: what it does.
        what: the same in words, for the log: "the reports of …".
    """
    task = loop.create_task(work, name=what)
    task.add_done_callback(_say_why_it_ended)
    return task


def _say_why_it_ended(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    if (error := task.exception()) is not None:
        _log.error("A bug ended %s, which is missing from now on", task.get_name(), exc_info=error)
