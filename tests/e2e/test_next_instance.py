"""What the next instance in a folder finds of one that was killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import engines
from tests.e2e.apps import Echo
from tests.e2e.conftest import StartInstance
from tests.e2e.load import get
from tests.e2e.processes import kill
from tests.e2e.waiting import until_async, until_true

from remora.build.graph import build
from remora.config import HTTPOptions
from remora.control.client import ControlClient
from remora.engine.launch import Launch, LaunchSetup, launch
from remora.home import Home

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


def setup() -> LaunchSetup:
    return LaunchSetup(HTTPOptions(port=0), engine=engines.chosen())


@pytest.fixture
def bound(home: Path) -> Iterator[Launch]:
    """An instance that ends with this program."""
    launched = launch(Home(home), setup(), bound=True)
    launched.wait_ready(engines.patient(20.0))
    yield launched
    launched.end(2.0)


async def deploy_in(home: Home, name: str) -> None:
    async with ControlClient(home) as client:
        await client.deploy([build(Echo.bind("v"), name, f"/{name}")])

        async def runs() -> bool:
            return (await client.status()).applications[name].status == "RUNNING"

        await until_async(runs, f"{name} runs", 20.0)


@pytest.mark.local_only("the state of a Ray that Remora started ends with it")
async def test_a_killed_instance_of_remora_start_brings_its_applications_back(
    start_instance: StartInstance,
) -> None:
    instance = start_instance()
    await instance.run(Echo.options(num_replicas=2).bind("v"), "echo")
    before = await instance.pids("echo")
    kill(instance.pid)
    await until_true(lambda: not instance.members(), "all processes are gone")
    again = start_instance(instance.home.root)
    await again.replicas("echo", 2, without=before)
    assert (await get(f"{again.url}/echo")).json["version"] == "v"


async def test_a_killed_instance_of_a_program_brings_nothing_back(
    bound: Launch, start_instance: StartInstance
) -> None:
    await deploy_in(bound.home, "echo")
    kill(bound.pid)
    await until_true(lambda: bound.wait_gone(0.0), "the supervisor is gone")
    again = start_instance(bound.home.root)
    assert (await again.status()).applications == {}


@pytest.mark.local_only("the state of a Ray that Remora started ends with it")
async def test_a_program_s_instance_leaves_alone_what_was_there_before(
    start_instance: StartInstance,
) -> None:
    instance = start_instance()
    await instance.run(Echo.bind("v"), "stays")
    kill(instance.pid)
    await until_true(lambda: not instance.members(), "all processes are gone")
    launched = launch(instance.home, setup(), bound=True)
    try:
        launched.wait_ready(engines.patient(20.0))
        await deploy_in(instance.home, "of-a-program")
        async with ControlClient(instance.home) as client:
            assert set((await client.status()).applications) == {"of-a-program"}
    finally:
        launched.end(10.0)
    again = start_instance(instance.home.root)
    await again.replicas("stays", 1)
    assert (await get(f"{again.url}/stays")).json["version"] == "v"
    assert set((await again.status()).applications) == {"stays"}
