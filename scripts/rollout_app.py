"""What `rollout_soak.py` serves: requests of all lengths, from versions of all kinds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, WebSocket
from starlette.responses import StreamingResponse

import remora as serve

api = FastAPI()

#: Parts of a stream.
NUM_PARTS = 20


@serve.deployment(
    max_ongoing_requests=200, graceful_shutdown_timeout_s=20, rolling_update_percentage=0.5
)
@serve.ingress(api)
class Versioned:
    """Says which version it is: at once, in parts, or as often as it is asked."""

    def __init__(self, version: int, kind: str) -> None:
        """Be of a kind: `good`, `slow` (takes two seconds) or `failing`."""
        if kind == "failing":
            raise ValueError(f"version {version} cannot start")
        if kind == "slow":
            time.sleep(2)
        self.version = version

    @api.post("/once")
    async def once(self) -> int:
        """Answer after some milliseconds."""
        await asyncio.sleep(0.01)
        return self.version

    @api.get("/stream")
    async def stream(self) -> StreamingResponse:
        """Answer in parts, for most of a second."""

        async def parts() -> AsyncIterator[str]:
            for number in range(NUM_PARTS):
                yield f"{number} "
                await asyncio.sleep(0.03)

        return StreamingResponse(parts())

    @api.websocket("/socket")
    async def socket(self, websocket: WebSocket) -> None:
        """Send back whatever comes, until the client has enough."""
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)
