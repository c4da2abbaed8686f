"""An instance on Ray: what users do, and kill -9 of each kind of process under load."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster as RayCluster
from tests.e2e.conftest import StartCommand, command, home, remora
from tests.e2e.instances import Instance
from tests.e2e.load import get, load
from tests.e2e.processes import kill
from tests.ray.apps import Echo, UsesRay, asks, squared

__all__ = ["command", "home", "remora"]


async def test_it_answers_over_http_and_through_handles(instance: Instance) -> None:
    async with instance.running(Echo.bind(), "echo") as url:
        answer = (await get(url)).json
        assert answer["pid"] in await instance.pids("echo")
        assert answer["node"] == ray.get_runtime_context().get_node_id()
        handle = instance.handle("Echo", "echo")
        assert await handle.double.remote(21) == 42
        # An argument that is a reference arrives as its value.
        assert await handle.double.remote(ray.put([1])) == [1, 1]
        assert await handle.double.remote(squared.remote(3)) == 18


async def test_code_in_a_deployment_uses_ray(instance: Instance) -> None:
    async with instance.running(UsesRay.bind(Echo.bind()), "uses"):
        handle: Any = instance.handle("UsesRay", "uses")
        assert await handle.awaits.remote(3) == 9
        assert await handle.gets.remote(4) == 16
        assert await handle.passes_on.remote(3) == 18
        assert await handle.refers.remote(3) == 36


async def test_a_task_of_ray_calls_a_deployment(instance: Instance) -> None:
    async with instance.running(Echo.bind(), "called"):
        assert await asks.remote("called", 8) == 16


async def test_killing_a_replica_and_the_controller_loses_no_request(instance: Instance) -> None:
    async with instance.running(Echo.options(num_replicas=2).bind(), "killed") as url:
        before = await instance.pids("killed")
        old = (await instance.status()).controller_pid
        async with load(url) as traffic:
            await traffic.more(100)
            kill(old)
            await instance.wait(lambda s: s.controller_pid != old, "a new controller answers")
            assert await instance.replicas("killed", 2) == before
            victim = min(before)
            kill(victim)
            after = await instance.replicas("killed", 2, without={victim})
            await traffic.more(100)
        assert traffic.failures == []
        assert len(after & before) == 1


async def test_connections_wait_for_the_successor_of_a_proxy(instance: Instance) -> None:
    async with instance.running(Echo.bind(), "front") as url:
        for _ in range(2):
            (proxy,) = (await instance.status()).proxies
            kill(proxy.pid)
            assert (await get(url)).status == 200
            # The second time, the agent that holds the socket is another one.
            kill((await instance.status()).supervisor_pid)


async def test_what_a_script_deployed_stays_when_it_ends(
    instance: Instance, command: StartCommand
) -> None:
    script = (
        "import remora\n"
        "@remora.deployment\n"
        "def stays(request=None): return 'stays'\n"
        "handle = remora.run(stays.bind(), name='stays', route_prefix='/stays')\n"
        "print(handle.remote().result())\n"
        # Nobody has connected this program to Ray: it is in the cluster of the instance.
        "import ray\n"
        "assert ray.get(handle.remote()._to_object_ref_sync()) == 'stays'\n"
        "print(ray.get_runtime_context().gcs_address)\n"
    )
    run = command(sys.executable, "-c", script, home=instance.home.root)
    assert run.wait() == 0, run.output
    lines = run.output.splitlines()
    assert lines.index("stays") < lines.index(ray.get_runtime_context().gcs_address)
    assert (await get(f"{instance.url}/stays")).body == b"stays"
    await instance.delete("stays")


async def test_an_instance_is_reached_from_another_folder(
    instance: Instance, cluster: RayCluster, remora: StartCommand
) -> None:
    where = ("--engine", "ray", "--address", cluster.address, "--http-port", "1")
    both = [remora("start", *where) for _ in range(2)]
    for start in both:
        assert start.wait() == 0, start.output
    # One joins for this folder, the other one finds that.
    start, other = sorted(both, key=lambda each: "Joined" in each.output, reverse=True)
    assert f"Joined the instance of the Ray cluster at {cluster.address}" in start.output
    assert f"serves {instance.url}: host and port have no effect on it" in start.output
    assert "already" in other.output
    assert instance.url in other.output
    status = remora("status", "--json")
    assert status.wait() == 0, status.output
    assert json.loads(status.output)["http_url"] == instance.url
    # What stands for it here may end without it.
    os.kill(int(start.output.partition("pid ")[2].partition(")")[0]), signal.SIGTERM)
    assert (await instance.status()).controller_pid
