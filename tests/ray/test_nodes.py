"""Several nodes: replicas spread, every node has its front door, a node dies or drains under load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster
from ray.core.generated import autoscaler_pb2
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.e2e.instances import Instance
from tests.e2e.load import get, load
from tests.e2e.waiting import until_async
from tests.ray.apps import Echo, asks
from tests.ray.conftest import REPOSITORY, STORE_BYTES

import remora
from remora.engine.ray.cluster import Cluster, this_node
from remora.engine.ray.setup import NodeRecord, find_staff
from remora.wire.control import InstanceStatus


async def joined(node_id: str) -> None:
    """Wait until a new node takes replicas."""

    async def ask() -> bool:
        return find_staff(Cluster(), node_id) is not None

    await until_async(ask, f"{node_id} takes replicas", 30.0)


async def record_of(instance: Instance, node_id: str) -> NodeRecord:
    """What the agent of a node says, once it has its proxy, which it has beside replicas."""
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
    await joined(second)
    async with instance.running(Echo.options(num_replicas=2).bind(), "spread") as url:
        await lie_on(instance, "spread", [head, second])
        door = await record_of(instance, second)
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
    await joined(third)
    async with instance.running(Echo.options(num_replicas=2).bind(), "drained") as url:
        await lie_on(instance, "drained", [head, third])
        door = await record_of(instance, third)
        async with load(url) as traffic:
            await traffic.more(50)
            assert (await get(f"{door.http_url}/-/healthz")).status == 200
            drain(cluster, third)
            await lie_on(instance, "drained", [head, head])
            await traffic.more(50)
        assert traffic.failures == []
        await says_that_it_drains(instance, door, third)
    cluster.remove_node(node)


def left(node_id: str) -> bool:
    """A node has neither agent nor proxies."""
    return not any(name.endswith(f"@{node_id[:12]}") for name in Cluster().names())


async def has_left(node_id: str) -> bool:
    return left(node_id)


async def test_a_node_without_replicas_has_nothing_until_a_program_there_asks(
    instance: Instance, cluster: RayCluster
) -> None:
    head = ray.get_runtime_context().get_node_id()
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    fourth = str(node.node_id)
    await joined(fourth)
    async with instance.running(Echo.options(num_replicas=2).bind(), "there"):
        await lie_on(instance, "there", [head, fourth])
        door = await record_of(instance, fourth)
        assert (await get(f"{door.http_url}/there")).status == 200
    await until_async(lambda: has_left(fourth), f"nothing of the instance is on {fourth}", 30.0)
    here = {"label_selector": {"ray.io/node-id": head}}
    there = NodeAffinitySchedulingStrategy(fourth, soft=False)
    async with instance.running(Echo.options(ray_actor_options=here).bind(), "elsewhere"):
        assert left(fourth)
        # A task on that node starts an agent, and the worker that Ray keeps after it lets it go.
        answer = asks.options(scheduling_strategy=there).remote("elsewhere", 8)
        assert await answer == 16
        await until_async(lambda: has_left(fourth), f"the agent of {fourth} has left again", 30.0)
        again = asks.options(scheduling_strategy=there).remote("elsewhere", 4)
        assert await again == 8
    cluster.remove_node(node)


async def test_a_node_with_another_version_gets_nothing_and_is_named(
    instance: Instance, cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "src"
    shutil.copytree(REPOSITORY / "src", other, ignore=shutil.ignore_patterns("__pycache__"))
    named = other / "remora" / "__init__.py"
    named.write_text(named.read_text().replace(f'"{remora.__version__}"', '"99.0"'))
    # Its insides differ as well.
    process = other / "remora" / "engine" / "ray" / "process.py"
    process.write_text(process.read_text().replace("_begin(", "_begin_otherwise("))
    with monkeypatch.context() as there:
        there.setenv("PYTHONPATH", f"{other}{os.pathsep}{os.environ['PYTHONPATH']}")
        node = cluster.add_node(num_cpus=16, object_store_memory=STORE_BYTES)
    unfit = str(node.node_id)

    def is_named(status: InstanceStatus) -> bool:
        return any(
            "has Remora 99.0, the instance runs" in each.refusal
            for each in status.nodes
            if each.node_id == unfit
        )

    await instance.wait(is_named, "the node is named with the reason", timeout_s=40.0)
    head = ray.get_runtime_context().get_node_id()
    async with instance.running(Echo.options(num_replicas=2).bind(), "fit"):
        await lie_on(instance, "fit", [head, head])
    cluster.remove_node(node)
