"""Waiting for what no event tells of: conditions, looked at again and again until a deadline.

Deadlines are those of the embedded engine; on Ray each lasts longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests import engines

T = TypeVar("T")

#: Between two looks. Short beside everything that is waited for here.
_LOOK_S = 0.01


def until(condition: Callable[[], T], what: str, timeout_s: float = 10.0) -> T:
    """Return the first true value of `condition`; fail the test when there is none in time."""
    timeout_s = engines.patient(timeout_s)
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(_LOOK_S)
    return found


async def until_async(
    condition: Callable[[], Awaitable[T]], what: str, timeout_s: float = 10.0
) -> T:
    """Do what `until` does, for a condition that is awaited."""
    timeout_s = engines.patient(timeout_s)
    deadline = time.monotonic() + timeout_s
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(_LOOK_S)
    return found


async def until_true(condition: Callable[[], T], what: str, timeout_s: float = 10.0) -> T:
    """Do what `until` does, without blocking the loop."""

    async def look() -> T:
        return condition()

    return await until_async(look, what, timeout_s)
