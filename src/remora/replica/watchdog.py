"""Names the handler that blocks the loop: an `async def` that computes instead of awaiting.

A thread looks at the loop while requests are under way. While none are it sleeps, so an idle
replica costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable

from remora.observe.tracebacks import is_in_message, user_stack
from remora.types import Seconds

_log = logging.getLogger("remora.replica")

#: A loop that has not turned for this long is reported.
BLOCKED_S: Seconds = 0.1
#: How often the thread looks.
LOOK_EVERY_S: Seconds = 0.05
#: One report a minute says as much as a thousand.
REPORT_EVERY_S: Seconds = 60.0


class LoopWatchdog:
    """Watches one loop from a thread of its own.

    Concurrency: `arm` is called on the loop; everything else happens in the thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        is_busy: Callable[[], bool],
        report: Callable[[str], None] = _log.warning,
    ) -> None:
        """Make a watchdog for `loop`; `start` begins to watch.

        Args:
            loop: running in the calling thread.
            is_busy: whether requests are under way; called in the thread.
            report: takes the text of a finding.
        """
        self._loop = loop
        self._is_busy = is_busy
        self._report = report
        self._armed = threading.Event()
        self._stopped = False
        self._watched = threading.get_ident()
        self._turned_at = 0.0
        self._reported_at = -REPORT_EVERY_S
        self._thread = threading.Thread(target=self._watch, name="remora-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def arm(self) -> None:
        """A request has begun on an idle replica."""
        if not self._armed.is_set():
            self._armed.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._armed.set()

    def _turned(self) -> None:
        self._turned_at = time.monotonic()

    def _watch(self) -> None:
        while True:
            self._armed.wait()
            if self._stopped:
                return
            asked_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._turned)
            except RuntimeError:
                return
            time.sleep(LOOK_EVERY_S)
            while self._turned_at < asked_at and not self._stopped:
                now = time.monotonic()
                if now - asked_at >= BLOCKED_S and now - self._reported_at >= REPORT_EVERY_S:
                    self._reported_at = now
                    self._describe(now - asked_at)
                time.sleep(LOOK_EVERY_S)
            # In this order: a request that begins in between is seen by one of the two.
            self._armed.clear()
            if self._has_to_look():
                self._armed.set()

    def _has_to_look(self) -> bool:
        return self._stopped or self._is_busy()

    def _describe(self, blocked_s: Seconds) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = user_stack(frame) if frame is not None else ""
        advice = (
            "Make the handler a plain `def` (it then runs in a thread) or await what takes long."
        )
        if frame is not None and is_in_message(frame):
            advice = (
                "It opens or packs a large message, or imports what that needs; no handler runs."
            )
        self._report(
            f"The event loop has been blocked for {blocked_s * 1000:.0f} ms: every other request "
            f"of this replica waits. {advice} It is at:\n{stack}"
        )
