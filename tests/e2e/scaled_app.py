"""A deployment for tests of scaling: importing it costs a replica next to nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import remora as serve


@serve.deployment(max_ongoing_requests=4)
class Slow:
    """Takes as long as it is told, and none of the processor."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds

    async def __call__(self, request: Any) -> str:
        await asyncio.sleep(self.seconds)
        return "done"


@serve.deployment(max_ongoing_requests=4)
class Told:
    """Is told with each request how long it takes."""

    async def __call__(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"
