"""Spans as lines of JSON in one file of the instance, for those who have no collector.

Each process appends what it has in one piece and opens the file anew for that: whoever finds it too
long puts it aside, and the others follow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

_log = logging.getLogger("remora.tracing")
#: A file of this size is put aside; one such is kept.
MAX_BYTES = 64 * 1024 * 1024


class SpanFile:
    """Appends spans to a file: an exporter of OpenTelemetry's."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._failed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write spans, each as one line."""
        lines = "".join(f"{span.to_json(indent=None)}\n" for span in spans).encode(errors="replace")
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(fd, lines)
                if os.fstat(fd).st_size >= self._max_bytes:
                    self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            finally:
                os.close(fd)
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.warning("Spans cannot be written to %s (said once): %s", self._path, error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Everything is written already."""
        return True
