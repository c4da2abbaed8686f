"""kill -9 of every kind of process, under load: what a client notices, and what is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import aiohttp
import pytest
from tests import engines
from tests.e2e.apps import Echo, Spawner, Trickle
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance
from tests.e2e.load import ask, client, get, load
from tests.e2e.processes import is_alive, kill, title
from tests.e2e.waiting import until_async, until_true

from remora.build.graph import build
from remora.control.client import ControlClient

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


@pytest.mark.local_only("there is no template")
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
    assert time.monotonic() - began < engines.patient(GONE_S)
    assert not any(is_alive(pid) for pid in children)
    again = start_instance(instance.home.root)
    url = await again.run(Echo.bind("again"), "echo")
    assert (await get(url)).json["version"] == "again"


@pytest.mark.local_only("Ray does not survive the loss of all its processes")
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


async def test_killing_the_only_replica_loses_no_get(shared: Instance) -> None:
    async with shared.running(Echo.bind("v1", 0.02), "only") as url:
        (victim,) = await shared.pids("only")
        async with load(url) as traffic:
            await traffic.more(100)
            kill(victim)
            await shared.replicas("only", 1, without={victim})
            await traffic.more(100)
    assert traffic.failures == []


async def test_killing_a_replica_ends_the_posts_that_it_worked_on_at_once(
    shared: Instance,
) -> None:
    async with shared.running(Echo.bind("v1", 1.0), "posts") as url, client() as session:
        (victim,) = await shared.pids("posts")
        posts = [asyncio.create_task(ask(session, url, method="POST")) for _ in range(20)]
        await until_async(lambda: begun(shared, "posts", 20), "all are under way")
        kill(victim)
        began = time.monotonic()
        answers = await asyncio.gather(*posts)
        # They may have had effects: said at once, and not repeated.
        assert [a.status for a in answers] == [500] * 20
        assert time.monotonic() - began < 0.5
        # What was not begun is not lost.
        assert (await ask(session, f"{url}?delay=0", method="POST")).status == 200


async def test_killing_a_replica_cuts_the_streams_that_it_sent(shared: Instance) -> None:
    async with shared.running(Trickle.bind(), "cut") as url, client() as session:
        (victim,) = await shared.pids("cut")
        async with session.get(url) as response:
            assert await response.content.readany()
            kill(victim)
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()


async def test_a_deploy_survives_its_controller(start_instance: StartInstance) -> None:
    instance = start_instance()
    await instance.run(Echo.bind(), "first")
    old = (await instance.status()).controller_pid
    two = Echo.options(num_replicas=3).bind("second")
    async with ControlClient(instance.home) as controller:
        await controller.deploy([build(two, "second", "/second")])
    # Accepted is kept.
    kill(old)
    await instance.replicas("second", 3)
    assert (await get(f"{instance.url}/second")).json["version"] == "second"
    assert (await get(f"{instance.url}/first")).status == 200


async def test_a_replica_that_stands_still_is_replaced(shared: Instance) -> None:
    app = Echo.options(
        num_replicas=2,
        health_check_period_s=0.3,
        health_check_timeout_s=0.3,
        graceful_shutdown_timeout_s=0.5,
    )
    async with shared.running(app.bind(), "still") as url:
        before = await shared.pids("still")
        victim = min(before)
        os.kill(victim, signal.SIGSTOP)
        await shared.replicas("still", 2, without={victim})
        async with load(url) as traffic:
            await traffic.more(100)
        assert traffic.failures == []
        await until_true(lambda: not is_alive(victim), "it is killed")


async def test_a_storm_of_kills_passes(start_instance: StartInstance) -> None:
    """Anything but the supervisor dies, again and again, in no order."""
    rng = random.Random(5)
    instance = start_instance()
    url = await instance.run(Echo.options(num_replicas=3).bind("v1", 0.01), "storm")
    num_cut = 0
    async with load(url, rate=200, force_close=True) as traffic:
        for _ in range(25):
            victim = rng.choice(await until_true(lambda: mortals(instance), "one may die"))
            if title(victim) == "remora: proxy":
                num_cut += traffic.in_flight
            kill(victim)
            await traffic.more(rng.randrange(5, 40))
        await instance.replicas("storm", 3)
        await instance.wait(lambda s: s.applications["storm"].status == "RUNNING", "all is well")
        calm = len(traffic.answers) + traffic.in_flight
        await traffic.more(100)
    assert all(a.status == 200 for a in traffic.answers[calm:])
    refused = [a for a in traffic.failures if isinstance(a.error, aiohttp.ClientConnectorError)]
    assert refused == []
    assert len(traffic.failures) <= num_cut, traffic.failures
    assert is_alive(instance.pid)


def mortals(instance: Instance) -> list[int]:
    """What may die at any time: anything but the supervisor.

    On Ray that is Remora's own, without the agent: with all proxies it would take the sockets along.
    """
    return [pid for pid in instance.own() if pid != instance.pid and "agent" not in title(pid)]


async def begun(instance: Instance, name: str, number: int) -> bool:
    """The replicas of an application work on `number` requests."""
    seen = await instance.handle("Echo", name).seen.remote()
    return bool(seen == number)


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
