"""Roll-outs that fail: what goes back, when, and what is told of it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from tests.unit.control.rig import Rig, app, deployment

from remora.core.replica_state import ReplicaState
from remora.wire.control import ReplicaSpec

pytestmark = pytest.mark.virtual_time


def bad(spec: ReplicaSpec) -> str:
    return f"ValueError: no model {spec.code_version}" if "bad" in spec.code_version else ""


def versions(r: Rig) -> list[str]:
    return sorted(each.spec.code_version for each in r.replicas.serving if each.spec)


async def test_a_failed_roll_out_is_rolled_back_and_told(r: Rig) -> None:
    r.replicas.fail_construct = bad
    await r.deploy(app("default", deployment(num_replicas=2, rollback="auto")))
    await r.until_settled()
    before = {each.pid for each in r.replicas.serving}
    await r.deploy(app("default", deployment(version="bad", num_replicas=2, rollback="auto")))
    status = await r.until(lambda now: now is not None and bool(now.failure))
    assert status is not None
    assert "Revision 2 (release 2) failed and was rolled back" in status.failure
    assert "failed to start 6 times in a row" in status.failure
    assert "ValueError: no model bad" in status.failure
    await r.until_settled()
    status = await r.status()
    assert status is not None
    assert (status.status, status.revision) == ("RUNNING", 3)
    assert "rolled back" in status.message
    assert {each.pid for each in r.replicas.serving} == before
    # It is what is declared now: nothing more is tried, also by a later controller.
    started = r.engine.num_started
    await asyncio.sleep(300)
    assert r.engine.num_started == started
    await r.stop()
    await r.start()
    await r.until_settled()
    again = await r.status()
    assert again is not None
    assert again.failure == status.failure
    # The next deploy is another try, and its success is the end of the story.
    await r.deploy(app("default", deployment(version="2", num_replicas=2, rollback="auto")))
    await r.until_settled()
    after = await r.status()
    assert after is not None
    assert (after.failure, after.message) == ("", "")
    assert versions(r) == ["2", "2"]


async def test_what_was_gone_back_to_and_cannot_start_either_is_tried_with_pauses(r: Rig) -> None:
    await r.deploy(app("default", deployment(rollback="auto")))
    await r.until_settled()
    # What both versions depend on is gone.
    r.replicas.fail_construct = lambda _spec: "OSError: no database"
    await r.deploy(app("default", deployment(version="2", rollback="auto")))
    r.engine.crash(r.replicas.serving[0].process_id)
    told = await r.until(lambda now: now is not None and bool(now.failure))
    assert told is not None
    started = r.engine.num_started
    await asyncio.sleep(300)
    assert r.engine.num_started - started < 30
    after = await r.status()
    assert after is not None
    assert (after.revision, after.failure) == (told.revision, told.failure)
    r.replicas.fail_construct = lambda _spec: ""
    await r.until_settled()
    assert versions(r) == ["1"]


async def test_the_whole_application_goes_back_together(r: Rig) -> None:
    r.replicas.fail_construct = bad
    await r.deploy(
        app(
            "default",
            deployment("Front", num_replicas=2, rollback="auto"),
            deployment("Back"),
            deployment("Old"),
            route_prefix="/one",
        )
    )
    await r.until_settled()
    await r.deploy(
        app(
            "default",
            deployment("Front", version="bad", num_replicas=2, rollback="auto"),
            deployment("Back", version="2"),
            deployment("New", version="2"),
            route_prefix="/two",
        )
    )
    await r.until(lambda now: now is not None and bool(now.failure))
    await r.until_settled()
    await r.until(lambda now: now is not None and "New" not in now.deployments)
    status = await r.status()
    assert status is not None
    assert set(status.deployments) == {"Front", "Back", "Old"}
    assert versions(r) == ["1", "1", "1", "1"]
    assert r.snapshot.apps["default"].route_prefix == "/one"


async def test_a_route_that_somebody_took_meanwhile_stays_with_them(r: Rig) -> None:
    r.replicas.fail_construct = bad
    good = deployment(rollback="auto")
    await r.deploy(app("a", good, route_prefix="/one"))
    await r.until_settled("a")
    await r.deploy(
        app("a", deployment(version="bad", rollback="auto"), route_prefix="/two"),
        app("b", route_prefix="/one"),
    )
    await r.until(lambda now: now is not None and bool(now.failure), "a")
    await r.until_settled("a")
    await r.until_settled("b")
    assert r.snapshot.apps["a"].route_prefix == "/two"
    assert r.snapshot.apps["b"].route_prefix == "/one"


async def test_without_the_option_and_without_anything_good_nothing_is_rolled_back(r: Rig) -> None:
    r.replicas.fail_construct = bad
    await r.deploy(app("default", deployment(version="bad", rollback="auto")))
    first = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    assert first is not None
    assert not first.failure
    await r.deploy(app("default", deployment()))
    await r.until_settled()
    await r.deploy(app("default", deployment(version="bad")))
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    assert status is not None
    assert not status.failure
    assert "goes on serving with 1 replica(s)" in status.message
    assert versions(r) == ["1"]


async def test_a_version_of_which_only_some_can_start_is_not_left_half_way(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=4)))
    await r.until_settled()
    up: list[str] = []

    def one_only(spec: ReplicaSpec) -> str:
        if spec.code_version == "2" and (up or len(up) > 1):
            return "RuntimeError: out of memory"
        if spec.code_version == "2":
            up.append(spec.replica_id)
        return ""

    r.replicas.fail_construct = one_only
    fewest = [4]
    r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))
    await r.deploy(app("default", deployment(version="2", num_replicas=4)))
    status = await r.until(
        lambda now: now is not None and now.status == "DEPLOY_FAILED", timeout_s=600
    )
    assert status is not None
    assert "failed to start 12 times in a row" in status.message
    await r.until(lambda _now: versions(r) == ["1"] * 4)
    assert min(fewest) == 4


async def test_a_version_whose_replicas_do_not_stay_is_given_up(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2, rollback="auto")))
    await r.until_settled()
    await r.deploy(app("default", deployment(version="2", num_replicas=2, rollback="auto")))
    fewest = [2]
    r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))

    async def crash_new_ones() -> None:
        while True:
            await asyncio.sleep(0.005)
            running = r.controller.state.applications["default"].deployments["Model"]
            known = {each.pid for each in running.in_state(ReplicaState.RUNNING)}
            for each in r.replicas.serving:
                is_new = each.spec is not None and each.spec.code_version == "2"
                if is_new and each.pid in known:
                    r.engine.crash(each.process_id, "killed by SIGSEGV")

    crashing = asyncio.create_task(crash_new_ones())
    status = await r.until(lambda now: now is not None and bool(now.failure), timeout_s=600)
    crashing.cancel()
    assert status is not None
    assert "lost 6 replicas of the new version" in status.failure
    assert "killed by SIGSEGV" in status.failure
    await r.until_settled()
    assert versions(r) == ["1", "1"]


async def test_what_has_run_for_a_minute_is_trusted_although_some_replicas_are_always_young(
    r: Rig,
) -> None:
    options: dict[str, Any] = {"rollback": "auto", "max_constructor_retry_count": 3}
    await r.deploy(app("default", deployment(num_replicas=1, **options)))
    await r.until_settled()
    for number in range(1, 16):
        new = deployment(version="2", num_replicas=1 + number % 2, **options)
        await r.deploy(app("default", new))
        await r.until_settled()
        await asyncio.sleep(5.0)
    for _ in range(4):
        r.engine.crash(r.replicas.serving[0].process_id)
        await asyncio.sleep(3.0)
    await r.until_settled()
    status = await r.status()
    assert status is not None
    assert not status.failure
    assert versions(r) == ["2", "2"]


async def test_enough_replicas_are_enough_where_that_is_said(r: Rig) -> None:
    slow = {"s-3", "s-4"}
    r.replicas.construct_s = lambda spec: (
        100.0 if spec.replica_id.rpartition("#")[2] in slow else 0.01
    )
    some = deployment(num_replicas=4, required_ready_replicas=2)
    await r.deploy(app("default", some))
    before = asyncio.get_running_loop().time()
    await r.until_running()
    assert asyncio.get_running_loop().time() - before < 1.0
    status = await r.status()
    assert status is not None
    assert "2 of 4 replicas run, and 2 are required" in status.deployments["Model"].message
    r.engine.crash(r.replicas.serving[0].process_id)
    status = await r.until(lambda now: now is not None and now.status != "RUNNING")
    assert status is not None
    await r.until_settled(timeout_s=300)
    assert r.num_routable() == 4


async def test_what_was_given_up_is_never_fallen_back_on(r: Rig) -> None:
    two: dict[str, Any] = {"num_replicas": 2, "health_check_period_s": 1.0}
    await r.deploy(app("default", deployment(version="good", **two)))
    await r.until_settled()
    for version in ("flaky", "flaky", "die"):
        await r.deploy(app("default", deployment(version=version, **two)))
        await fails_once_it_runs(r, version)
        await r.until(lambda _now: versions(r) == ["good", "good"])
    # What it fell back on worked: it is tried as long as it takes, and is no failure.
    await r.deploy(app("default", deployment(version="good", **two)))
    await r.until_settled()
    assert r.controller.state.applications["default"].deployments["Model"].previous is None


async def test_going_back_is_to_the_newest_that_worked_although_it_is_not_trusted_yet(
    r: Rig,
) -> None:
    options: dict[str, Any] = {"rollback": "auto", "num_replicas": 2}
    await r.deploy(app("default", deployment(version="oldest", **options)))
    await r.until_settled()
    await r.deploy(app("default", deployment(version="good", **options)))
    await r.until_settled()
    await asyncio.sleep(1.0)
    r.replicas.fail_construct = bad
    for version in ("bad", "bad2"):
        await r.deploy(app("default", deployment(version=version, **options)))
        await r.until(lambda now: now is not None and bool(now.failure))
        await r.until_settled()
        assert versions(r) == ["good", "good"]
    # Without waiting for the verdict on the one before.
    for version in ("bad", "bad2"):
        await r.deploy(app("default", deployment(version=version, **options)))
    await r.until(lambda now: now is not None and bool(now.failure))
    await r.until_settled()
    assert versions(r) == ["good", "good"]


async def test_a_first_version_that_does_not_stay_is_told_until_it_does(r: Rig) -> None:
    seen: list[tuple[str, str]] = []

    async def sicken() -> None:
        while True:
            await r.until(lambda _now: r.num_routable() == 1, timeout_s=60)
            replica = next(each for each in r.replicas.serving if not each.sickness)
            await asyncio.sleep(1.0)
            now = await r.status()
            assert now is not None
            seen.append((now.status, now.message))
            replica.sickness = RuntimeError("sick")
            await r.until(lambda _now: r.num_routable() == 0, timeout_s=60)

    await r.deploy(app("default", deployment(health_check_period_s=1.0)))
    await r.until_settled()
    sickening = asyncio.create_task(sicken())
    await asyncio.sleep(120)
    sickening.cancel()
    # One bad request should cost nothing; what goes on for ever should be seen.
    assert [status for status, _ in seen[:3]] == ["RUNNING"] * 3
    assert {status for status, _ in seen[3:]} == {"UNHEALTHY"}
    message = seen[-1][1]
    assert "1 of 1 replicas run, and do not stay" in message
    assert re.search(r"replaced \d+ times in the last minute: .*RuntimeError: sick", message)
    for each in r.replicas.serving:
        each.sickness = None
    # It hears of that also where nothing else happens for long.
    await r.deploy(app("default", deployment(health_check_period_s=1000.0)))
    for _ in range(3):
        await r.until(lambda _now: r.num_routable() == 1)
        r.engine.crash(r.replicas.serving[0].process_id)
        await r.until(lambda now: now is not None and now.status == "UNHEALTHY")
    await r.until(lambda _now: r.num_routable() == 1)
    since = asyncio.get_running_loop().time()
    await r.until_settled()
    assert 9.0 < asyncio.get_running_loop().time() - since < 10.5


async def test_what_serves_is_said_only_where_it_does(r: Rig) -> None:
    two: dict[str, Any] = {"num_replicas": 2, "max_constructor_retry_count": 1}
    r.replicas.fail_construct = bad
    await r.deploy(app("default", deployment(version="bad", **two)))
    first = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    assert first is not None
    assert "There is no version before that worked." in first.message
    await r.deploy(app("default", deployment(**two)))
    await r.until_settled()
    await r.deploy(app("default", deployment(version="bad", **two)))
    await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    r.replicas.fail_construct = lambda _spec: "OSError: no database"
    for left in (1, 0):
        r.engine.crash(r.replicas.serving[0].process_id)
        await r.until(lambda _now, left=left: r.num_routable() == left)  # type: ignore[misc]
        now = await r.status()
        assert now is not None
        assert now.status == "DEPLOY_FAILED"
        serves = "goes on serving with 1 of 2 replicas"
        assert (serves if left else "is started, and 0 of 2 replicas run") in now.message
        assert ("goes on serving" in now.message) == bool(left)


async def fails_once_it_runs(r: Rig, version: str) -> None:
    """Crash every replica of a version that is ready, until it is given up."""
    changed = r.controller.watch()
    try:
        while True:
            changed.clear()
            now = await r.status()
            assert now is not None
            if now.status == "DEPLOY_FAILED":
                return
            model = r.controller.state.applications["default"].deployments["Model"]
            running = {each.pid for each in model.in_state(ReplicaState.RUNNING)}
            for each in r.replicas.serving:
                if each.spec and each.spec.code_version == version and each.pid in running:
                    r.engine.crash(each.process_id, "exit status 9")
            await changed.wait()
    finally:
        r.controller.unwatch(changed)
