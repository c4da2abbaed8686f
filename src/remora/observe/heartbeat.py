"""How a process shows that its event loop turns: a file that it touches now and then.

Who looks at it finds a process that lives and does nothing: stopped, stuck in the kernel, or in a
loop of its own. Processes that run code of users have health checks instead.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from remora.engine import linux
from remora.types import Seconds

#: A touch takes two microseconds.
BEAT_EVERY_S: Seconds = 5.0


def begin_to_beat(path: Path | None, name: str) -> None:
    """Touch a file for as long as the running loop turns.

    Args:
        path: of it; it is made, and says whose it is. None: nobody looks.
        name: of this process.
    """
    if path is None:
        return
    draft = path.with_suffix(".new")
    draft.write_text(f"{linux.started_ticks(os.getpid())} {name}", encoding="utf-8")
    draft.replace(path)
    _beat(path)


def _beat(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        return  # It was removed: the instance ends.
    asyncio.get_running_loop().call_later(BEAT_EVERY_S, _beat, path)
