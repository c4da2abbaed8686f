"""The instance of the Ray cluster that a program is in: in a Ray task, an actor, a driver."""

from __future__ import annotations

from typing import Any

import ray

from remora.engine.ray import cluster as rays
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.setup import find_setup
from remora.errors import EngineError
from remora.home import Home


def find_home() -> Home | None:
    """Find the state folder on this node of the cluster's instance.

    None: this program is in no cluster, or that has no instance.
    """
    if not ray.is_initialized():
        return None
    try:
        setup = find_setup(Cluster())
    except EngineError:
        return None
    if setup is None:
        return None
    here = rays.here()
    return setup.home_on(here.node_id, here.session)


def is_joined() -> bool:
    """This program is in a cluster."""
    return bool(ray.is_initialized())


def put(value: Any) -> Any:
    """Keep a value in Ray's object store; returns the reference.

    Raises:
        RuntimeError: this program is in no cluster.
    """
    if not ray.is_initialized():
        raise RuntimeError(
            "An object reference needs a Ray cluster, and this program is in none: call ray.init() "
            "first, or pass the response itself to the next call."
        )
    return ray.put(value)
