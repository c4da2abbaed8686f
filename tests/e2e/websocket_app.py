"""What the end-to-end tests of WebSockets serve. Imported by replicas: imports nothing of the tests."""

from __future__ import annotations

import os

from fastapi import FastAPI, WebSocket

import remora as serve

app = FastAPI()


@serve.ingress(app)
class SocketsCode:
    """Echoes, and floods those who ask for it."""

    def __init__(self) -> None:
        self.num_sent = 0

    @app.websocket("/echo")
    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(os.getpid()))
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    @app.websocket("/flood")
    async def flood(self, websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_bytes(bytes(100_000))
            self.num_sent += 1

    @app.get("/sent")
    async def sent(self) -> int:
        return self.num_sent


Sockets = serve.deployment(name="Sockets", graceful_shutdown_timeout_s=1.0)(SocketsCode)
