"""What real clients talk to: a page, an event stream, a WebSocket, large bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import HTMLResponse, StreamingResponse

import remora as serve

api = FastAPI()

PAGE = """<!doctype html><title>streams</title><script>
const seen = {events: [], echoes: [], chunks: 0};
const base = location.pathname.replace(/page$/, "");
function events() {
  return new Promise((done, failed) => {
    const source = new EventSource(base + "events?n=20");
    source.onmessage = (event) => seen.events.push(event.data);
    source.addEventListener("end", () => { source.close(); done(); });
    source.onerror = () => failed("the event stream broke");
  });
}
function socket() {
  return new Promise((done, failed) => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + base + "echo");
    socket.onopen = () => { for (let i = 0; i < 20; i++) socket.send("m" + i); };
    socket.onmessage = (event) => {
      seen.echoes.push(event.data);
      if (seen.echoes.length === 20) socket.close(1000, "enough");
    };
    socket.onclose = (event) => { seen.closed = event.code; done(); };
    socket.onerror = () => failed("the WebSocket broke");
  });
}
async function stream() {
  const reader = (await fetch(base + "download?size=3000000")).body.getReader();
  for (let part; !(part = await reader.read()).done;) seen.chunks += part.value.length;
}
Promise.all([events(), socket(), stream()])
  .catch((error) => { seen.error = String(error); })
  .then(() => fetch(base + "report", {method: "POST", body: JSON.stringify(seen)}));
</script>"""


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(api)
class Clients:
    def __init__(self) -> None:
        self.report: asyncio.Queue[Any] = asyncio.Queue()

    @api.get("/page")
    async def page(self) -> HTMLResponse:
        return HTMLResponse(PAGE)

    @api.get("/events")
    async def events(self, n: int) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for i in range(n):
                yield f"data: {i}\n\n"
                await asyncio.sleep(0.005)
            yield "event: end\ndata: -\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    @api.websocket("/echo")
    async def echo(self, socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)

    @api.get("/download")
    async def download(self, size: int) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            left = size
            while left:
                part = bytes(min(left, 1 << 20))
                left -= len(part)
                yield part

        return StreamingResponse(parts(), media_type="application/octet-stream")

    @api.post("/upload")
    async def upload(self, request: Request) -> dict[str, Any]:
        checksum = size = 0
        async for part in request.stream():
            checksum += sum(part[:16])
            size += len(part)
        return {"size": size, "sum": checksum}

    @api.post("/report")
    async def take_report(self, request: Request) -> None:
        self.report.put_nowait(await request.json())

    @api.get("/report")
    async def wait_report(self) -> Any:
        return await self.report.get()
