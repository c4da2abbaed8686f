"""Where replicas lie on nodes with declared GPUs, labels and resources, and what waits for room."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.cluster_utils import Cluster as RayCluster
from ray.util.placement_group import placement_group_table
from tests.e2e.instances import Instance
from tests.e2e.processes import kill
from tests.e2e.waiting import until_async
from tests.ray.conftest import STORE_BYTES
from tests.ray.test_nodes import joined

import remora as serve
from remora.build.graph import build
from remora.control.client import ControlClient

EITHER = {"zone": "in(a,b)"}


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Seen:
    """Says where it is and what it sees."""

    async def seen(self) -> tuple[str, str | None]:
        node = str(ray.get_runtime_context().get_node_id())
        return node, os.environ.get("CUDA_VISIBLE_DEVICES")

    async def bundles(self) -> list[str]:
        """The nodes of the bundles of its placement group."""
        group = ray.util.get_current_placement_group()
        found = placement_group_table(group)["bundles_to_node_id"]
        return [found[index] for index in sorted(found)]


@pytest.fixture(scope="module")
def nodes(cluster: RayCluster, instance: Instance) -> Iterator[tuple[str, str]]:
    """Two nodes with a GPU each, in zones a and b; three tokens are on them, two on the first."""
    made = [
        cluster.add_node(
            num_cpus=1,
            num_gpus=1,
            object_store_memory=STORE_BYTES,
            resources={"token": tokens},
            labels={"zone": zone},
        )
        for zone, tokens in (("a", 2), ("b", 1))
    ]
    yield str(made[0].node_id), str(made[1].node_id)
    for node in made:
        cluster.remove_node(node)


async def where(instance: Instance, name: str) -> list[tuple[str, str | None]]:
    handle: Any = instance.handle("Seen", name)
    found: list[tuple[str, str | None]] = await handle.broadcast("seen").results_async()
    return sorted(found)


async def begin(instance: Instance, app: Any, name: str, text: str) -> None:
    """Deploy what has no room for all of its replicas, and wait until it says so."""
    async with ControlClient(instance.home) as client:
        await client.deploy([build(app.bind(), name, None)])
    await instance.wait(lambda now: text in now.applications[name].message, text)


async def test_replicas_lie_where_their_options_say(
    instance: Instance, nodes: tuple[str, str]
) -> None:
    first, second = nodes
    for node in nodes:
        await joined(node)
    own = Seen.options(ray_actor_options={"num_cpus": 0, "label_selector": {"zone": "b"}})
    async with instance.running(own.bind(), "labelled"):
        assert [node for node, _ in await where(instance, "labelled")] == [second]
    shares = Seen.options(num_replicas=4, ray_actor_options={"num_cpus": 0, "num_gpus": 0.5})
    async with instance.running(shares.bind(), "shares"):
        assert Counter(await where(instance, "shares")) == {(first, "0"): 2, (second, "0"): 2}
        group = Seen.options(
            placement_group_bundles=[{"CPU": 0.5, "token": 1}, {"CPU": 0.5}],
            placement_group_strategy="STRICT_SPREAD",
            ray_actor_options={"num_cpus": 0.5, "label_selector": EITHER},
        )
        async with instance.running(group.bind(), "group"):
            handle: Any = instance.handle("Seen", "group")
            assert sorted(await handle.bundles.remote()) == sorted(nodes)
            # Its group goes with it, also under a controller that has not made it.
            old = (await instance.status()).controller_pid
            kill(old)
            await instance.wait(lambda now: now.controller_pid != old, "a new controller answers")
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


async def demand_is(cluster: RayCluster, bundles: list[dict[str, float]]) -> bool:
    """Whether Ray's autoscaler is told of just these bundles that no node can hold."""
    status = await asyncio.to_thread(get_cluster_status, cluster.address)
    demands = status.resource_demands.placement_group_demand
    found = [
        dict(each.bundle)
        for demand in demands
        for each in demand.bundles_by_count
        for _ in range(each.count)
    ]
    return found == bundles


async def test_what_has_no_room_for_all_starts_none_of_it(
    instance: Instance, cluster: RayCluster, nodes: tuple[str, str]
) -> None:
    one_each = Seen.options(
        num_replicas=3,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 0, "label_selector": EITHER},
    )
    await begin(instance, one_each, "one-each", "max_replicas_per_node=1 is reached")
    gangs = Seen.options(
        num_replicas=4,
        gang_scheduling_config={"gang_size": 2},
        ray_actor_options={"num_cpus": 0, "resources": {"token": 1}},
    )
    await begin(
        instance, gangs, "gangs", "a gang of 2 starts together or not at all, and 1 of them"
    )
    await instance.replicas("one-each", 2)
    await instance.replicas("gangs", 2)
    assert [node for node, _ in await where(instance, "one-each")] == sorted(nodes)
    # Ray's autoscaler sees what would hold the second gang.
    asked = [{"token": 1.0}] * 2
    await until_async(lambda: demand_is(cluster, asked), "Ray is asked for two tokens")
    await instance.delete("gangs")
    await until_async(lambda: demand_is(cluster, []), "nothing is asked for")
    await instance.delete("one-each")
