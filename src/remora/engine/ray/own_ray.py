"""A Ray that Remora starts: what it is told, and what is done while it comes up.

Rules: nothing depends on it; without it everything works as well, slower.
"""

from __future__ import annotations

import contextlib
import importlib
from types import MappingProxyType

#: What Ray imports in each process that first sends or takes a value.
_OF_RAY = ("pydantic.fields", "pydantic.v1.fields", "starlette.datastructures")
#: What every actor of an instance imports, and every replica; by names, for no engine knows those.
_OF_ACTORS = (
    "remora.engine.ray.process",
    "remora.replica.main",
    "remora.deployment",
    "starlette.requests",
)
#: Environment of its processes; other versions of Ray pass over what they do not know.
OWN_RAY = MappingProxyType(
    {
        # Ray starts the first workers while the program that started it still waits, so what they
        # import before they are asked costs no time; nearly all become processes of an instance.
        "RAY_preload_python_modules": ",".join(_OF_RAY + _OF_ACTORS),
        # A node that finds its own object store not listening yet, which is chance, sleeps a whole
        # second before it looks again, and everything waits for it. Ten seconds in all are Ray's
        # patience, too.
        "RAY_raylet_client_connect_timeout_milliseconds": "20",
        "RAY_raylet_client_num_connect_attempts": "500",
        # Ray has its workers give way to everything else (15), which is right for tasks. A proxy
        # with several threads that gives way to its clients does a fifth less.
        "RAY_worker_niceness": "0",
    }
)


def load_ahead() -> None:
    """Import, in a thread while Ray comes up, what this process needs when it makes its first actor.

    That is a tenth of a second.
    """
    for module in _OF_RAY:
        # Whoever needs it says what is wrong with it.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
