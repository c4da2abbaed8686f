"""A blocked loop is named, with the line that blocks it."""

from __future__ import annotations

import asyncio
import threading

from remora.replica.watchdog import LoopWatchdog
from remora.transport.packing import pack_value
from remora.wire import values


async def test_names_the_line_that_blocks_the_loop() -> None:
    reports: list[str] = []
    reported = threading.Event()

    def report(text: str) -> None:
        reports.append(text)
        reported.set()

    watchdog = LoopWatchdog(asyncio.get_running_loop(), lambda: True, report)
    watchdog.start()
    watchdog.arm()
    assert reported.wait(5)  # Blocks the loop, which is the point.
    watchdog.stop()
    assert "test_watchdog.py" in reports[0]
    assert "reported.wait(5)" in reports[0]
    assert "asyncio/base_events.py" not in reports[0]


class _Slow:
    """Takes its time while it is opened."""

    opened = threading.Event()

    def __setstate__(self, state: object) -> None:
        assert self.opened.wait(5)

    def __getstate__(self) -> object:
        return (1,)


async def test_a_message_that_is_opened_is_called_so() -> None:
    reports: list[str] = []

    def report(text: str) -> None:
        reports.append(text)
        _Slow.opened.set()

    how, body = pack_value(_Slow())
    watchdog = LoopWatchdog(asyncio.get_running_loop(), lambda: True, report)
    watchdog.start()
    watchdog.arm()
    values.loads(body, how)
    watchdog.stop()
    assert "opens or packs a large message" in reports[0]
    assert "plain `def`" not in reports[0]


async def test_is_silent_while_the_loop_turns() -> None:
    reports: list[str] = []
    turns = 0

    def is_busy() -> bool:
        nonlocal turns
        turns += 1
        return turns < 3

    watchdog = LoopWatchdog(asyncio.get_running_loop(), is_busy, reports.append)
    watchdog.start()
    watchdog.arm()
    while turns < 3:
        await asyncio.sleep(0.01)
    watchdog.stop()
    assert reports == []


async def test_a_request_that_begins_while_the_last_one_ends_is_watched() -> None:
    looks = 0
    looked_again = threading.Event()

    def is_busy() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            looked_again.set()
        # The look finds nothing under way, and in that moment a request begins.
        watchdog.arm()
        return False

    watchdog = LoopWatchdog(asyncio.get_running_loop(), is_busy, lambda _: None)
    watchdog.start()
    watchdog.arm()
    assert await asyncio.to_thread(looked_again.wait, 5)
    watchdog.stop()
    watchdog._thread.join(5)
    assert not watchdog._thread.is_alive()
