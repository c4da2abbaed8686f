"""The cluster that `ray` means in a program that has connected it to none: that of its instance.

`ray.put` and its like connect a program by themselves, to what the environment names, else to the
newest cluster of the machine, else to a new one of their own. To connect it here would take every
program a second or more, also those that never use Ray.

Rules: imports no Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

ADDRESS = "RAY_ADDRESS"
_MODE = "RAY_AUTH_MODE"
#: The instance of this program is in a cluster.
_is_in_one = False


def settings(cluster: str, environment: Mapping[str, str], *, shows_token: bool) -> dict[str, str]:
    """Return what names a cluster in an environment that names none yet. Pure.

    Args:
        cluster: its address; empty: none.
        environment: what somebody has set stays.
        shows_token: the instance shows the user's token to it.
    """
    if not cluster or environment.get(ADDRESS):
        return {}
    mode = {_MODE: "token"} if shows_token and _MODE not in environment else {}
    return {ADDRESS: cluster, **mode}


def is_named() -> bool:
    """Ray would connect this program to a cluster, and its instance is in one.

    The variable alone says nothing: pods and jobs of Ray have it, whatever runs in them.
    """
    return _is_in_one and bool(os.environ.get(ADDRESS))


def begin(cluster: str, *, shows_token: bool) -> dict[str, str]:
    """Name the cluster of an instance to Ray; returns what was set for that."""
    global _is_in_one
    _is_in_one = bool(cluster)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return {}
    made = settings(cluster, os.environ, shows_token=shows_token)
    os.environ.update(made)
    _read_again(made)
    return made


def end(made: Mapping[str, str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Take back what was set, unless somebody has set it to something else."""
    global _is_in_one
    _is_in_one = False
    for name, value in made.items():
        if environment.get(name) == value:
            del environment[name]
    _read_again(made)


def _read_again(made: Mapping[str, str]) -> None:
    """Have Ray, which has read the mode when it was imported, look again."""
    if _MODE in made and "ray" in sys.modules:
        from remora.engine.ray.sign_in import read_again

        read_again()
