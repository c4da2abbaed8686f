"""The access log: one line a request, formatted and written off the hot path.

A request only appends a tuple. A timer formats what has come together and a thread writes it,
so a slow disk slows no request. A full disk loses lines, counts them, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from remora.observe.log_files import LogFile
from remora.observe.log_lines import column
from remora.options.logging import LoggingConfig
from remora.wire.messages import HttpHead

_log = logging.getLogger("remora.access")
_DEFAULT = LoggingConfig()
#: How long a line may wait in memory.
FLUSH_S = 0.25
#: Lines kept for a writer that does not keep up; more are dropped and counted.
MAX_PENDING = 200_000


class AccessLog:
    """Appends to one file of one process."""

    def __init__(
        self,
        path: Path,
        *,
        config: LoggingConfig = _DEFAULT,
        may_outlive_folder: bool = False,
    ) -> None:
        """Make a log on the running loop.

        Args:
            path: is appended to.
            config: how lines look, how large the file gets, and whether there are any.
            may_outlive_folder: True: lines that come once the folder is gone are dropped silently.
        """
        self._path = path
        self._config = config
        self._may_outlive_folder = may_outlive_folder
        self._closed = not config.enable_access_log
        self._file: LogFile | None = None
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
        if self._file is not None:
            self._file.close()

    def _write(self, now: float, pending: list[tuple[Any, ...]], dropped: int) -> None:
        if not pending and not dropped:
            return
        if self._may_outlive_folder and not self._path.parent.exists():
            return
        write = _json if self._config.encoding == "JSON" else _text
        lines = write(now, pending)
        if dropped:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
            lines.append(f"{stamp} - - - {dropped} lines were dropped: the disk was too slow\n")
        try:
            if self._file is None:
                self._file = LogFile(
                    self._path,
                    max_bytes=self._config.max_file_bytes,
                    max_old=self._config.max_old_files,
                )
            self._file.write("".join(lines).encode("utf-8", "backslashreplace"))
            self._file.tend()
            self._failed = False
        except OSError as error:
            self._dropped += len(pending) + dropped
            if not self._failed:
                _log.error("The access log %s cannot be written: %s", self._path, error)
            self._failed = True


def _text(now: float, pending: list[tuple[Any, ...]]) -> list[str]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
    return [
        f"{stamp} {client} {column(request_id)} {app or '-'} "
        f"{method} {path!r} {status} {took_s * 1000:.2f}ms {route or '-'}\n"
        for client, method, path, status, took_s, request_id, app, route in pending
    ]


def _json(now: float, pending: list[tuple[Any, ...]]) -> list[str]:
    second = int(now)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
    common = {
        "asctime": f"{stamp},{int((now - second) * 1000):03d}",
        "levelname": "INFO",
        "component_name": "access",
    }
    return [
        json.dumps(
            {
                **common,
                "message": f"{method} {path} {status} {took_s * 1000:.2f}ms",
                "client": client,
                "request_id": request_id,
                "application": app,
                "method": method,
                "path": path,
                "status": status,
                "took_ms": round(took_s * 1000, 2),
                "route": route,
            },
            ensure_ascii=False,
        )
        + "\n"
        for client, method, path, status, took_s, request_id, app, route in pending
    ]
