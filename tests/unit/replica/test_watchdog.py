"""A blocked loop is named, with the line that blocks it."""

from __future__ import annotations

import asyncio
import threading

from remora.replica.watchdog import LoopWatchdog


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
