"""Changing what runs, under load: nothing is lost, and a bad change changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.e2e.apps import Echo, Trickle
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance, running_pids
from tests.e2e.load import get, load
from tests.e2e.waiting import until_true

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

TWO = Echo.options(num_replicas=2)


def versions(answers: list[Any]) -> list[str]:
    return [answer.json["version"] for answer in answers]


async def test_a_new_version_takes_over_without_a_lost_request(shared: Instance) -> None:
    async with shared.running(TWO.bind("old", 0.02), "change") as url, load(url) as traffic:
        await traffic.more(50)
        before = len(traffic.answers)
        await shared.deploy(TWO.bind("new", 0.02), "change", route="/change")
        await shared.replicas("change", 2)
        settled = len(traffic.answers) + traffic.in_flight
        await traffic.more(100)
    assert traffic.failures == []
    seen = versions(traffic.answers)
    assert set(seen[:before]) == {"old"}
    assert set(seen[settled:]) == {"new"}


async def test_a_version_that_cannot_start_leaves_the_old_one_at_full_strength(
    shared: Instance,
) -> None:
    async with shared.running(TWO.bind("old", 0.02), "bad") as url:
        before = await shared.pids("bad")
        async with load(url) as traffic:
            await traffic.more(50)
            failed = await shared.deploy(
                TWO.options(max_constructor_retry_count=1).bind("broken"), "bad", route="/bad"
            )
            await traffic.more(100)
        assert failed.status == "DEPLOY_FAILED"
        deployment = failed.deployments["Echo"]
        assert "ValueError: no weights at /models/v2" in deployment.message
        assert 'raise ValueError("no weights at /models/v2")' in deployment.message
        assert await shared.pids("bad") == before
        assert traffic.failures == []
        assert set(versions(traffic.answers)) == {"old"}
        # The way out is another deploy.
        assert (await shared.deploy(TWO.bind("new"), "bad", route="/bad")).status == "RUNNING"
        assert (await get(url)).json["version"] == "new"


async def test_the_number_of_replicas_changes_without_a_lost_request(shared: Instance) -> None:
    app = TWO.bind("v1", 0.02)
    await shared.deploy(app, "scale", route="/scale", code_version="1")
    async with shared.deleting("scale") as url, load(url) as traffic:
        await traffic.more(50)
        for number in (4, 1, 2):
            app = Echo.options(num_replicas=number).bind("v1", 0.02)
            before = await shared.pids("scale")
            await shared.deploy(app, "scale", route="/scale", code_version="1")
            after = await shared.replicas("scale", number)
            assert after <= before or before <= after
            await traffic.more(50)
    assert traffic.failures == []


async def test_a_change_of_options_alone_keeps_the_processes(shared: Instance) -> None:
    first = TWO.options(user_config={"threshold": 1}).bind("v1")
    await shared.deploy(first, "config", route="/config", code_version="1")
    async with shared.deleting("config") as url:
        before = await shared.pids("config")
        assert (await get(url)).json["config"] == {"threshold": 1}
        async with load(url) as traffic:
            await traffic.more(50)
            changed = TWO.options(user_config={"threshold": 2}).bind("v1")
            await shared.deploy(changed, "config", route="/config", code_version="1")
            await traffic.more(50)
            config = {str(a.json["config"]) for a in traffic.answers[-20:]}
        assert traffic.failures == []
        assert config == {"{'threshold': 2}"}
        assert await shared.pids("config") == before


async def test_deleting_an_application_drains_what_is_ongoing(shared: Instance) -> None:
    url = await shared.run(Echo.bind(), "draining")
    await shared.run(Trickle.bind(), "trickling")
    slow = asyncio.create_task(get(f"{url}?delay=1"))
    stream = asyncio.create_task(get(f"{shared.url}/trickling"))
    await _begun(shared, slow, stream)
    await asyncio.gather(shared.delete("draining"), shared.delete("trickling"))
    assert (await slow).status == 200
    answer = await stream
    assert answer.status == 200
    assert answer.body.split() == [b"%d" % n for n in range(10)]
    assert (await get(url)).status == 404


async def test_shutdown_drains_what_is_ongoing(start_instance: StartInstance) -> None:
    instance = start_instance()
    url = await instance.run(Echo.bind(), "echo")
    await instance.run(Trickle.bind(), "trickle")
    slow = asyncio.create_task(get(f"{url}?delay=1"))
    stream = asyncio.create_task(get(f"{instance.url}/trickle"))
    await _begun(instance, slow, stream)
    await asyncio.to_thread(instance.end)
    assert (await slow).status == 200
    answer = await stream
    assert answer.status == 200
    assert answer.body.split() == [b"%d" % n for n in range(10)]


async def test_deployments_come_and_go_with_the_graph(shared: Instance) -> None:
    async with shared.running(Echo.bind(), "graph") as url:
        renamed = Echo.options(name="Other").bind("v2")
        async with load(url) as traffic:
            await traffic.more(50)
            await shared.deploy(renamed, "graph", route="/graph")
            await traffic.more(50)
            await shared.wait(
                lambda status: set(status.applications["graph"].deployments) == {"Other"},
                "the old deployment is gone",
            )
            await traffic.more(50)
        assert traffic.failures == []
        assert len(running_pids(await shared.status(), "graph")) == 1


async def _begun(instance: Instance, *tasks: asyncio.Task[Any]) -> None:
    """Wait until another connection has been answered behind these: theirs are under way."""
    await asyncio.sleep(0)
    for _ in range(20):
        assert (await get(f"{instance.url}/-/healthz")).status == 200
    await until_true(lambda: not any(task.done() for task in tasks), "requests are under way")
