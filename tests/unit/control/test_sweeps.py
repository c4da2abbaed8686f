"""What the controller says is needed when environments are swept, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
from tests.unit.control.rig import Rig, app, deployment, rig

from remora.control.checkpoint import Section
from remora.control.releases import KEPT_WITH_ENVIRONMENTS, ReleaseStore
from remora.control.state_file import JOURNAL
from remora.control.sweeps import EVERY_S, FIRST_S, Sweeps
from remora.core.state import ControllerState
from remora.core.submission import Submission
from remora.options.resources import RuntimeEnv
from remora.testing import FakeEngine
from remora.wire.codec import pack
from remora.wire.control import BuildResult, ConfigRequest, DeclaredApplication

pytestmark = pytest.mark.virtual_time


class SweptEngine(FakeEngine):
    """Notes what it is told is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[set[str]] = []

    def sweep(self, needed: Collection[RuntimeEnv]) -> None:
        self.told.append({package for env in needed for package in env.packages})


def env(name: str) -> RuntimeEnv:
    return RuntimeEnv(packages=(name,))


def declared(*names: str) -> ConfigRequest:
    apps = tuple(
        DeclaredApplication(name="a", route_prefix=None, given=name.encode(), runtime_env=env(name))
        for name in names
    )
    return ConfigRequest(applications=apps, source="test")


def describe(application: DeclaredApplication) -> BuildResult:
    version = application.given.decode()
    of_replica = deployment(version=version, runtime_env=env(f"replica-{version}"))
    return BuildResult(application=app(application.name, of_replica, route_prefix=None))


async def next_sweep(r: Rig) -> set[str]:
    engine = r.engine
    assert isinstance(engine, SweptEngine)
    count = len(engine.told)
    async with asyncio.timeout(EVERY_S + 10):
        while len(engine.told) == count:
            await asyncio.sleep(1)
    return engine.told[-1]


async def submit(r: Rig, name: str) -> None:
    await r.call("submit", pack(declared(name)))
    await r.until_settled("a")


async def test_is_told_soon_after_the_start_and_then_every_few_minutes() -> None:
    engine = SweptEngine()
    async with rig(engine):
        await asyncio.sleep(FIRST_S - 5)
        assert engine.told == []
        await asyncio.sleep(10)
        assert engine.told == [set()]
        await asyncio.sleep(EVERY_S * 2)
        assert len(engine.told) == 3


async def test_what_runs_and_what_a_rollback_goes_to_is_needed() -> None:
    async with rig(SweptEngine()) as r:
        r.replicas.describe = describe
        await submit(r, "1")
        assert await next_sweep(r) == {"1", "replica-1"}
        await submit(r, "2")
        assert await next_sweep(r) == {"1", "2", "replica-2"}
        await r.deploy(app("b", deployment(runtime_env=env("b")), route_prefix=None))
        await r.until_settled("b")
        await r.delete("a", "b")
        await r.until(lambda now: now is None, "b")
        # None of it runs, and all of it may come back.
        assert await next_sweep(r) == {"1", "2", "b"}
        await r.stop()
        await r.start()
        assert await next_sweep(r) == {"1", "2", "b"}


async def test_releases_of_long_ago_keep_no_environment() -> None:
    async with rig(SweptEngine()) as r:
        r.replicas.describe = describe
        for number in range(KEPT_WITH_ENVIRONMENTS + 2):
            await submit(r, str(number))
        needed = await next_sweep(r)
        assert {"0", "1"} & needed == set()
        assert "2" in needed


def test_what_is_being_imported_is_needed() -> None:
    request = declared("new").applications
    state = ControllerState(submission=Submission(release=1, applications=request))
    assert state.environments() == {env("new")}


async def test_a_roll_out_needs_what_it_may_fall_back_to() -> None:
    async with rig(SweptEngine()) as r:
        spec = deployment(version="1", runtime_env=env("old"))
        await r.deploy(app("a", spec, route_prefix=None))
        await r.until_settled("a")
        r.engine.fail_start = lambda spec: "no" if spec.runtime_env == env("new") else ""
        spec = deployment(version="2", runtime_env=env("new"))
        await r.deploy(app("a", spec, route_prefix=None))
        state = r.controller.state
        assert state.applications["a"].deployments["Model"].previous is not None
        assert state.environments() == {env("old"), env("new")}


def in_folder_of(engine: SweptEngine) -> SweptEngine:
    """A new instance in the same folder: nothing runs, the store is the same."""
    made = SweptEngine()
    made.store = engine.store
    made.controller_restarts = 0
    return made


async def test_a_programs_instance_keeps_what_the_other_one_of_its_folder_needs() -> None:
    engine = SweptEngine()
    async with rig(engine) as r:
        r.replicas.describe = describe
        await submit(r, "1")
        await submit(r, "2")
    engine = in_folder_of(engine)
    async with rig(engine, bound=True) as r:
        own = deployment(runtime_env=env("own"))
        await r.deploy(app("b", own, route_prefix=None))
        assert await next_sweep(r) >= {"1", "2", "replica-2", "own"}
    # What a program had nobody brings back.
    async with rig(in_folder_of(engine)) as r:
        assert await next_sweep(r) >= {"1", "2", "replica-2"}
        assert "own" not in await next_sweep(r)


async def test_nothing_is_swept_while_it_is_not_known_what_is_needed() -> None:
    engine = SweptEngine()
    engine.store[JOURNAL] = b"of an instance that ended while it saved"
    releases = ReleaseStore(Section(engine))
    sweeps = Sweeps(engine, releases, bound=True)
    for now in (0, FIRST_S, FIRST_S + EVERY_S):
        await sweeps.look(ControllerState(), now)
    assert engine.told == []
    del engine.store[JOURNAL]
    await sweeps.look(ControllerState(is_rebuilding=True), 3 * EVERY_S)
    assert engine.told == []
    await sweeps.look(ControllerState(), 3 * EVERY_S)
    assert engine.told == [set()]
