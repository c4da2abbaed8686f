"""Finds what an importing process logged before it died.

Rules: decides nothing. All builders share one file; lines that name another one are left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress

from remora.home import Home
from remora.observe.log_reading import LogParser
from remora.observe.tracebacks import without_our_frames

#: Shown to whoever deployed; the rest stays in the log.
MAX_LINES = 12
#: Looked at, at most: an import may print without end.
_MAX_BYTES = 64 * 1024
_HEAD = re.compile(r"[A-Z]+ [\d-]+ [\d:,]+ builder (\d+) .*?-- (.*)", re.DOTALL)


class BuilderLog:
    """The log of the builders of one instance."""

    def __init__(self, home: Home) -> None:
        self._path = home.logs / "builder.log"

    def mark(self) -> int:
        """Say how much there is by now, in bytes."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def since(self, mark: int, pid: int | None) -> list[str]:
        """Return the last lines of one process that came after a mark.

        Args:
            mark: what `mark` said before it began.
            pid: of the process; None: it is not known.
        """
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A file that was turned over meanwhile is read from its beginning.
                file.seek(max(mark if mark <= size else 0, size - _MAX_BYTES))
                data = file.read(_MAX_BYTES)
        except OSError:
            return []
        return last_lines(data, pid)


def last_lines(data: bytes, pid: int | None) -> list[str]:
    """Find the last lines of one builder in a part of their log. Pure."""
    parser = LogParser()
    found: list[str] = []
    for entry in [*parser.feed(data), *parser.end()]:
        found += _lines_of(entry.lines.decode("utf-8", "replace"), pid)
    return without_our_frames(found)[-MAX_LINES:]


def _lines_of(text: str, pid: int | None) -> Iterable[str]:
    """Lines of an entry without what a log says of each; none: they are of another process."""
    first, _, rest = text.partition("\n")
    whose: str | None = None
    said = first
    if (head := _HEAD.match(first)) is not None:
        whose, said = head[1], head[2]
    elif first.startswith("{"):
        with suppress(ValueError, AttributeError):
            fields = json.loads(first)
            whose, said = str(fields.get("component_id", "")), str(fields.get("message", ""))
    if pid is not None and whose is not None and whose != str(pid):
        # What follows has no name on it: it was written by no Python code, perhaps of this one.
        said = ""
    return [line for line in (*said.splitlines(), *rest.splitlines()) if line.strip()]
