"""How processes of an instance on Ray are told to end, and how all of it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

import msgspec
import ray

from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.groups import remove_groups
from remora.engine.ray.nodes import Ask
from remora.engine.ray.setup import (
    ENDING,
    InstanceSetup,
    NodeRecord,
    ProcessRecord,
    find_node,
    forget,
)
from remora.errors import ConnectionLostError, EngineError
from remora.transport.channel import connect
from remora.transport.control import call_control
from remora.types import Seconds

_log = logging.getLogger("remora.engine")

#: Until an agent has passed a signal on.
_SIGNAL_LIMIT_S: Seconds = 2.0


class SignalProcess(msgspec.Struct, frozen=True):
    """The body of an agent's command `signal`."""

    pid: int
    number: int


async def send_signal(node: NodeRecord, token: str, pid: int, number: int) -> None:
    """Have the agent of a node send a signal; that it cannot be reached is only logged."""
    try:
        async with asyncio.timeout(_SIGNAL_LIMIT_S):
            channel = await connect(node.address, name="engine", token=token)
            try:
                await call_control(channel, "signal", SignalProcess(pid, number))
            finally:
                channel.close()
    except (ConnectionLostError, TimeoutError) as error:
        _log.warning("Node %s does not pass signals on: %s", node.node_id[:12], error)


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

    Args:
        cluster: of the instance.
        setup: of the instance.
        grace_s: what the proxies have; 0: nothing.
        spare: name of an actor to leave, which then sees by `ENDING` that it is to end.

    Raises:
        EngineError: Ray's head does not answer.
    """
    cluster.put(ENDING, b"1")
    if grace_s > 0:
        _end_proxies(cluster, setup, grace_s)
    for name in cluster.names():
        if name != spare:
            cluster.kill(name)
    remove_groups(cluster.namespace)
    forget(cluster)
    if spare:
        cluster.put(ENDING, b"1")


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


async def _all(work: list[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*work)
