"""Configs through the controller: imports in processes of their own, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.control.rig import Rig, app, deployment, rig

from remora.control.builders import AT_A_TIME, PLAN_LIMIT_S, PLANNED_AT_A_TIME, PREFIX, BuildError
from remora.types import LOCAL_NODE
from remora.wire.codec import pack, unpack
from remora.wire.control import BuildResult, ConfigRequest, DeclaredApplication
from remora.wire.plan import Plan

pytestmark = pytest.mark.virtual_time


def declared(name: str) -> DeclaredApplication:
    return DeclaredApplication(
        name=name, route_prefix=f"/{name}", given=b'{"name": "%s"}' % name.encode()
    )


def describe(application: DeclaredApplication) -> BuildResult:
    if application.name.startswith("bad"):
        return BuildResult(error="Traceback: no weights")
    made = app(application.name, deployment(), route_prefix=application.route_prefix)
    return BuildResult(application=made)


async def submit(r: Rig, *names: str) -> None:
    request = ConfigRequest(applications=tuple(map(declared, names)), source="test")
    await r.call("submit", pack(request))


def builders(r: Rig) -> list[str]:
    return [name for name in r.engine.processes if name.startswith(PREFIX)]


async def test_an_import_that_a_node_refuses_is_made_elsewhere(r: Rig) -> None:
    r.replicas.describe = describe
    r.engine.start_delay_s = 1.0
    await submit(r, "a")
    await r.until(lambda _now: bool(builders(r)))
    (first,) = builders(r)
    r.engine.refuse_node(LOCAL_NODE, "another version")
    # This engine has one node only, and a builder may be on any.
    await r.until(lambda _now: bool(builders(r)) and builders(r) != [first])
    r.engine.join_node(r.engine.nodes[LOCAL_NODE])
    await r.until_running("a")


async def test_an_application_is_imported_in_a_process_that_ends(r: Rig) -> None:
    r.replicas.describe = describe
    await submit(r, "a")
    await r.until_running("a")
    assert r.num_routable(app_name="a") == 1
    assert builders(r) == []


@pytest.mark.parametrize("name", ["builder-shop", "policy:shop", "proxy-1", "controller"])
async def test_an_application_may_be_named_like_a_process(r: Rig, name: str) -> None:
    await r.deploy(app(name))
    await r.until_running(name)
    assert r.num_routable(app_name=name) == 1


async def test_an_import_that_fails_is_told_and_harms_no_other(r: Rig) -> None:
    r.replicas.describe = describe
    await submit(r, "bad", "good")
    await r.until_running("good")
    status = await r.status("bad")
    assert status is not None
    assert status.status == "DEPLOY_FAILED"
    assert "no weights" in status.message


async def test_a_bug_in_an_import_leaves_no_release_under_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr("remora.control.builders.as_request", broken)
    async with rig() as r:
        r.replicas.describe = describe
        await submit(r, "a")
        status = await r.until(lambda now: now is not None and now.status != "DEPLOYING", "a")
        assert status is not None
        assert status.status == "DEPLOY_FAILED"
        assert "AttributeError: a bug" in status.message
        assert "Traceback" in caplog.text


async def test_only_some_are_imported_at_a_time(r: Rig) -> None:
    r.replicas.describe = describe
    most = []
    r.engine.on_exit.append(lambda _: most.append(len(builders(r))))
    names = [f"app{number}" for number in range(20)]
    await submit(r, *names)
    for name in names:
        await r.until_running(name)
    # One more may be on its way out.
    assert 1 < max(most) <= AT_A_TIME + AT_A_TIME
    assert r.engine.num_started == 40


async def test_a_builder_that_dies_is_told_with_its_reason(r: Rig) -> None:
    r.replicas.build_s = 1e9
    await submit(r, "a")
    await _until(lambda: bool(builders(r)))
    r.engine.crash(builders(r)[0], "killed by SIGKILL")
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED", "a")
    assert status is not None
    assert "ended before it was done: killed by SIGKILL. The kernel" in status.message
    assert status.message.endswith("It logged nothing.")


async def test_one_whose_connection_is_lost_first_is_told_by_how_it_ended(r: Rig) -> None:
    r.replicas.build_s = 1e9
    await submit(r, "a")
    await _until(lambda: bool(builders(r)))
    await asyncio.sleep(1.0)
    (builder,) = builders(r)
    r.replicas.lose_connections(builder)
    await asyncio.sleep(0.1)
    r.engine.crash(builder, "exit status 7")
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED", "a")
    assert status is not None
    assert "ended before it was done: exit status 7." in status.message


async def test_one_that_cannot_be_started_is_told(r: Rig) -> None:
    r.engine.fail_start = lambda _spec: "could not start: no memory"
    await submit(r, "a")
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED", "a")
    assert status is not None
    assert "no memory" in status.message


async def test_an_import_that_hangs_is_ended_by_the_next_config(r: Rig) -> None:
    r.replicas.describe = describe
    r.replicas.build_s = 1e9
    await submit(r, "a")
    await _until(lambda: bool(builders(r)))
    (hung,) = builders(r)
    r.replicas.build_s = 0.01
    await submit(r, "a")
    await r.until_running("a")
    assert hung not in r.engine.processes


async def test_a_successor_imports_again_and_ends_what_its_predecessor_began(r: Rig) -> None:
    r.replicas.describe = describe
    r.replicas.build_s = 1e9
    await submit(r, "a")
    await _until(lambda: any(r.engine.processes[name].is_up for name in builders(r)))
    # Killed outright, it has no time to end anything.
    (left,) = builders(r)
    process = r.engine.processes[left]
    await r.stop()
    r.engine.processes[left] = process
    r.replicas.build_s = 0.01
    await r.start()
    await r.until_running("a")
    await _until(lambda: left not in r.engine.processes)


@pytest.mark.parametrize("after_ms", range(0, 60, 3))
async def test_a_controller_that_is_killed_at_any_moment_brings_the_config_about(
    r: Rig, after_ms: int
) -> None:
    r.replicas.describe = describe
    await submit(r, "old", "kept")
    await r.until_settled("old")
    await r.until_settled("kept")
    kept = {key for key in r.engine.processes if key.startswith("kept/")}
    await submit(r, "kept", "new")
    await asyncio.sleep(after_ms / 1000)
    await r.stop()
    await r.start()
    await r.until_settled("new")
    await r.until_settled("kept")
    await r.until(lambda now: now is None, "old")
    # The same version: nothing of it was touched.
    assert {key for key in r.engine.processes if key.startswith("kept/")} == kept
    await _until(lambda: not builders(r))
    assert r.controller.state.submission is None


async def test_a_description_that_cannot_be_saved_is_a_failed_import(r: Rig) -> None:
    r.replicas.describe = describe
    await submit(r, "a")
    r.engine.fail_puts = True
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED", "a")
    assert status is not None
    assert "no space left on device" in status.message


async def plan(r: Rig, *names: str) -> Plan:
    request = ConfigRequest(applications=tuple(map(declared, names)), source="test")
    made = r.admin.handlers["plan"](pack(request))
    assert not hasattr(made, "__aiter__")
    return unpack(await made, Plan)


def errors_of(found: Plan) -> dict[str, str]:
    return {each.name: each.error for each in found.applications}


async def test_plans_that_hang_hold_up_no_deploy_and_end_in_time(r: Rig) -> None:
    r.replicas.describe = describe
    r.replicas.build_s = 1e9
    plans = [asyncio.create_task(plan(r, f"hung{number}")) for number in range(8)]
    await _until(lambda: len(builders(r)) == PLANNED_AT_A_TIME)
    # They have been asked by then.
    await asyncio.sleep(1.0)
    r.replicas.build_s = 0.01
    began = asyncio.get_running_loop().time()
    await submit(r, "a")
    await r.until_running("a")
    assert asyncio.get_running_loop().time() - began < 10.0
    found = [errors_of(each) for each in await asyncio.gather(*plans)]
    assert asyncio.get_running_loop().time() - began < PLAN_LIMIT_S + 10.0
    assert "was not imported within 120 s" in found[0]["hung0"]
    assert found[-1]["hung7"] == ""
    await _until(lambda: not builders(r))


async def test_a_plan_that_nobody_waits_for_is_ended(r: Rig) -> None:
    r.replicas.build_s = 1e9
    waiting = asyncio.create_task(plan(r, "a"))
    await _until(lambda: bool(builders(r)))
    waiting.cancel()
    began = asyncio.get_running_loop().time()
    await _until(lambda: not builders(r))
    assert asyncio.get_running_loop().time() - began < 10.0


async def test_without_a_builder_nothing_is_described(r: Rig) -> None:
    with pytest.raises(BuildError, match="knows no application"):
        await r.controller.builders.build(declared("a"))


async def _until(condition: object) -> None:
    assert callable(condition)
    while not condition():
        await asyncio.sleep(0.001)
