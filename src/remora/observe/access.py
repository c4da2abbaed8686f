"""The access log: one line a request, formatted and written off the hot path.

A request only appends a tuple. A timer formats what has come together and a thread writes it,
so a slow disk slows no request. A full disk loses lines, says so once, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from remora.wire.messages import HttpHead

_log = logging.getLogger("remora.access")
#: How long a line may wait in memory.
FLUSH_S = 0.25
#: Lines kept for a writer that does not keep up; more are dropped and counted.
MAX_PENDING = 200_000
#: The file is turned over at this size, with one old file kept.
MAX_FILE_BYTES = 100 * 1024 * 1024


class AccessLog:
    """Appends to one file of one process."""

    def __init__(self, path: Path, *, may_outlive_folder: bool = False) -> None:
        """Make a log on the running loop.

        Args:
            path: is appended to.
            may_outlive_folder: True: lines that come once the folder is gone are dropped silently.
        """
        self._path = path
        self._may_outlive_folder = may_outlive_folder
        self._closed = False
        self._pending: list[tuple[Any, ...]] = []
        self._dropped = 0
        self._failed = False
        self._timer: asyncio.TimerHandle | None = None
        #: The last thing given to the writer.
        self._writing: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, "remora-access-log")
        self._loop = asyncio.get_running_loop()

    def add(
        self,
        head: HttpHead,
        request_id: str,
        app: str,
        status: int,
        took_s: float,
        route: str = "",
    ) -> None:
        """Log one HTTP request."""
        client = head.client[0] if head.client else "-"
        self.add_line(client, head.method, head.path, status, took_s, request_id, app, route)

    def add_line(
        self,
        client: str,
        method: str,
        path: str,
        status: int | str,
        took_s: float,
        request_id: str,
        app: str,
        route: str = "",
    ) -> None:
        """Log one request of any protocol."""
        pending = self._pending
        if self._closed:
            return
        if len(pending) >= MAX_PENDING:
            self._dropped += 1
            return
        pending.append((client, method, path, status, took_s, request_id, app, route))
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._writing is not None and not self._writing.done():
            # A disk that stalls: lines stay where they are counted, so that they are bounded.
            self._timer = self._loop.call_later(FLUSH_S, self._flush)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        pending, self._pending = self._pending, []
        dropped, self._dropped = self._dropped, 0
        self._writing = self._writer.submit(self._write, time.time(), pending, dropped)

    def close(self) -> None:
        """Write what is left; what comes later is dropped."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hand_over()
        self._writer.shutdown(wait=True)

    def _write(self, now: float, pending: list[tuple[Any, ...]], dropped: int) -> None:
        if self._may_outlive_folder and not self._path.parent.exists():
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
        lines = [
            f"{stamp} {client} {_column(request_id)} {app or '-'} "
            f"{method} {path!r} {status} {took_s * 1000:.2f}ms {route or '-'}\n"
            for client, method, path, status, took_s, request_id, app, route in pending
        ]
        if dropped:
            lines.append(f"{stamp} - - - {dropped} lines were dropped: the disk was too slow\n")
        try:
            if self._path.exists() and self._path.stat().st_size > MAX_FILE_BYTES:
                self._path.replace(self._path.with_suffix(".log.1"))
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
            self._failed = False
        except OSError as error:
            if not self._failed:
                _log.error("The access log %s cannot be written: %s", self._path, error)
            self._failed = True


def _column(text: str) -> str:
    """What a client chose, as one column of a line: it must not look like several."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return text.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")
