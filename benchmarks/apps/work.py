"""The handlers as plain classes, shared by every Serve API. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any


class Hello:
    """Answers every HTTP request with two bytes."""

    async def __call__(self, request: Any) -> str:
        """Return two bytes."""
        return "ok"


class Echo:
    """What the handle rows call."""

    async def echo(self, payload: bytes) -> bytes:
        """Return what came."""
        return payload

    async def count(self, number: int) -> AsyncIterator[int]:
        """Yield `number` small integers."""
        for item in range(number):
            yield item

    async def size(self, array: Any) -> int:
        """Return how many bytes an array holds, reading its two ends."""
        return int(array.nbytes) if array[0] == array[-1] else -1
