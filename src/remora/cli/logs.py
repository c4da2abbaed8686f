"""`remora logs`: what the processes of an instance have logged, in the order of time."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from remora.cli.errors import CommandError
from remora.home import Home
from remora.observe.log_reading import (
    LogEntry,
    LogTail,
    entries_of,
    in_order,
    merged_entries,
    parse_since,
    select_logs,
)
from remora.types import Seconds

#: Shown when nothing says how many.
DEFAULT_LINES = 200
#: Looked at from the end of each file for each entry that is to be shown.
_BYTES_PER_ENTRY = 4096
#: Between two looks while following.
_LOOK_EVERY_S: Seconds = 0.2


@dataclass(frozen=True)
class LogQuery:
    """Which entries somebody wants to see.

    Attributes:
        target: `<application>` or `<application>/<deployment>`; empty: all.
        request_id: of one request; empty: of any, and of none.
        since: Unix time; None: from the beginning.
        lines: so many at the end; None: all that are found.
        access: with the access logs of front doors.
        follow: go on with what is logged from now on.
    """

    target: str = ""
    request_id: str = ""
    since: float | None = None
    lines: int | None = None
    access: bool = False
    follow: bool = False

    def wants(self, entry: LogEntry) -> bool:
        """Say whether an entry is to be shown."""
        if self.request_id and entry.request_id != self.request_id:
            return False
        return self.since is None or entry.at >= self.since


def show_logs(
    target: str,
    *,
    request_id: str | None,
    since: str | None,
    lines: int | None,
    access: bool,
    follow: bool,
) -> None:
    """Print what was logged.

    Raises:
        CommandError: there are no logs of that name, or `since` is no time.
    """
    try:
        begin = None if since is None else parse_since(since, time.time())
    except ValueError as error:
        raise CommandError(str(error)) from None
    if lines is None and not request_id and begin is None:
        lines = DEFAULT_LINES
    query = LogQuery(target, request_id or "", begin, lines, access or bool(request_id), follow)
    folder = Home.locate().logs
    paths = select_logs(folder, target, access=query.access)
    if not paths and not follow:
        what = f"of {target!r} " if target else ""
        raise CommandError(
            f"There are no logs {what}in {folder}. `remora status` shows which applications run; "
            "the environment variable REMORA_HOME names another folder."
        )
    # Looked up before anything is read: what is logged meanwhile is shown, and once.
    tails = {path: LogTail(path, _size(path)) for path in paths} if follow else {}
    found = _print(_selected(paths, query))
    if request_id and not found:
        click.echo(f"No line of the logs in {folder} has the request id {request_id!r}.", err=True)
    if follow:
        try:
            _follow(folder, query, tails)
        except KeyboardInterrupt:
            return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _selected(paths: list[Path], query: LogQuery) -> Iterable[LogEntry]:
    exact = query.request_id or query.since is not None
    from_end = None if query.lines is None or exact else (query.lines + 1) * _BYTES_PER_ENTRY
    entries = merged_entries([entries_of(path, from_end) for path in paths])
    wanted = (entry for entry in entries if query.wants(entry))
    return wanted if query.lines is None else deque(wanted, maxlen=query.lines)


def _follow(folder: Path, query: LogQuery, tails: dict[Path, LogTail]) -> None:
    while True:
        for path in select_logs(folder, query.target, access=query.access):
            if path not in tails:
                tails[path] = LogTail(path)
        new = [entry for tail in tails.values() for entry in tail.read()]
        _print(entry for entry in in_order(new) if query.wants(entry))
        time.sleep(_LOOK_EVERY_S)


def _print(entries: Iterable[LogEntry]) -> int:
    """Print entries and say how many there were."""
    out = sys.stdout.buffer
    count = 0
    for entry in entries:
        out.write(entry.lines)
        count += 1
    out.flush()
    return count
