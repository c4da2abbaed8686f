"""The first steps of the process at the top of an instance on Ray: is there a Ray that works?

Rules: imports no Ray before somebody can be told that it cannot be imported.
"""

from __future__ import annotations

import importlib
import json
import sys

from remora.engine.boot import answer


def main() -> None:
    """Run a host with the options in the first argument."""
    try:
        importlib.import_module("ray")
    # Border: what Ray brings along fails as it likes, and whoever waits is to hear of it.
    except Exception as error:  # noqa: BLE001
        answer(json.loads(sys.argv[1])["ready_fd"], {"error": told(error)})
        sys.exit(1)
    importlib.import_module("remora.engine.ray.host").main()


def told(error: Exception) -> str:
    """Say that Ray cannot be imported, and what to do. Pure but for the interpreter's name."""
    line = str(error).strip().split("\n", 1)[0]
    return (
        f"Ray is installed and cannot be imported: {type(error).__name__}: {line}. "
        f"`{sys.executable} -c 'import ray'` shows all of it; pip install --force-reinstall "
        "'remora[ray]' repairs an installation that is not whole."
    )
