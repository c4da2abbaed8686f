from __future__ import annotations

import asyncio
import time

import pytest

from remora.testing import FakeClock
from remora.testing.virtual_time import DeadlockError, run


def test_an_hour_passes_at_once_and_in_order() -> None:
    seen: list[tuple[float, str]] = []

    async def note(delay_s: float, name: str) -> None:
        await asyncio.sleep(delay_s)
        seen.append((asyncio.get_running_loop().time() - 1000.0, name))

    async def main() -> None:
        await asyncio.gather(note(3600, "late"), note(0.5, "early"), note(60, "middle"))

    before = time.monotonic()
    run(main())
    assert time.monotonic() - before < 5
    assert [name for _, name in seen] == ["early", "middle", "late"]
    assert [at for at, _ in seen] == pytest.approx([0.5, 60, 3600])


def test_timeouts_are_in_virtual_time() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1e6):
                await asyncio.get_running_loop().create_future()

    run(main())


def test_waiting_for_what_cannot_happen_is_said() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError, match="main"):
        run(main())


def test_a_clock_goes_forward_only() -> None:
    clock = FakeClock(10.0, unix_s=100.0)
    assert clock.advance(2.5) == clock() == 12.5
    assert clock.unix() == 102.5
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


def test_what_is_meant_for_a_thread_is_done_at_once() -> None:
    async def main() -> None:
        assert await asyncio.to_thread(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 7, 0)

    run(main())


def test_a_timer_that_is_due_already_knows_no_time_as_on_uvloop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        called = loop.create_future()
        handle = loop.call_at(loop.time(), called.set_result, 1)
        assert not hasattr(handle, "when")
        assert await called == 1
        assert hasattr(loop.call_later(1, print), "when")

    run(main())
