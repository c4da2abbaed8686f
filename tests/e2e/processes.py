"""The processes of an instance under test, found without the product's help.

Every process that a test starts carries a mark in its environment, and so does all that those
start in their turn, whatever session or process group they are in.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: The environment variable that holds the mark.
MARK = "REMORA_E2E_MARK"
#: Of Ray: they hear only after a minute that what they belong to was killed, and then end.
_SLOW_TO_END = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@contextmanager
def marking() -> Iterator[str]:
    """Mark whatever is started inside of the `with` block; the mark is its value."""
    before = os.environ.get(MARK)
    mark = os.environ[MARK] = secrets.token_hex(8)
    try:
        yield mark
    finally:
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


def marked(mark: str) -> list[int]:
    """The living processes that carry `mark`, without this one. Zombies are not alive."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # A zombie has an empty environment, and so is never found.
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if not title(pid).startswith(_SLOW_TO_END)]


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def title(pid: int) -> str:
    """What `ps` shows; empty for a process that is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip(" \x01")


@dataclass(frozen=True)
class Usage:
    """What one process holds."""

    rss_bytes: int
    num_fds: int
    num_threads: int


def usage(pid: int) -> Usage | None:
    """What a process holds now; None: it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text().split()[1])
        fds = len(list((folder / "fd").iterdir()))
        threads = len(list((folder / "task").iterdir()))
    except OSError:
        return None
    return Usage(pages * os.sysconf("SC_PAGE_SIZE"), fds, threads)
