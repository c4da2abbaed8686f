"""Reads log files again: which lines belong together, when they were logged, and for which request.

A line of a log begins an entry; lines that do not look like one (a traceback, what native code
has written) belong to the entry before them.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remora.observe.log_files import is_log_of, old_path
from remora.types import Seconds

_TEXT = re.compile(rb"[A-Za-z][\w ]*? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (.*?)-- ")
_ACCESS = re.compile(rb"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d) \S+ (\S+) (.*?) ")
#: A line may be this long; more is another line.
_MAX_LINE_BYTES = 1024 * 1024
_UNITS: dict[str, Seconds] = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class LogEntry:
    """Lines that belong together.

    Attributes:
        at: Unix time at which they were logged; 0.0: before any that tells.
        lines: as they stand in the file.
        request_id: empty: of no request, or of what was no entry.
    """

    at: float
    lines: bytes
    request_id: str = ""


class LogParser:
    """Turns the bytes of one file into entries."""

    def __init__(self) -> None:
        self._rest = b""
        self._open: LogEntry | None = None
        self._stamp = b""
        self._second = 0.0

    def feed(self, data: bytes) -> list[LogEntry]:
        """Take what follows; returns entries that are complete, for another one has begun."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        done = []
        for line in lines:
            head = self._head(line)
            if head is not None or self._open is None:
                if self._open is not None:
                    done.append(self._open)
                at, request_id = head or (0.0, "")
                self._open = LogEntry(at, line + b"\n", request_id)
            else:
                self._open.lines += line + b"\n"
        return done

    def end(self) -> list[LogEntry]:
        """What is left when nothing follows for now."""
        found, self._open = self._open, None
        return [] if found is None else [found]

    def _head(self, line: bytes) -> tuple[float, str] | None:
        """Time and request id of a line that begins an entry."""
        if line.startswith(b"{"):
            return _json_head(line)
        found = _TEXT.match(line)
        if found is not None:
            columns = found[3].split()
            # Level, time, component and its id are always there; the request's is the next one.
            request_id = columns[2].decode("utf-8", "replace") if len(columns) > 2 else ""
            return self._time(found[1]) + int(found[2]) / 1000, request_id
        found = _ACCESS.match(line)
        if found is not None:
            stamp = found[1] + b" " + found[2]
            return self._time(stamp), found[3].decode("utf-8", "replace")
        return None

    def _time(self, stamp: bytes) -> float:
        if stamp != self._stamp:
            self._stamp = stamp
            self._second = time.mktime(time.strptime(stamp.decode(), "%Y-%m-%d %H:%M:%S"))
        return self._second


def _json_head(line: bytes) -> tuple[float, str] | None:
    try:
        fields = json.loads(line)
        second, _, millisecond = str(fields["asctime"]).partition(",")
        at = time.mktime(time.strptime(second, "%Y-%m-%d %H:%M:%S")) + int(millisecond) / 1000
    except (ValueError, KeyError, TypeError):
        return None
    return at, str(fields.get("request_id", ""))


class LogTail:
    """One log file that is followed over its being turned over."""

    def __init__(self, path: Path, at: int = 0) -> None:
        """Begin at a place in the file, which need not exist yet.

        Args:
            path: of the file.
            at: bytes that are passed over.
        """
        self.path = path
        self._at = at
        self._inode = 0
        self._parser = LogParser()

    def read(self) -> list[LogEntry]:
        """What was logged since the last time."""
        found: list[LogEntry] = []
        try:
            with self.path.open("rb") as file:
                now = os.fstat(file.fileno())
                if self._inode not in (0, now.st_ino):
                    found += self._rest_of_old()
                    self._at = 0
                elif now.st_size < self._at:
                    self._at = 0
                self._inode = now.st_ino
                file.seek(self._at)
                while data := file.read(_MAX_LINE_BYTES):
                    self._at += len(data)
                    found += self._parser.feed(data)
        except OSError:
            pass  # Not there yet, or put aside just now.
        return found + self._parser.end()

    def _rest_of_old(self) -> list[LogEntry]:
        """The end of the file that was turned over since."""
        found: list[LogEntry] = []
        target = self.path.resolve()
        for number in range(1, 100):
            old = old_path(target, number)
            if not old.exists():
                break
            if old.stat().st_ino == self._inode:
                with old.open("rb") as file:
                    file.seek(self._at)
                    found += self._parser.feed(file.read())
        return found


def entries_of(path: Path, from_end: int | None = None) -> Iterator[LogEntry]:
    """Read a log with its old files, the oldest first.

    Args:
        path: of the newest file.
        from_end: bytes at the end of each file that are looked at; None: all of them.
    """
    target = path.resolve()
    older = [old_path(target, number) for number in range(99, 0, -1)]
    # Before it had a folder of its own.
    before = [old_path(path, 1)] if path.is_symlink() else []
    at = 0.0
    for each in (*before, *older, target):
        parser = LogParser()
        try:
            file = each.open("rb")
        except OSError:
            continue
        with file:
            if from_end is not None:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - from_end))
                if size > from_end:
                    file.readline()
            while data := file.read(_MAX_LINE_BYTES):
                for entry in parser.feed(data):
                    at = entry.at = max(at, entry.at)
                    yield entry
            for entry in parser.end():
                at = entry.at = max(at, entry.at)
                yield entry


def merged_entries(logs: Iterable[Iterable[LogEntry]]) -> Iterator[LogEntry]:
    """Bring the entries of several logs into the order of time; those of one log keep theirs."""
    return heapq.merge(*logs, key=lambda entry: entry.at)


def in_order(entries: Iterable[LogEntry]) -> list[LogEntry]:
    """Bring entries into the order of time; what was logged at one time stays as it comes. Pure."""
    return sorted(entries, key=lambda entry: entry.at)


def select_logs(folder: Path, target: str, *, access: bool) -> list[Path]:
    """Find the log files that somebody wants to see.

    Args:
        folder: of the logs.
        target: `<application>`, `<application>/<deployment>`; empty: everything.
        access: also the access logs of front doors.
    """
    app, _, deployment = target.partition("/")
    found = []
    for path in sorted(folder.glob("*.log")):
        name = path.name
        if name.startswith("access-"):
            wanted = access
        elif target:
            wanted = is_log_of(name, app, deployment) or is_log_of(name, target)
        else:
            wanted = True
        if wanted:
            found.append(path)
    return found


def parse_since(text: str, now: float) -> float:
    """Turn `10m`, `2h`, `1d`, `30s` or a date with or without a time into Unix time. Pure.

    Raises:
        ValueError: it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is not None:
        return now - float(found[1]) * _UNITS[found[2]]
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"):
        try:
            return time.mktime(time.strptime(text, form))
        except ValueError:
            continue
    raise ValueError(
        f"{text!r} is no time: give 30s, 10m, 2h or 1d, or a date such as 2026-01-31 12:00:00"
    )
