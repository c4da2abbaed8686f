"""The first steps of a process at the top of an instance, and its answer to who launched it.

Rules: standard library and the lowest layer of the package only; the supervisor imports this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any


def close_strangers(keep: Collection[int | None]) -> None:
    """Close what the owning program left open for its children by accident."""
    for path in list(Path("/proc/self/fd").iterdir()):
        fd = int(path.name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed the folder


def read_grpc(fd: int | None) -> dict[str, Any] | None:
    """Read the setup for gRPC from a file in memory; None: there is none."""
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        setup: dict[str, Any] = json.load(file)
    return setup


def answer(fd: int | None, message: dict[str, Any]) -> None:
    """Tell who launched this process how it went, once."""
    if fd is None:
        return
    try:
        os.write(fd, json.dumps(message, separators=(",", ":")).encode() + b"\n")
    except OSError:
        pass  # the owner is gone, which its own pipe says as well
    os.close(fd)
