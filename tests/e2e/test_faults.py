"""kill -9 of every kind of process, under load: what a client notices, and what is left."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
from tests.e2e.apps import Echo, Spawner
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance
from tests.e2e.load import get, load
from tests.e2e.processes import is_alive, kill
from tests.e2e.waiting import until_true

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

#: Everything of an instance is to be gone this long after its supervisor.
GONE_S = 2.0


async def test_killing_a_replica_loses_no_get(shared: Instance) -> None:
    app = Echo.options(num_replicas=2).bind("v1", 0.02)
    async with shared.running(app, "replica") as url:
        before = await shared.pids("replica")
        async with load(url) as traffic:
            await traffic.more(100)
            victim = min(before)
            kill(victim)
            after = await shared.replicas("replica", 2, without={victim})
            await traffic.more(100)
    assert traffic.failures == []
    assert len(after & before) == 1


async def test_killing_the_controller_loses_no_request_and_no_replica(shared: Instance) -> None:
    app = Echo.options(num_replicas=2).bind("v1", 0.02)
    async with shared.running(app, "controller") as url:
        before = await shared.pids("controller")
        old = (await shared.status()).controller_pid
        async with load(url) as traffic:
            await traffic.more(100)
            kill(old)
            await shared.wait(lambda s: s.controller_pid != old, "a new controller answers")
            after = await shared.replicas("controller", 2)
            await traffic.more(100)
        assert traffic.failures == []
        assert after == before
        assert (await shared.app("controller")).status == "RUNNING"
        # The successor does not only report: it also acts.
        victim = min(after)
        kill(victim)
        await shared.replicas("controller", 2, without={victim})


async def test_killing_a_proxy_refuses_no_connection(shared: Instance) -> None:
    async with shared.running(Echo.bind("v1", 0.02), "proxy") as url:
        old = (await shared.status()).proxies[0].pid
        async with load(url, force_close=True) as traffic:
            await traffic.more(100)
            in_flight = traffic.in_flight
            kill(old)
            await shared.wait(lambda s: s.proxies[0].pid not in (0, old), "a new proxy runs")
            await traffic.more(300)
    refused = [a for a in traffic.failures if isinstance(a.error, aiohttp.ClientConnectorError)]
    assert refused == []
    assert len(traffic.failures) <= in_flight, (in_flight, traffic.failures)


async def test_killing_the_template_is_noticed_by_nobody(shared: Instance) -> None:
    async with shared.running(Echo.bind("v1", 0.01), "template") as url:
        (replica,) = await shared.pids("template")
        async with ControlEngine(shared) as engine:
            old = await engine.pid("template")
            async with load(url) as traffic:
                await traffic.more(50)
                kill(old)
                await engine.wait_other("template", old)
                await traffic.more(50)
                assert await shared.pids("template") == {replica}
                # Forking works again.
                kill(replica)
                await shared.replicas("template", 1, without={replica})
                await traffic.more(50)
    assert traffic.failures == []


async def test_killing_the_supervisor_leaves_nothing_and_the_next_start_is_clean(
    start_instance: StartInstance,
) -> None:
    instance = start_instance()
    await instance.run(Echo.options(num_replicas=2).bind(), "echo")
    url = await instance.run(Spawner.bind(), "spawner")
    children = (await get(url)).json
    assert all(is_alive(pid) for pid in children)
    assert len(instance.members()) >= 8
    kill(instance.pid)
    began = time.monotonic()
    await until_true(lambda: not instance.members(), "all processes are gone", GONE_S)
    assert time.monotonic() - began < GONE_S
    assert not any(is_alive(pid) for pid in children)
    again = start_instance(instance.home.root)
    url = await again.run(Echo.bind("again"), "echo")
    assert (await get(url)).json["version"] == "again"


async def test_killing_everything_but_the_supervisor_comes_back(
    start_instance: StartInstance,
) -> None:
    instance = start_instance()
    url = await instance.run(Echo.options(num_replicas=2).bind(), "echo")
    before = set(instance.members()) - {instance.pid}
    for pid in before:
        kill(pid)

    async def answered() -> bool:
        return (await get(url)).status == 200

    await until_true(lambda: not before & set(instance.members()), "the killed are gone")
    await instance.replicas("echo", 2, without=before)
    async with asyncio.timeout(10):
        assert await answered()


class ControlEngine:
    """The supervisor's own view of its processes, which only the controller usually asks for."""

    def __init__(self, instance: Instance) -> None:
        from remora.engine.local.client import LocalEngine

        self._engine = LocalEngine(instance.home)

    async def __aenter__(self) -> ControlEngine:
        await self._engine.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._engine.close()

    async def pid(self, name: str) -> int:
        return {p.name: p.pid for p in await self._engine.system_processes()}[name]

    async def wait_other(self, name: str, old: int) -> None:
        from tests.e2e.waiting import until_async

        async def other() -> bool:
            return await self.pid(name) not in (0, old)

        await until_async(other, f"a new {name}")
