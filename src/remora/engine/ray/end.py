"""How processes of an instance on Ray are told to end, and how all of it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import RayError

from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.groups import remove_groups
from remora.engine.ray.head import Ask
from remora.engine.ray.setup import (
    BETWEEN_LOOKS_S,
    ENDING,
    InstanceSetup,
    NodeRecord,
    ProcessRecord,
    find_node,
    forget,
)
from remora.errors import ConnectionLostError, EngineError, RemoteError
from remora.transport.channel import connect
from remora.transport.control import call_control
from remora.types import Seconds

_log = logging.getLogger("remora.engine")
T = TypeVar("T")

#: Until an agent has answered, which asks at most its proxies, a second each.
_AGENT_LIMIT_S: Seconds = 5.0
#: Steps of the end that fail are tried again for so long: Ray's head may be on its way back.
_TRY_FOR_S: Seconds = 10.0
_BETWEEN_TRIES_S: Seconds = 0.1


class SignalProcess(msgspec.Struct, frozen=True):
    """The body of an agent's command `signal`."""

    pid: int
    number: int


async def ask_agent(
    node: NodeRecord,
    token: str,
    method: str,
    body: msgspec.Struct | None = None,
    reply: type[T] | None = None,
) -> T:
    """Call a method of the agent of a node.

    Raises:
        ConnectionLostError: it cannot be reached, or went away.
        TimeoutError: no answer in time.
        RemoteError: the method raised.
    """
    async with asyncio.timeout(_AGENT_LIMIT_S):
        channel = await connect(node.address, name="engine", token=token)
        try:
            return await call_control(channel, method, body, reply)
        finally:
            channel.close()


async def send_signal(node: NodeRecord, token: str, pid: int, number: int) -> None:
    """Have the agent of a node send a signal; that it cannot be reached is only logged."""
    await _tell(node, token, "signal", SignalProcess(pid, number))


async def _tell(
    node: NodeRecord, token: str, command: str, body: msgspec.Struct | None = None
) -> None:
    """Give the agent of a node a command; that it cannot be reached is only logged."""
    try:
        await ask_agent(node, token, command, body)
    except (ConnectionLostError, RemoteError, TimeoutError) as error:
        _log.warning("The agent of node %s does not %s: %s", node.node_id[:12], command, error)


async def ask_to_end(ask: Ask, cluster: Cluster, token: str, record: ProcessRecord) -> None:
    """Send SIGTERM to a process. That it cannot be reached is only logged: its killer will.

    Args:
        ask: for what blocks.
        cluster: of the instance.
        token: of the instance.
        record: of the process.
    """
    try:
        node = await ask(find_node, cluster, record.node_id)
    except EngineError as error:
        _log.warning("%s gets no SIGTERM: %s", record.process_id, error)
        return
    # A node that is gone needs none.
    if node is not None:
        await send_signal(node, token, record.pid, signal.SIGTERM)


def end_processes(
    cluster: Cluster, setup: InstanceSetup, grace_s: Seconds, *, spare: str = ""
) -> None:
    """End everything: the proxies first, which finish what they have; then the rest at once. Blocks.

    The agents remove before what lies about on their nodes, sockets above all.

    Every step is tried until it works or its time is up, and one that fails keeps none from being
    tried: what is left running holds the cluster's resources.

    Args:
        cluster: of the instance.
        setup: of the instance.
        grace_s: what the proxies have; 0: nothing.
        spare: name of an actor to leave, which then sees by `ENDING` that it is to end.

    Raises:
        EngineError: Ray's head does not answer, or something does not end.
    """
    steps: list[Callable[[], None]] = [partial(cluster.put, ENDING, b"1")]
    if grace_s > 0:
        steps.append(partial(_try_to_end_proxies, cluster, setup, grace_s))
    steps.append(partial(_leave_nodes, cluster, setup))
    steps.append(partial(kill_all, cluster, spare=spare))
    steps.append(partial(remove_groups, cluster.namespace))
    steps.append(partial(forget, cluster, spare=(ENDING,) if spare else ()))
    deadline = time.monotonic() + max(grace_s, 0.0) + _TRY_FOR_S
    failed = [error for step in steps if (error := _insist(step, deadline)) is not None]
    if failed:
        raise EngineError(f"The instance may be left in parts: {failed[0]}") from failed[0]


def kill_all(cluster: Cluster, *, spare: str = "") -> None:
    """Kill every actor of an instance. Blocks.

    The controller is the first, because it replaces what it sees die; what it began in its last
    moment is found by looking again.

    Args:
        cluster: of the instance.
        spare: name of an actor to leave.

    Raises:
        EngineError: Ray's head does not answer, or some do not end.
    """
    deadline = time.monotonic() + _TRY_FOR_S
    while names := [name for name in cluster.names() if name != spare]:
        if time.monotonic() >= deadline:
            raise EngineError(f"Ray has not ended {', '.join(sorted(names)[:5])}")
        for name in sorted(names, key=lambda name: name != fleet.CONTROLLER):
            cluster.kill(name)
        time.sleep(BETWEEN_LOOKS_S)


def _insist(step: Callable[[], None], deadline: Seconds) -> EngineError | None:
    """Do a step of the end until it works or time is up; returns why it does not."""
    while True:
        try:
            step()
        except EngineError as error:
            if time.monotonic() >= deadline:
                return error
            _log.warning("The end of the instance is held up: %s", error)
            time.sleep(_BETWEEN_TRIES_S)
        else:
            return None


def _try_to_end_proxies(cluster: Cluster, setup: InstanceSetup, grace_s: Seconds) -> None:
    try:
        _end_proxies(cluster, setup, grace_s)
    except (EngineError, RayError) as error:
        # Not again: what they would have finished, their clients may repeat.
        _log.warning("Proxies are killed with what they have: %s", error)


def _end_proxies(cluster: Cluster, setup: InstanceSetup, grace_s: Seconds) -> None:
    node_ids = [key.partition("/")[2] for key in cluster.keys("node/")]
    ends, signals = [], []
    for name, proxy in cluster.actors().items():
        actor = cluster.actor(name) if fleet.is_proxy(name) and proxy.pid else None
        if actor is None:
            continue
        node_id = next((each for each in node_ids if name.endswith(f"@{each[:12]}")), setup.node_id)
        ends.append(actor.ended.remote())
        if (node := find_node(cluster, node_id)) is not None:
            signals.append(send_signal(node, setup.token, proxy.pid, signal.SIGTERM))
    asyncio.run(_all(signals))
    if ends:
        ray.wait(ends, num_returns=len(ends), timeout=grace_s)


def _leave_nodes(cluster: Cluster, setup: InstanceSetup) -> None:
    """Have the agents remove what lies about on their nodes."""
    nodes = [find_node(cluster, key.partition("/")[2]) for key in cluster.keys("node/")]
    work = [_tell(node, setup.token, "leave") for node in nodes if node is not None]
    asyncio.run(_all(work))


async def _all(work: list[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*work)
