"""The first steps of the process at the top of an instance on Ray: is there a Ray that works?

Rules: imports no Ray before somebody can be told that it cannot be imported.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

from remora.engine.boot import answer

#: Ray's; read once, when it is imported.
_NO_STACKS = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"


def main() -> None:
    """Run a host with the options in the first argument."""
    try:
        import_ray()
    # Border: what Ray brings along fails as it likes, and whoever waits is to hear of it.
    except Exception as error:  # noqa: BLE001
        answer(json.loads(sys.argv[1])["ready_fd"], {"error": told(error)})
        sys.exit(1)
    importlib.import_module("remora.engine.ray.host").main()


def import_ray() -> None:
    """Import Ray so that this process, told to end, prints no stack of native code on the terminal.

    Only this one: replicas have something to crash of.

    Raises:
        Exception: it cannot be imported.
    """
    before = os.environ.get(_NO_STACKS)
    os.environ[_NO_STACKS] = before or "1"
    try:
        importlib.import_module("ray")
    finally:
        if before is None:
            del os.environ[_NO_STACKS]


def told(error: Exception) -> str:
    """Say that Ray cannot be imported, and what to do. Pure but for the interpreter's name."""
    line = str(error).strip().split("\n", 1)[0]
    return (
        f"Ray is installed and cannot be imported: {type(error).__name__}: {line}. "
        f"`{sys.executable} -c 'import ray'` shows all of it; pip install --force-reinstall "
        "'remora[ray]' repairs an installation that is not whole."
    )
