"""What runs beside everything else does not die unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from remora.observe.background import run_beside
from remora.testing.virtual_time import run


async def _fails() -> None:
    raise AttributeError("no such thing")


async def _ends() -> None:
    pass


async def _waits() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("work", "lines"), [(_fails, 1), (_ends, 0), (_waits, 0)])
def test_only_a_bug_is_told(
    work: Callable[[], Coroutine[None, None, None]], lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task = run_beside(asyncio.get_running_loop(), work(), "the reports of a replica")
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])

    run(main())
    assert len(caplog.records) == lines
    assert caplog.text.count("A bug ended the reports of a replica") == lines
    assert ("AttributeError: no such thing" in caplog.text) is bool(lines)
