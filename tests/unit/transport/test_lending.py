"""What is sent over a connection is in the arena no longer than it is used."""

from __future__ import annotations

import asyncio
import mmap
import os

import pytest

from remora.transport import arena as arenas
from remora.transport import lending
from remora.transport.arena import Arena
from remora.transport.lending import Lending
from remora.wire.parcel import Parcel

PAGE = mmap.PAGESIZE


async def test_memory_of_what_went_as_bytes_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first large value of a connection does: the other side cannot read the arena yet."""
    arena = Arena(64 * PAGE)
    monkeypatch.setattr(lending, "arena", lambda: arena)
    monkeypatch.setattr(arenas, "TIDY_S", 0.0)
    block = arena.keep(memoryview(b"x" * 20 * PAGE))
    assert block is not None
    segment = block.segment
    is_lent, parts = Lending(lambda kind, body: None).address(Parcel(b"", [block], [0]))
    assert not is_lent
    # A slow transport holds it for longer than it takes until the arena looks after it.
    for _ in range(10):
        await asyncio.sleep(0)
    del block, parts
    async with asyncio.timeout(10):
        while os.fstat(segment.fd).st_blocks * 512 > PAGE:
            await asyncio.sleep(0)
