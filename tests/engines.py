"""Which engine the end-to-end tests and the examples run on: what `pytest --engine` says.

Commands and scripts under test are told by the environment, as a user tells them, so no test says
an engine of its own. Every instance on Ray has a Ray of its own, which ends with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from remora.config import EngineOptions, engine_options

ENGINES = ("local", "ray")
#: Folders of tests that run on the chosen engine; the others run on none.
FOLDERS = tuple(Path(__file__).with_name(name) for name in ("e2e", "examples", "gpu"))
#: Ray starts in seconds and a replica in half of one, where the embedded engine takes milliseconds.
_PATIENCE_ON_RAY = 5.0
_RAY = {
    "REMORA_ADDRESS": "local",
    # On Ray each replica reserves a processor, and tests have more replicas than this machine those.
    # From eight on there would be more than one proxy.
    "RAY_OVERRIDE_RESOURCES": '{"CPU": 7}',
    # Else Ray would start a worker for each of them before any is asked for.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def choose(engine: str) -> None:
    """Let everything that this process starts run on `engine`."""
    if engine == "ray":
        os.environ.update(_RAY)


def is_ray() -> bool:
    """Whether Ray was chosen."""
    return os.environ.get("REMORA_ADDRESS") == "local"


def chosen() -> EngineOptions:
    """The options of an instance that a test starts."""
    return engine_options()


def patient(seconds: float) -> float:
    """Return what takes `seconds` at most on the embedded engine, on the chosen one."""
    return seconds * _PATIENCE_ON_RAY if is_ray() else seconds
