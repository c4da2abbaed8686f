"""Controllers that die again and again, and states that are lost: requests notice neither."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.apps import Echo, Stuck
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance
from tests.e2e.load import get, load
from tests.e2e.processes import kill
from tests.e2e.waiting import until_true

from remora.build.graph import build
from remora.control.client import ControlClient
from remora.errors import RemoraError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

NUM_KILLS = 10
WATCHED = Stuck.options(
    health_check_period_s=0.2, health_check_timeout_s=0.5, graceful_shutdown_timeout_s=0.5
)


async def declare(instance: Instance, app: Any, code_version: str) -> None:
    """Deploy, and ask again when the controller dies before it has answered."""
    spec = build(app, "killed", "/killed", code_version=code_version)
    while True:
        try:
            async with ControlClient(instance.home) as controller:
                await controller.deploy([spec])
                return
        except RemoraError:
            await instance.status()


async def kill_controller(instance: Instance) -> None:
    kill((await instance.status()).controller_pid)


async def test_ten_controllers_die_during_roll_outs_and_scaling(shared: Instance) -> None:
    rng = random.Random(7)
    version, number = "1", 2
    async with (
        shared.running(Echo.options(num_replicas=2).bind("1", 0.01), "killed") as url,
        load(url, method="POST", rate=100) as traffic,
    ):
        for _ in range(NUM_KILLS):
            await traffic.more(rng.randrange(1, 6))
            if rng.random() < 0.5:
                version = str(int(version) + 1)
            else:
                number = rng.choice([1, 2, 3])
            app = Echo.options(num_replicas=number).bind(version, 0.01)
            await declare(shared, app, version)
            # Some milliseconds into whatever that brings.
            await traffic.more(rng.randrange(1, 20))
            await kill_controller(shared)
        await shared.wait(
            lambda status: status.applications["killed"].status == "RUNNING", "it runs"
        )
        before = await shared.replicas("killed", number)
        settled = len(traffic.answers) + traffic.in_flight
        await traffic.more(20)
        # Nothing is left to do: one more death changes nothing at all.
        await kill_controller(shared)
        assert await shared.replicas("killed", number) == before
        await traffic.more(20)
    assert traffic.failures == []
    assert {answer.json["version"] for answer in traffic.answers[settled:]} == {version}


@pytest.mark.parametrize("damage", ["garbage", "deleted"])
@pytest.mark.local_only("damages its database file")
async def test_what_runs_is_known_again_when_its_database_is_lost(
    start_instance: StartInstance, damage: str
) -> None:
    instance = start_instance()
    app = Echo.options(num_replicas=2).bind("v1", 0.01)
    await instance.deploy(app, "kept", route="/kept", code_version="1")
    url = f"{instance.url}/kept"
    before = await instance.pids("kept")
    async with load(url, method="POST", rate=100) as traffic:
        await traffic.more(20)
        database = instance.home.database
        for path in database.parent.glob(f"{database.name}*"):
            path.unlink()
        if damage == "garbage":
            database.write_bytes(b"garbage" * 1000)
        await kill_controller(instance)
        assert await instance.replicas("kept", 2) == before
        await instance.wait(
            lambda status: status.applications["kept"].status == "RUNNING", "it runs"
        )
        await traffic.more(20)
        # The code was handed over as well: another replica can be made of it.
        victim = min(before)
        kill(victim)
        await instance.replicas("kept", 2, without={victim})
        again = await instance.deploy(app, "kept", route="/kept", code_version="1")
        assert again.status == "RUNNING"
        assert (await instance.pids("kept")) & before
        await traffic.more(20)
    # What the killed replica worked on is a POST, which is not repeated.
    assert len(traffic.failures) <= 5
    assert (await get(url)).json["version"] == "v1"
    await instance.logged("Put together from running replicas: kept/Echo")
    assert database.read_bytes().startswith(b"SQLite")


async def test_a_replica_whose_loop_is_blocked_is_replaced_and_its_stacks_are_saved(
    shared: Instance,
) -> None:
    app = WATCHED
    async with shared.running(app.bind(), "stuck") as url:
        before = await shared.pids("stuck")
        # A POST is not tried again on the next one.
        blocking = asyncio.create_task(get(f"{url}?block=1", method="POST"))
        said: str = await shared.wait(
            lambda status: _named(status.applications["stuck"].deployments["Stuck"].message),
            "the file is named",
        )
        after = await shared.replicas("stuck", 1)
        assert not after & before
        assert (await get(url)).status == 200
        assert (await blocking).status == 500
    stacks = Path(said).read_text()
    assert "in hold_everything" in stacks
    assert Path(said).parent == shared.home.logs
    await until_true(
        lambda: list(shared.home.logs.glob("stuck-*")) == [Path(said)], "empty ones are gone"
    )


def _named(message: str) -> str:
    found = re.search(r"see where in (\S+\.txt)", message)
    return found.group(1) if found else ""


async def test_a_replica_that_new_connections_cannot_reach_is_replaced(shared: Instance) -> None:
    app = WATCHED
    sockets = set(shared.home.sockets.rglob("*.sock"))
    async with shared.running(app.bind(), "unreachable") as url:
        before = await shared.pids("unreachable")
        (own,) = set(shared.home.sockets.rglob("*.sock")) - sockets
        own.unlink()
        await shared.replicas("unreachable", 1, without=before)
        assert (await get(url)).status == 200
