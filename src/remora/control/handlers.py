"""Control methods made of functions that know nothing of bytes.

Rules: unpacks, calls, packs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec

from remora.transport.control import ControlHandler
from remora.wire.codec import pack, unpack

T = TypeVar("T", bound=msgspec.Struct)


def asked(
    kind: type[T],
    answer: Callable[[T], Awaitable[msgspec.Struct | None]],
    after: asyncio.Event | None = None,
) -> ControlHandler:
    """Make a method that answers what it is asked, once something has happened."""

    async def handle(body: bytes) -> bytes:
        request = unpack(body, kind)
        if after is not None:
            await after.wait()
        made = await answer(request)
        return b"" if made is None else pack(made)

    return handle


def read(answer: Callable[[], Awaitable[msgspec.Struct]], after: asyncio.Event) -> ControlHandler:
    """Make a method that is asked with nothing but its name."""

    async def handle(_body: bytes) -> bytes:
        await after.wait()
        return pack(await answer())

    return handle


def told(kind: type[T], note: Callable[[T], object]) -> ControlHandler:
    """Make a method that takes note of something at once."""

    async def handle(body: bytes) -> bytes:
        note(unpack(body, kind))
        return b""

    return handle


def followed(
    kind: type[T], follow: Callable[[T], AsyncGenerator[msgspec.Struct, None]]
) -> ControlHandler:
    """Make a method that answers with a stream, and closes it where it comes from."""

    async def handle(body: bytes) -> AsyncIterator[bytes]:
        async with aclosing(follow(unpack(body, kind))) as messages:
            async for message in messages:
                yield pack(message)

    return handle
