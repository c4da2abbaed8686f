"""Who lives and does nothing: a process whose event loop does not turn any more.

Ray restarts a process that is gone, and knows nothing of one that is stopped, stuck in the kernel or in
a loop of its own. The agent of a node looks at the signs of life of the permanent processes
there (`observe/heartbeat.py`), the controller asks the agents.

Rules: `Silence` is pure; time is an argument.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from remora.engine import linux
from remora.home import Home
from remora.types import Seconds

_log = logging.getLogger("remora.agent")
K = TypeVar("K", bound=Hashable)

LOOK_EVERY_S: Seconds = 5.0
#: Longer than a machine under load takes for a turn of a loop, and than a debugger looks at a process.
SILENT_S: Seconds = 30.0
#: Who looks later than this was away himself, with the whole machine perhaps: nothing is known.
_AWAY_S: Seconds = 15.0
_SUFFIX = ".beat"


class Silence(Generic[K]):
    """How long each has been silent."""

    def __init__(self) -> None:
        #: The last sign of each, and since when it has been the same.
        self._since: dict[K, tuple[object, Seconds]] = {}
        self._looked: Seconds | None = None

    def look(self, signs: Mapping[K, object], now: Seconds) -> list[K]:
        """Take note of the signs of all; returns those that have given the same for `SILENT_S`.

        Args:
            signs: anything that changes while one lives.
            now: monotonic seconds.
        """
        was_away = self._looked is None or now - self._looked > _AWAY_S
        self._looked = now
        before = {} if was_away else self._since
        self._since = {
            key: before[key] if key in before and before[key][0] == sign else (sign, now)
            for key, sign in signs.items()
        }
        return [key for key, (_, since) in self._since.items() if now - since >= SILENT_S]


def beat_file(home: Home, kind: str, pid: int) -> Path:
    """Where a process shows that it lives. Pure."""
    return home.sockets / f"{kind[0]}{pid}{_SUFFIX}"


def read_beats(home: Home) -> dict[Path, int]:
    """Read when each process of this node has last shown that it lives."""
    found = {}
    for path in home.sockets.glob(f"*{_SUFFIX}"):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def end_silent(path: Path) -> None:
    """Kill the process that a file is of, if it is still there, and remove the file."""
    pid = int(path.name[1 : -len(_SUFFIX)])
    ticks, _, name = path.read_text(encoding="utf-8").partition(" ")
    path.unlink(missing_ok=True)
    if linux.started_ticks(pid) != int(ticks):
        return  # It is gone, and another one may have its pid.
    _log.error(
        "%s (pid %d) has shown no sign of life for %g s: it is killed, and Ray starts it again",
        name,
        pid,
        SILENT_S,
    )
    linux.send_signal(pid, signal.SIGKILL)
