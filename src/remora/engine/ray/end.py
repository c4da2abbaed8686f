"""How processes of an instance on Ray are told to end, and how all of it ends. Blocks."""

from __future__ import annotations

import asyncio
import logging
import signal

import msgspec
import ray

from remora.engine.ray import fleet
from remora.engine.ray.actor_options import remove_groups
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.setup import ENDING, InstanceSetup, NodeRecord, forget
from remora.errors import ConnectionLostError
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


def send_signal(
    cluster: Cluster, setup: InstanceSetup, node_id: str, pid: int, number: int
) -> None:
    """Have the agent of a node send a signal. A node that is gone needs none."""
    data = cluster.get(NodeRecord.key(node_id))
    if data is None:
        return
    address = msgspec.msgpack.decode(data, type=NodeRecord).address
    try:
        asyncio.run(_signal(address, setup.token, SignalProcess(pid, number)))
    except (ConnectionLostError, TimeoutError) as error:
        _log.warning("Node %s does not pass signals on: %s", node_id[:12], error)


async def _signal(address: str, token: str, order: SignalProcess) -> None:
    async with asyncio.timeout(_SIGNAL_LIMIT_S):
        channel = await connect(address, name="engine", token=token)
        try:
            await call_control(channel, "signal", order)
        finally:
            channel.close()


def end_processes(
    cluster: Cluster, setup: InstanceSetup, grace_s: Seconds, *, spare: str = ""
) -> None:
    """End everything: the proxies first, which finish what they have; then the rest at once.

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
    ends = []
    for name, proxy in cluster.actors().items():
        actor = cluster.actor(name) if fleet.is_proxy(name) and proxy.pid else None
        if actor is None:
            continue
        node_id = next((each for each in node_ids if name.endswith(f"@{each[:12]}")), setup.node_id)
        ends.append(actor.ended.remote())
        send_signal(cluster, setup, node_id, proxy.pid, signal.SIGTERM)
    if ends:
        ray.wait(ends, num_returns=len(ends), timeout=grace_s)
