"""Saves where all threads of a replica are when its event loop has stood still for too long.

Theory of operation: a timer on the loop winds up a watch again and again; when it is not wound up
in time, it writes. The watch (`faulthandler`) is a thread of C that needs no lock of the
interpreter, so it also tells of an extension that never gives that back. A replica in this condition
answers no health check, and so it cannot be asked.

Rules: one for a process.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
from pathlib import Path
from typing import TextIO

from remora.types import Seconds

#: The watch is wound up so often in the time that it measures: it goes off that much late.
WINDS = 4


class StuckWatch:
    """Watches the loop that it was made on."""

    def __init__(self, path: Path) -> None:
        """Make a watch; `watch` starts it.

        Args:
            path: where the stacks go; the file is there, and empty, from `watch` on.
        """
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._file: TextIO | None = None
        self._timeout_s: Seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, timeout_s: Seconds) -> None:
        """Save the stacks when the loop does not turn for `timeout_s`, or a quarter more."""
        if timeout_s == self._timeout_s:
            return
        self._timeout_s = timeout_s
        if self._file is None:
            try:
                self._file = self._path.open("a")
            except OSError:
                # A disk that is full, or a folder that is gone: nothing that a replica needs.
                return
        if self._timer is not None:
            self._timer.cancel()
        self._wind()

    def _wind(self) -> None:
        if self._file is not None:
            after_s = self._timeout_s * (1 + 1 / WINDS)
            faulthandler.dump_traceback_later(after_s, file=self._file)
            self._timer = self._loop.call_later(self._timeout_s / WINDS, self._wind)

    def stop(self) -> None:
        """End the watch, and leave no empty file."""
        if self._timer is not None:
            self._timer.cancel()
        if self._file is None:
            return
        faulthandler.cancel_dump_traceback_later()
        is_empty = os.fstat(self._file.fileno()).st_size == 0
        self._file.close()
        self._file = None
        if is_empty:
            self._path.unlink(missing_ok=True)
