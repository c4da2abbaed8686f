"""The permanent processes of a node: its agent, its proxies, and the REST API.

Rules: starts and ends them; that they stay is Ray's doing.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from remora.engine.doors import default_num_proxies
from remora.engine.ray.actor import Actor
from remora.engine.ray.cluster import HEAD_RESOURCE, Cluster, RayNode
from remora.engine.ray.crashes import Crashes, reason_of
from remora.engine.ray.process import ProcessRequest
from remora.engine.ray.setup import (
    BETWEEN_LOOKS_S,
    START_LIMIT_S,
    InstanceSetup,
    NodeRecord,
    failure_key,
    find_node,
    is_leaving,
)
from remora.errors import EngineError, InstanceError
from remora.types import Seconds, is_replica

_log = logging.getLogger("remora.engine")

CONTROLLER = "controller"
#: Of what Ray's head offers there is 1; it says where that is, and is not to be used up.
_A_LITTLE = 0.001
#: An agent that cannot even be loaded on its node ends within a second.
_MOST_RESTARTS = 3
_RESTART_LOOK_S = 0.5


def agent_name(node_id: str) -> str:
    """Name of a node's agent. Pure."""
    return f"agent@{node_id[:12]}"


def proxy_name(node_id: str, number: int, *, home: bool) -> str:
    """Name of a proxy; on the node where the instance was started without the node. Pure."""
    return f"proxy-{number}" if home else f"proxy-{number}@{node_id[:12]}"


def is_proxy(name: str) -> bool:
    """Tell a proxy by the name of its actor. Pure."""
    return name.startswith("proxy-") and not is_replica(name)


def admin_name(node_id: str) -> str:
    """Name of the process of the REST API on a node. Pure."""
    return f"admin@{node_id[:12]}"


def is_permanent(name: str) -> bool:
    """Tell all but replicas by the names of their actors. Pure."""
    named = name == CONTROLLER or name.startswith(("agent@", "admin@", "proxy-"))
    return named and not is_replica(name)


def create(
    request: ProcessRequest,
    *,
    node_id: str = "",
    soft: bool = False,
    options: dict[str, Any] | None = None,
) -> Any:
    """Make the actor of a process; returns its handle at once.

    Args:
        request: what to run.
        node_id: where; empty: anywhere.
        soft: True: elsewhere if there is no room.
        options: of the actor, its resources.
    """
    given: dict[str, Any] = {
        "name": request.process_id,
        "namespace": request.namespace,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1 if request.permanent else 0,
        **(options or {}),
    }
    if node_id and "scheduling_strategy" not in given:
        given["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
            node_id, soft=soft, _spill_on_unavailable=soft
        )
    return ray.remote(Actor).options(**given).remote(msgspec.msgpack.encode(request))


def start_controller(cluster: Cluster, setup: InstanceSetup, node: RayNode) -> Any:
    """Start the controller next to Ray's head; returns its actor.

    It is bound to what Ray's head offers rather than to that node: a head that comes again elsewhere,
    with the same store, has it as well, and Ray starts the controller there.

    Raises:
        EngineError: Ray takes no such actor, or its head does not answer.
    """
    request = ProcessRequest(
        process_id=CONTROLLER,
        kind="controller",
        entrypoint=setup.controller,
        title="remora: controller",
        namespace=cluster.namespace,
        args={
            "engine": "ray",
            "namespace": cluster.namespace,
            "bound": bool(setup.bound_job),
            "logging": setup.logging,
            "tracing": setup.tracing,
        },
        permanent=True,
    )
    options = {"resources": {HEAD_RESOURCE: _A_LITTLE}} if node.is_head else {}
    return _create_once(cluster, request, "" if options else node.node_id, options)


def begin_agent(cluster: Cluster, node_id: str) -> Any:
    """Find the agent of a node, or begin to start it; returns its actor.

    Raises:
        EngineError: Ray takes no such actor, or its head does not answer.
    """
    name = agent_name(node_id)
    found = cluster.actor(name)
    if found is not None:
        return found
    request = ProcessRequest(
        process_id=name,
        kind="agent",
        entrypoint="remora.engine.ray.agent:main",
        title="remora: agent",
        namespace=cluster.namespace,
        args={"namespace": cluster.namespace},
        permanent=True,
    )
    return _create_once(cluster, request, node_id)


def ensure_agent(cluster: Cluster, node_id: str) -> NodeRecord:
    """Find the agent of a node, or start it and wait until it is up. Blocks.

    Anybody may do so: the controller has it leave again when nobody is there who needs it.

    Raises:
        InstanceError: it cannot start; says why.
        EngineError: Ray's head does not answer.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while is_leaving(cluster, node_id):
        # It is about to be gone, or has refused to go. Whoever asked it to sees to that.
        if time.monotonic() >= deadline:
            raise InstanceError(
                f"The agent of node {node_id[:12]} has been on its way out for {START_LIMIT_S:g} s. "
                "Does the controller run? `ray list actors` shows it in the namespace 'remora'."
            )
        time.sleep(BETWEEN_LOOKS_S)
    found = find_node(cluster, node_id)
    if found is not None:
        return found
    return wait_up(cluster, node_id, begin_agent(cluster, node_id))


def wait_up(cluster: Cluster, node_id: str, actor: Any) -> NodeRecord:
    """Wait until the agent of a node is up. Blocks.

    Raises:
        InstanceError: it cannot start; says why.
    """
    deadline = time.monotonic() + START_LIMIT_S
    ended = actor.ended.remote()
    while True:
        data = cluster.get(NodeRecord.key(node_id))
        if data is not None:
            return msgspec.msgpack.decode(data, type=NodeRecord)
        done, _ = ray.wait([ended], timeout=BETWEEN_LOOKS_S)
        if done:
            failure = cluster.get(failure_key(agent_name(node_id)))
            if failure is not None:
                raise InstanceError(failure.decode())
            try:
                reason = ray.get(ended)[0]
            except ray.exceptions.ActorUnavailableError:
                # Ray starts it again: it has not said anything yet.
                _require_life(cluster, agent_name(node_id))
                ended = actor.ended.remote()
                time.sleep(_RESTART_LOOK_S)
                continue
            except ray.exceptions.RayError as error:
                reason = reason_of(error)
            raise InstanceError(f"The agent of node {node_id[:12]} does not come up: {reason}")
        if time.monotonic() >= deadline:
            raise InstanceError(
                f"The agent of node {node_id[:12]} is not up after {START_LIMIT_S:g} s. Is the node "
                "very busy? `ray status` shows what waits."
            )


def _require_life(cluster: Cluster, name: str) -> None:
    """See that an agent that was never up does not end again and again: Ray would go on for ever.

    Raises:
        InstanceError: it does; it is taken away.
    """
    found = cluster.actors().get(name)
    if found is None or found.restarts < _MOST_RESTARTS:
        return
    cluster.kill(name)
    raise InstanceError(
        "its agent ends as soon as Ray has started it: install the same version of Remora, and of what "
        "it needs, on every node; Ray's logs on that node say what is missing"
    )


def ensure_proxies(cluster: Cluster, setup: InstanceSetup, node: RayNode) -> None:
    """Start the proxies of a node that are missing, where there are to be any. Blocks.

    They wait for the agent of the node, which has their sockets.

    Raises:
        InstanceError: its front doors cannot be opened; says why.
        EngineError: Ray's head does not answer.
    """
    if not setup.has_proxies(is_head=node.is_head):
        return
    record = find_node(cluster, node.node_id)
    if record is not None and record.no_doors:
        raise InstanceError(record.no_doors)
    there = set(cluster.names())
    number_of = int(
        setup.http.get("num_proxies") or default_num_proxies(int(node.resources.get("CPU", 1)))
    )
    for number in range(1, number_of + 1):
        name = proxy_name(node.node_id, number, home=node.node_id == setup.node_id)
        if name in there:
            continue
        request = ProcessRequest(
            process_id=name,
            kind="proxy",
            entrypoint=setup.proxy,
            title="remora: proxy",
            namespace=cluster.namespace,
            args={
                "http": setup.http,
                "name": name,
                "logging": setup.logging,
                "tracing": setup.tracing,
                "index": number - 1,
                "num_proxies": number_of,
            },
            permanent=True,
        )
        _create_once(cluster, request, node.node_id)


def remove(cluster: Cluster, node_id: str, patience_s: Seconds = 0.0) -> None:
    """Leave nothing of the permanent processes of a node. Blocks; may be called again.

    Args:
        cluster: of the instance.
        node_id: of a node that is gone, or whose agent has left.
        patience_s: proxies, which have been told to end, have so long.

    Raises:
        EngineError: Ray's head does not answer.
    """
    mark = f"@{node_id[:12]}"
    names = [name for name in cluster.names() if name.endswith(mark)]
    if patience_s > 0:
        actors = [cluster.actor(name) for name in names if is_proxy(name)]
        ends = [actor.ended.remote() for actor in actors if actor is not None]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=patience_s)
    for name in names:
        cluster.kill(name)
        # One that was to come back meanwhile has said that it may not.
        cluster.delete(failure_key(name))
        cluster.delete(Crashes.key(name))
    cluster.delete(NodeRecord.key(node_id))


def ensure_admin(cluster: Cluster, setup: InstanceSetup, node_id: str) -> None:
    """Start the process of the REST API on a node, unless it is there. Blocks.

    Raises:
        EngineError: Ray's head does not answer.
    """
    name = admin_name(node_id)
    if cluster.actor(name) is not None:
        return
    front = {
        "http": setup.http,
        "grpc": setup.grpc and {"port": setup.grpc["port"]},
        "proxy_location": setup.proxy_location,
    }
    request = ProcessRequest(
        process_id=name,
        kind="admin",
        entrypoint="remora.rest.main:main",
        title="remora: admin",
        namespace=cluster.namespace,
        args={"host": setup.admin.get("host"), "options": front, "token": setup.admin_token},
        permanent=True,
    )
    _create_once(cluster, request, node_id)


def _create_once(
    cluster: Cluster, request: ProcessRequest, node_id: str, options: dict[str, Any] | None = None
) -> Any:
    """Make the actor of a process, unless somebody else, who also saw it missing, was quicker.

    Returns the actor.
    """
    try:
        return create(request, node_id=node_id, options=options)
    except ValueError as error:
        # Ray's word for a name that is taken.
        found = cluster.actor(request.process_id)
        if found is None:
            raise EngineError(f"Ray takes no actor {request.process_id}: {error}") from error
        return found
