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
