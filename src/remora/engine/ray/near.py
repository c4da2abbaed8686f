"""The instance of the Ray cluster that a program is in: in a Ray task, an actor, a driver."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from remora.engine.ray import cluster as rays
from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.default_cluster import is_named
from remora.engine.ray.relay import is_idle_worker
from remora.engine.ray.setup import ENDING, find_setup
from remora.errors import EngineError
from remora.home import Home
from remora.transport import way_back

_log = logging.getLogger("remora.engine")


def find_home() -> Home | None:
    """Find the state folder on this node of the cluster's instance, where an agent answers.

    A node without replicas may have none: one is started then, and stays for as long as somebody on
    that node is connected. Blocks, for a second or two in that case.

    None: this program is in no cluster, or that has no instance.

    Raises:
        EngineError: the agent cannot be started; says why.
    """
    home = _find_home()
    way_back.use(_restore)
    return home


def _find_home() -> Home | None:
    if not ray.is_initialized():
        return None
    cluster = Cluster()
    try:
        setup = find_setup(cluster)
        is_ending = cluster.get(ENDING) is not None
    except EngineError:
        return None
    if setup is None or is_ending:
        return None
    here = rays.here()
    fleet.ensure_agent(cluster, here.node_id)
    return setup.home_on(here.node_id, here.session)


def _restore(_: Home) -> None:
    """Have an agent come back to this node for a program whose connection to it is gone.

    Not for a worker that Ray keeps for later: it has no use for one before its next task.
    """
    try:
        if not is_idle_worker(os.getpid()):
            _find_home()
    # Border: nobody hears what is raised here, and the program would follow the controller no more.
    except Exception as error:  # noqa: BLE001
        _log.warning("The instance cannot be reached from this node: %s", error)


def is_joined() -> bool:
    """This program is in a cluster, or will be as soon as it uses Ray."""
    return bool(ray.is_initialized()) or is_named()


def put(value: Any) -> Any:
    """Keep a value in Ray's object store; returns the reference.

    Raises:
        RuntimeError: this program is in no cluster.
    """
    if not is_joined():
        raise RuntimeError(
            "An object reference needs a Ray cluster, and this program is in none: call ray.init() "
            "first, or pass the response itself to the next call."
        )
    return ray.put(value)
