"""A client that says exactly what a test tells it to, and reads one response at a time."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from tests.integration.rig import Door


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def read_answer(reader: asyncio.StreamReader, head_only: bool = False) -> Answer:
    """Read exactly one HTTP response."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs), f"a header came twice: {head}"
    body = b""
    if head_only:
        pass
    elif "content-length" in headers:
        body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 5)
    elif headers.get("transfer-encoding") == "chunked":
        while size := int(await asyncio.wait_for(reader.readline(), 5), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return Answer(int(status_line.split()[1]), headers, body)


async def ask(
    door: Door, path: str = "/", method: str = "GET", body: bytes = b"", **headers: Any
) -> Answer:
    reader, writer = await door.connect()
    try:
        writer.write(request(path, method, body, **headers))
        return await read_answer(reader, method == "HEAD")
    finally:
        writer.close()


def request(path: str = "/", method: str = "GET", body: bytes = b"", **headers: Any) -> bytes:
    if body:
        headers["content-length"] = str(len(body))
    lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode() + body
