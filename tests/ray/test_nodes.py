"""Several nodes: replicas spread, every node has its front door, a node dies or drains under load."""

from __future__ import annotations

from typing import Any

import msgspec
import ray
from ray.cluster_utils import Cluster as RayCluster
from ray.core.generated import autoscaler_pb2
from tests.e2e.instances import Instance
from tests.e2e.load import get, load
from tests.e2e.waiting import until_async
from tests.ray.apps import Echo
from tests.ray.conftest import STORE_BYTES

from remora.engine.ray.cluster import Cluster, this_node
from remora.engine.ray.setup import NodeRecord


async def record_of(instance: Instance, node_id: str) -> NodeRecord:
    """What the agent of a node says, once the node takes replicas and has its proxy."""
    name = f"proxy-1@{node_id[:12]}"
    await instance.wait(
        lambda status: any(proxy.name == name and proxy.pid for proxy in status.proxies),
        "the new node has its proxy",
        timeout_s=30.0,
    )
    found = Cluster().get(NodeRecord.key(node_id))
    assert found is not None
    return msgspec.msgpack.decode(found, type=NodeRecord)


async def lie_on(instance: Instance, name: str, nodes: list[str]) -> None:
    """Wait until one replica of `name` on each of `nodes` answers, and no other one."""
    handle: Any = instance.handle("Echo", name)

    async def ask() -> bool:
        # One that has just gone fails, and is asked no more the next time.
        found = await handle.broadcast("where").results_async(return_exceptions=True)
        return sorted(map(str, found)) == sorted(nodes)

    await until_async(ask, f"{name} answers from {nodes}", 40.0)


async def answered_on(url: str, node_id: str) -> None:
    """Wait until a front door knows the replica next to it, and asks that one alone."""

    async def ask() -> bool:
        return bool((await get(url)).json["node"] == node_id)

    await until_async(ask, f"{url} answers from {node_id}")
    assert [await ask() for _ in range(10)] == [True] * 10


def drain(cluster: RayCluster, node_id: str) -> None:
    accepted, why = ray._raylet.GcsClient(address=cluster.gcs_address).drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "a test",
        0,
    )
    assert accepted, why


async def says_that_it_drains(instance: Instance, door: NodeRecord, node_id: str) -> None:
    """A front door of a node that drains sends load balancers away, and serves who comes."""

    async def ask() -> bool:
        return (await get(f"{door.http_url}/-/healthz")).status == 503

    await until_async(ask, f"{door.http_url} is unhealthy")
    assert b"is being drained" in (await get(f"{door.http_url}/-/healthz")).body
    assert (await get(f"{door.http_url}/drained")).status == 200
    status = await instance.status()
    assert status.draining == (node_id,)
    proxies = {proxy.node_id: proxy.status for proxy in status.proxies}
    assert proxies == {node_id: "DRAINING", this_node(): "HEALTHY"}


async def test_nodes_come_serve_and_go_under_load(instance: Instance, cluster: RayCluster) -> None:
    head = ray.get_runtime_context().get_node_id()
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    second = str(node.node_id)
    door = await record_of(instance, second)
    async with instance.running(Echo.options(num_replicas=2).bind(), "spread") as url:
        await lie_on(instance, "spread", [head, second])
        # Each front door has an address of its own here, and prefers the replicas next to it.
        for address, expected in ((url, head), (f"{door.http_url}/spread", second)):
            await answered_on(address, expected)
        proxies = {proxy.name for proxy in (await instance.status()).proxies}
        assert proxies == {"proxy-1", f"proxy-1@{second[:12]}"}
        async with load(url) as traffic:
            await traffic.more(50)
            cluster.remove_node(node, allow_graceful=False)
            await lie_on(instance, "spread", [head, head])
            await traffic.more(50)
        assert traffic.failures == []


async def test_a_node_that_drains_is_left_under_load(
    instance: Instance, cluster: RayCluster
) -> None:
    head = ray.get_runtime_context().get_node_id()
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    third = str(node.node_id)
    door = await record_of(instance, third)
    async with instance.running(Echo.options(num_replicas=2).bind(), "drained") as url:
        await lie_on(instance, "drained", [head, third])
        async with load(url) as traffic:
            await traffic.more(50)
            assert (await get(f"{door.http_url}/-/healthz")).status == 200
            drain(cluster, third)
            await lie_on(instance, "drained", [head, head])
            await traffic.more(50)
        assert traffic.failures == []
        await says_that_it_drains(instance, door, third)
    cluster.remove_node(node)
