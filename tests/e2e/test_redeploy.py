"""Changing what runs, under load: nothing is lost, and a bad change changes nothing.

The load are POSTs, which are never repeated: here nothing may have to be.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests import engines
from tests.e2e.apps import Echo, Trickle
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance, running_pids
from tests.e2e.load import get, load
from tests.e2e.processes import kill
from tests.e2e.waiting import until_async, until_true

from remora.build.graph import build
from remora.control.client import ControlClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

TWO = Echo.options(num_replicas=2)
#: Its constructor never returns.
HANGING = Echo.bind("hangs")


def versions(answers: list[Any]) -> list[str]:
    return [answer.json["version"] for answer in answers]


async def test_a_new_version_takes_over_without_a_lost_request(shared: Instance) -> None:
    async with (
        shared.running(TWO.bind("old", 0.02), "change") as url,
        load(url, method="POST") as traffic,
    ):
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
        async with load(url, method="POST") as traffic:
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
    async with shared.deleting("scale") as url, load(url, method="POST") as traffic:
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
        async with load(url, method="POST") as traffic:
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
        async with load(url, method="POST") as traffic:
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


async def test_a_deploy_that_overtakes_another_wins(shared: Instance) -> None:
    async with (
        shared.running(TWO.bind("v0", 0.01), "overtaken") as url,
        load(url, method="POST") as traffic,
    ):
        await traffic.more(50)
        async with ControlClient(shared.home) as controller:
            for number in range(1, 6):
                spec = build(TWO.bind(f"v{number}", 0.01), "overtaken", "/overtaken")
                await controller.deploy([spec])
        await shared.wait(
            lambda status: status.applications["overtaken"].status == "RUNNING", "it runs"
        )
        await shared.replicas("overtaken", 2)
        settled = len(traffic.answers) + traffic.in_flight
        await traffic.more(50)
    assert traffic.failures == []
    assert set(versions(traffic.answers[settled:])) == {"v5"}


async def test_a_deploy_over_a_broken_one_wins(shared: Instance) -> None:
    async with (
        shared.running(TWO.bind("old"), "mended") as url,
        load(url, method="POST") as traffic,
    ):
        await traffic.more(20)
        async with ControlClient(shared.home) as controller:
            await controller.deploy([build(TWO.bind("broken"), "mended", "/mended")])
        app = await shared.deploy(TWO.bind("new"), "mended", route="/mended")
        assert app.status == "RUNNING", app
        await shared.replicas("mended", 2)
        settled = len(traffic.answers) + traffic.in_flight
        await traffic.more(20)
    assert traffic.failures == []
    assert set(versions(traffic.answers[settled:])) == {"new"}


async def test_a_roll_out_survives_the_controller(shared: Instance) -> None:
    async with (
        shared.running(TWO.bind("old", 0.01), "rolled") as url,
        load(url, method="POST") as traffic,
    ):
        await traffic.more(20)
        async with ControlClient(shared.home) as controller:
            await controller.deploy([build(TWO.bind("new", 0.01), "rolled", "/rolled")])
        kill((await shared.status()).controller_pid)

        async def done() -> bool:
            return set(versions(traffic.answers[-20:])) == {"new"}

        await until_async(done, "the new version answers", 20.0)
        await shared.replicas("rolled", 2)
    assert traffic.failures == []


async def test_a_deploy_under_way_can_be_deleted(shared: Instance) -> None:
    async with ControlClient(shared.home) as controller:
        await controller.deploy([build(HANGING, "hanging", "/hanging")])
    await shared.wait(
        lambda status: status.applications["hanging"].deployments["Echo"].replica_states,
        "a replica is being started",
    )
    await shared.delete("hanging")


async def test_an_instance_ends_while_a_constructor_hangs(start_instance: StartInstance) -> None:
    instance = start_instance()
    async with ControlClient(instance.home) as controller:
        await controller.deploy([build(HANGING, "hanging", "/hanging")])
    await instance.wait(
        lambda status: status.applications["hanging"].deployments["Echo"].replica_states,
        "a replica is being started",
    )
    began = time.monotonic()
    await asyncio.to_thread(instance.end)
    assert time.monotonic() - began < engines.patient(8.0)


async def test_a_request_that_never_ends_is_ended_by_its_deployment_s_patience(
    shared: Instance,
) -> None:
    app = Echo.options(graceful_shutdown_timeout_s=0.5)
    url = await shared.run(app.bind(), "patience")
    endless = asyncio.create_task(get(f"{url}?delay=1000"))
    await _begun(shared, endless)
    began = time.monotonic()
    await shared.delete("patience")
    assert time.monotonic() - began < 3.0
    # It is not left hanging, and nobody says that its client has cancelled it.
    assert (await endless).status in (500, 503)


async def test_a_request_that_its_last_replica_takes_along_has_an_end(shared: Instance) -> None:
    url = await shared.run(Echo.bind(), "orphan")
    (victim,) = await shared.pids("orphan")
    endless = asyncio.create_task(get(f"{url}?delay=1000"))
    await _begun(shared, endless)
    async with ControlClient(shared.home) as controller:
        await controller.delete(["orphan"])
    # A GET may be repeated, but here nothing comes that could.
    kill(victim)
    assert (await asyncio.wait_for(endless, 5.0)).status in (500, 503)


async def _begun(instance: Instance, *tasks: asyncio.Task[Any]) -> None:
    """Wait until another connection has been answered behind these: theirs are under way."""
    await asyncio.sleep(0)
    # All at once: what is waited for may be done when twenty were answered one after the other.
    answers = await asyncio.gather(*(get(f"{instance.url}/-/healthz") for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    await until_true(lambda: not any(task.done() for task in tasks), "requests are under way")


async def test_a_failed_version_is_rolled_back_where_that_is_asked_for(shared: Instance) -> None:
    good = TWO.options(rollback="auto", max_constructor_retry_count=1)
    async with shared.running(good.bind("old", 0.01), "back") as url:
        before = await shared.pids("back")
        async with load(url, method="POST") as traffic:
            await traffic.more(20)
            await shared.deploy(good.bind("broken"), "back", route="/back")
            await shared.wait(lambda status: status.applications["back"].failure, "it is told")
            await traffic.more(50)
        app = await shared.app("back")
        assert app.status == "RUNNING"
        assert "was rolled back to what ran before" in app.failure
        assert "ValueError: no weights at /models/v2" in app.failure
        assert await shared.pids("back") == before
        assert traffic.failures == []
        assert set(versions(traffic.answers)) == {"old"}
