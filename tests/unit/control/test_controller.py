"""The controller with fake processes below it, in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.unit.control.rig import Rig, app, deployment, rig

from remora.control.releases import KEPT_WITH_CODE
from remora.core import events as ev
from remora.core.reconcile import story_of
from remora.core.saved_state import encode
from remora.core.snapshot import Snapshot
from remora.engine.base import DoorsClosing, DoorsOpened, Node
from remora.errors import ConfigError, EngineError, InstanceError, RouteTakenError
from remora.testing import FakeEngine, replay_kept
from remora.types import DeploymentID, NodeID
from remora.wire.control import ApplicationStatus, InstanceStatus, ReplicaReconfigure, ReplicaSpec

pytestmark = pytest.mark.virtual_time


def failing(version: str) -> object:
    def decide(spec: ReplicaSpec) -> str:
        return f"ValueError: no model in {version}" if spec.code_version == version else ""

    return decide


async def test_a_first_deploy_comes_up_without_waiting(r: Rig) -> None:
    before = asyncio.get_running_loop().time()
    r.replicas.docs_path = "/docs"
    await r.deploy(app("default", deployment(num_replicas=3)))
    await r.until_running()
    assert asyncio.get_running_loop().time() - before < 0.1
    assert r.num_routable() == 3
    status = await r.status()
    assert status is not None
    only = status.deployments["Model"]
    assert (only.status, only.status_trigger) == ("HEALTHY", "CONFIG_UPDATE_COMPLETED")
    assert only.replica_states == {"RUNNING": 3}
    assert status.docs_path == "/docs"
    assert sorted(replica.pid or 0 for replica in only.replicas) == [10001, 10002, 10003]


async def test_a_rollout_never_has_fewer_replicas_than_wanted(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=4)))
    await r.until_running()
    fewest = [4]
    most = [4]

    def look(snapshot: Snapshot) -> None:
        fewest.append(len(snapshot.deployments[DeploymentID("Model")].replicas))
        most.append(len(r.engine.processes))

    r.on_snapshot.append(look)
    await r.deploy(app("default", deployment(version="2", num_replicas=4)))
    await r.until_settled()
    assert min(fewest) == 4
    assert max(most) <= 4 + 1 + 1  # one more comes, one still drains
    assert {each.spec.code_version for each in r.replicas.serving if each.spec} == {"2"}


async def test_an_old_replica_drains_after_routers_know_and_finishes_its_work(r: Rig) -> None:
    await r.deploy(app())
    await r.until_running()
    (old,) = r.replicas.serving
    old.work_s = 7.0
    known_at_drain: list[int] = []
    r.on_snapshot.append(lambda snapshot: known_at_drain.append(old.calls.count("drain")))
    await r.deploy(app("default", deployment(version="2")))
    await r.until_running()
    started = asyncio.get_running_loop().time()
    await r.until(
        lambda now: now is not None and sum(now.deployments["Model"].replica_states.values()) == 1
    )
    assert 6.5 < asyncio.get_running_loop().time() - started < 8.0
    # Every snapshot was applied before the drain was asked for.
    assert set(known_at_drain) == {0}
    assert old.calls[-2:] == ["drain", "stop"]


async def test_a_drain_that_takes_too_long_ends_at_its_deadline(r: Rig) -> None:
    await r.deploy(app("default", deployment(graceful_shutdown_timeout_s=3.0)))
    await r.until_running()
    (old,) = r.replicas.serving
    old.work_s = 1e6
    started = asyncio.get_running_loop().time()
    await r.delete("default")
    await r.until(lambda now: now is None)
    assert 3.0 <= asyncio.get_running_loop().time() - started < 6.0
    assert "stop" in old.calls


async def test_a_failing_first_deploy_is_told_quickly_with_the_users_traceback(r: Rig) -> None:
    r.replicas.fail_construct = failing("1")  # type: ignore[assignment]
    before = asyncio.get_running_loop().time()
    await r.deploy(app())
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    assert asyncio.get_running_loop().time() - before < 1.0
    assert status is not None
    assert "3 times in a row" in status.message
    assert "ValueError: no model in 1" in status.message
    assert status.deployments["Model"].status_trigger == "REPLICA_STARTUP_FAILED"
    started = r.engine.num_started
    await asyncio.sleep(600)
    assert r.engine.num_started == started
    assert "failed to start 3 times" in r.snapshot.deployments[DeploymentID("Model")].unavailable


async def test_deploying_again_after_a_failure_tries_again(r: Rig) -> None:
    r.replicas.fail_construct = failing("1")  # type: ignore[assignment]
    await r.deploy(app())
    await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    r.replicas.fail_construct = lambda _spec: ""
    await r.deploy(app())
    await r.until_running()
    assert r.num_routable() == 1


async def test_a_failing_new_version_leaves_the_old_one_at_full_strength(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    r.replicas.fail_construct = failing("2")  # type: ignore[assignment]
    fewest = [2]
    r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))
    await r.deploy(app("default", deployment(version="2", num_replicas=2)))
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    assert status is not None
    assert "The version before goes on serving with 2 replica(s)" in status.message
    assert "no model in 2" in status.message
    # What crashes now is replaced by the version that works.
    r.engine.crash(r.replicas.serving[0].process_id)
    await asyncio.sleep(5)
    assert r.num_routable() == 2
    assert {each.spec.code_version for each in r.replicas.serving if each.spec} == {"1"}
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    assert min(fewest[:-2]) == 2


async def test_a_newer_deploy_supersedes_one_that_hangs(r: Rig) -> None:
    r.replicas.construct_s = lambda spec: 1e9 if spec.code_version == "1" else 0.01
    await r.deploy(app())
    status = await r.until(
        lambda now: now is not None and "slow to initialise" in now.message, timeout_s=60
    )
    assert status is not None
    assert status.status == "DEPLOYING"
    await r.deploy(app("default", deployment(version="2")))
    await r.until_running()
    await r.until(lambda _now: len(r.engine.processes) == 1)


async def test_the_same_again_and_a_new_count_restart_nothing(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    pids = {replica.pid for replica in r.replicas.serving}
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    assert {replica.pid for replica in r.replicas.serving} == pids
    await r.deploy(app("default", deployment(num_replicas=4)))
    up = await r.until(lambda now: now is not None and now.status == "RUNNING")
    assert up is not None
    assert up.deployments["Model"].status_trigger == "UPSCALE_COMPLETED"
    assert pids < {replica.pid for replica in r.replicas.serving}
    await r.deploy(app("default", deployment(num_replicas=1)))
    await r.until(lambda _now: len(r.engine.processes) == 1)
    down = await r.status()
    assert down is not None
    assert down.deployments["Model"].status_trigger == "DOWNSCALE_COMPLETED"
    assert {replica.pid for replica in r.replicas.serving} < pids


async def test_a_new_user_config_is_handed_over_in_place(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=3, user_config={"k": 1})))
    await r.until_running()
    pids = {replica.pid for replica in r.replicas.serving}
    await r.deploy(app("default", deployment(num_replicas=3, user_config={"k": 2})))
    await r.until_running()
    assert {replica.pid for replica in r.replicas.serving} == pids
    assert [replica.configs for replica in r.replicas.serving] == [[{"k": 1}, {"k": 2}]] * 3


async def test_keys_of_a_user_config_may_be_numbers(r: Rig) -> None:
    first, second = {"labels": {0: "eel", 10: "ray"}}, {"labels": {0: "eel", 10: "cod"}}
    await r.deploy(app("default", deployment(user_config=first)))
    await r.until_running()
    await r.deploy(app("default", deployment(user_config=second)))
    await r.until_running()
    assert [replica.configs for replica in r.replicas.serving] == [[first, second]]


async def test_a_user_config_that_is_refused_costs_no_replica(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2, user_config={"k": 1})))
    await r.until_running()

    def refuse(change: ReplicaReconfigure) -> str:
        return "KeyError: 'k'" if change.config.user_config == {"bad": 1} else ""

    def refuse_spec(spec: ReplicaSpec) -> str:
        return "KeyError: 'k'" if spec.config.user_config == {"bad": 1} else ""

    r.replicas.fail_reconfigure = refuse
    r.replicas.fail_construct = refuse_spec
    fewest = [2]
    r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))
    await r.deploy(app("default", deployment(num_replicas=2, user_config={"bad": 1})))
    status = await r.until(lambda now: now is not None and now.status == "DEPLOY_FAILED")
    assert status is not None
    assert "KeyError: 'k'" in status.message
    await asyncio.sleep(10)
    assert min(fewest) == 2
    # The one that was left in an unknown condition was replaced.
    assert [replica.configs[0] for replica in r.replicas.serving] == [{"k": 1}] * 2
    # One that comes up with the options of before says nothing for the new ones.
    started = r.engine.num_started
    await asyncio.sleep(300)
    assert r.engine.num_started == started
    assert all({"bad": 1} not in replica.configs for replica in r.replicas.serving)
    status = await r.status()
    assert status is not None
    assert status.status == "DEPLOY_FAILED"


async def test_a_crashed_replica_is_replaced_at_once_and_repeated_crashes_are_slowed_down(
    r: Rig,
) -> None:
    await r.deploy(app())
    await r.until_running()
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(6):
        before = loop.time()
        r.engine.crash(r.replicas.serving[0].process_id)
        status = await r.until(lambda now: now is not None and now.status == "UNHEALTHY")
        assert status is not None
        assert "killed by SIGKILL" in status.message
        await r.until(lambda _now: r.num_routable() == 1)
        waits.append(loop.time() - before)
    assert waits[0] < 0.05
    assert waits[1] < 0.05
    assert waits[-1] > 0.5
    assert waits == sorted(waits)


async def test_an_application_that_worked_is_tried_for_ever(r: Rig) -> None:
    await r.deploy(app())
    await r.until_running()
    r.replicas.fail_construct = failing("1")  # type: ignore[assignment]
    r.engine.crash(r.replicas.serving[0].process_id)
    await asyncio.sleep(300)
    status = await r.status()
    assert status is not None
    assert status.status == "UNHEALTHY"
    assert status.deployments["Model"].status_trigger == "REPLICA_STARTUP_FAILED"
    assert "tried again" in status.message
    assert r.snapshot.deployments[DeploymentID("Model")].unavailable
    r.replicas.fail_construct = lambda _spec: ""
    await r.until_running(timeout_s=40)
    assert not r.snapshot.deployments[DeploymentID("Model")].unavailable


async def test_a_sick_replica_drains_and_a_hung_one_is_killed(r: Rig) -> None:
    model = deployment(num_replicas=2, health_check_period_s=1.0, health_check_timeout_s=2.0)
    await r.deploy(app("default", model))
    await r.until_running()
    sick, hung = r.replicas.serving
    sick.sickness = RuntimeError("GPU fell off")
    hung.is_hung = True
    status = await r.until(lambda now: now is not None and "GPU fell off" in now.message)
    assert status is not None
    assert status.deployments["Model"].status_trigger == "HEALTH_CHECK_FAILED"
    await asyncio.sleep(60)
    await r.until_running()
    assert sick.calls[-2:] == ["drain", "stop"]
    assert "drain" not in hung.calls
    assert hung.process_id not in r.engine.processes
    assert r.num_routable() == 2


async def test_a_sick_deployment_restarts_no_other(r: Rig) -> None:
    back = deployment("Back", health_check_period_s=1.0)
    await r.deploy(app("default", deployment("Front"), back, ingress="Front"))
    await r.until_settled()
    front, sick = (
        next(each for each in r.replicas.serving if name in each.process_id)
        for name in ("Front", "Back")
    )
    sick.sickness = RuntimeError("out of memory")
    await r.until(lambda _now: sick.process_id not in r.engine.processes)
    await r.until_settled()
    assert front in r.replicas.serving
    assert front.calls.count("initialize") == 1


async def test_two_failed_health_checks_change_nothing(r: Rig) -> None:
    await r.deploy(app("default", deployment(health_check_period_s=1.0)))
    await r.until_running()
    (replica,) = r.replicas.serving
    replica.sickness = RuntimeError("cold")
    await asyncio.sleep(2.5)
    replica.sickness = None
    await asyncio.sleep(60)
    assert r.replicas.serving == [replica]


async def test_a_taken_route_prefix_is_refused_before_anything_changes(r: Rig) -> None:
    await r.deploy(app("one"))
    await r.until_running("one")
    before = encode(r.controller.state, with_event_id=False)
    code = set(r.engine.store)
    with pytest.raises(RouteTakenError, match="'/' belongs to application 'one'"):
        await r.deploy(app("two", deployment(code=b"other")))
    with pytest.raises(ConfigError, match="ingress"):
        await r.deploy(app("two", route_prefix="/two", ingress="Missing"))
    with pytest.raises(ConfigError, match="route_prefix"):
        await r.deploy(app("two", route_prefix="two"))
    assert encode(r.controller.state, with_event_id=False) == before
    await asyncio.sleep(10)
    assert {key for key in r.engine.store if key.startswith("code/")} <= code


async def test_a_full_disk_refuses_a_deploy_and_everything_keeps_serving(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    r.engine.fail_puts = True
    with pytest.raises(EngineError, match="nothing changed"):
        await r.deploy(app("default", deployment(version="2")))
    with pytest.raises(EngineError, match="nothing changed"):
        await r.deploy(app("default", deployment(version="2", code=b"new")))
    r.engine.crash(r.replicas.serving[0].process_id)
    await asyncio.sleep(1)
    await r.until_settled()
    assert {each.spec.code_version for each in r.replicas.serving if each.spec} == {"1"}
    r.engine.fail_puts = False
    await r.deploy(app("default", deployment(version="2")))
    await r.until_running()


async def test_who_leaves_while_a_save_fails_harms_nobody(
    r: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await r.deploy(app("default"))
    await r.until_running()
    is_saving = asyncio.Event()

    async def fail_slowly(key: str, value: bytes) -> None:
        is_saving.set()
        await asyncio.sleep(1)
        raise EngineError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(r.engine, "put", fail_slowly)
        asked = ev.DeleteRequested(names=("default",))
        client = asyncio.ensure_future(r.controller.request(asked))
        await is_saving.wait()
        client.cancel()
        await asyncio.sleep(2)
    await r.deploy(app("default", deployment(version="2")))
    await r.until_settled()
    assert r.num_routable() == 1


async def test_code_is_kept_once_and_deleted_when_nobody_needs_it(r: Rig) -> None:
    big = b"x" * 3_000_000
    await r.deploy(app("default", deployment(code=big), deployment("Other", code=big)))
    await r.until_running()
    codes = [key for key in r.engine.store if key.startswith("code/")]
    assert len(codes) == 1
    assert len(r.engine.store["state"]) < 10_000
    await r.delete("default")
    await r.until(lambda now: now is None)
    await asyncio.sleep(10)
    # A rollback may want it back, until enough others were deployed.
    assert [key for key in r.engine.store if key.startswith("code/")] == codes
    for number in range(KEPT_WITH_CODE):
        await r.deploy(app("default", deployment(code=b"%d" % number)))
        await r.until_running()
    await asyncio.sleep(10)
    left = {key for key in r.engine.store if key.startswith("code/")}
    assert len(left) == KEPT_WITH_CODE
    assert not left & set(codes)


async def test_a_restarted_controller_adopts_what_runs_and_routers_see_no_dip(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=3)))
    await r.until_running()
    pids = {replica.pid for replica in r.replicas.serving}
    seen: list[int] = []
    r.on_snapshot.append(lambda _snapshot: seen.append(r.num_routable()))
    version = r.snapshot.version
    await r.stop()
    await r.start()
    await r.until_running()
    await asyncio.sleep(20)
    assert set(seen) == {3}
    assert {replica.pid for replica in r.replicas.serving} == pids
    assert r.engine.num_started == 3
    assert r.snapshot.version > version


async def test_a_restarted_controller_replaces_what_died_and_kills_what_it_does_not_know(
    r: Rig,
) -> None:
    await r.deploy(app("default", deployment(num_replicas=3)))
    await r.until_running()
    await r.stop()
    # Nobody reads its events, so the new controller must find out by itself.
    dead = r.replicas.serving[0]
    r.engine.crash(dead.process_id)
    stranger = r.replicas.serving[1].process_id.split("#", maxsplit=1)[0] + "#stranger"
    from remora.engine.base import ProcessSpec

    await r.engine.start_process(ProcessSpec(stranger, "x:y", "stranger"))
    await asyncio.sleep(1)
    await r.start()
    await asyncio.sleep(1)
    await r.until_running()
    assert r.num_routable() == 3
    assert stranger not in r.engine.processes
    assert dead.process_id not in r.engine.processes


async def test_a_controller_that_restarts_in_the_middle_of_a_rollout_finishes_it(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=4)))
    await r.until_running()
    fewest = [4]
    r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))
    await r.deploy(app("default", deployment(version="2", num_replicas=4)))
    for _ in range(5):
        await asyncio.sleep(0.03)
        await r.stop()
        await r.start()
    await r.until_settled()
    assert min(fewest) == 4
    assert {each.spec.code_version for each in r.replicas.serving if each.spec} == {"2"}


async def test_a_replica_that_stays_silent_holds_the_snapshot_for_five_seconds_only(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    await r.stop()
    r.replicas.serving[0].is_hung = True
    before = asyncio.get_running_loop().time()
    r.snapshot = Snapshot()
    await r.start()
    await r.until(lambda _now: r.num_routable() > 0)
    assert 4.8 < asyncio.get_running_loop().time() - before < 5.3
    assert r.num_routable() == 1


async def test_the_ingress_leaves_before_what_it_calls(r: Rig) -> None:
    await r.deploy(app("default", deployment("Front"), deployment("Back"), ingress="Front"))
    await r.until_running()
    front = next(each for each in r.replicas.serving if each.process_id.startswith("default/Front"))
    front.work_s = 5.0
    await r.delete("default")
    status = await r.until(lambda now: now is not None and now.status == "DELETING")
    await asyncio.sleep(3)
    assert r.snapshot.apps == {}
    assert r.snapshot.leaving == {"/": "default"}
    assert r.num_routable("Front") == 0
    assert r.num_routable("Back") == 1
    await r.until(lambda now: now is None)
    assert status is not None
    await asyncio.sleep(0.1)
    assert r.snapshot.leaving == {}


async def test_a_dropped_deployment_leaves_after_the_new_version_is_complete(r: Rig) -> None:
    await r.deploy(app("default", deployment("Front"), deployment("Back"), ingress="Front"))
    await r.until_running()
    r.replicas.construct_s = 3.0
    await r.deploy(app("default", deployment("Front", version="2")))
    await asyncio.sleep(2)
    assert r.num_routable("Back") == 1
    await r.until_running()
    await r.until(lambda now: now is not None and "Back" not in now.deployments)


async def test_shutdown_takes_everything_down_and_ends_the_instance(r: Rig) -> None:
    await r.deploy(app("a", route_prefix="/a"), app("b", route_prefix="/b"))
    await r.until_running("a")
    await r.until_running("b")
    await r.call("shutdown")
    with pytest.raises(InstanceError, match="shutting down"):
        await r.deploy(app("c", route_prefix="/c"))
    await r.ended()
    assert r.engine.is_shut_down
    assert all("stop" in replica.calls for replica in r.replicas.by_id.values())


async def test_a_replica_without_room_is_explained_with_numbers(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=3, resources={"CPU": 4.0})))
    status = await r.until(lambda now: now is not None and "no place" in now.message)
    assert status is not None
    assert "1 replica(s) find no place" in status.message
    assert "CPU: 4 needed, 0 free of 8" in status.message
    assert "They wait for room, or for a node that has it." in status.message
    assert status.deployments["Model"].num_waiting == 1
    await r.deploy(app("default", deployment(num_replicas=2, resources={"CPU": 4.0})))
    await r.until_running()


async def test_front_doors_that_close_are_told_to_load_balancers_and_keep_no_replica_away() -> None:
    one, two = NodeID("one"), NodeID("two")
    nodes = [Node(each, {"CPU": 2.0}, host=f"host-{each}") for each in (one, two)]
    async with rig(FakeEngine(nodes)) as r:
        told: list[tuple[NodeID, ...]] = []
        r.on_snapshot.append(lambda snapshot: told.append(snapshot.draining))
        r.engine.tell(DoorsClosing(two))
        await asyncio.sleep(1)
        assert told[-1] == (two,)
        status = await r.admin.status()
        assert status.draining == ()
        hosts = [(node.node_id, node.host) for node in status.nodes]
        assert hosts == [(one, "host-one"), (two, "host-two")]
        await r.deploy(app("default", deployment(num_replicas=2, resources={"CPU": 2.0})))
        await r.until_running()
        status = await r.admin.status()
        assert [node.num_replicas for node in status.nodes] == [1, 1]
        r.engine.tell(DoorsOpened(two))
        await asyncio.sleep(1)
        assert not told[-1]


async def test_replicas_move_off_a_node_that_goes_away() -> None:
    from remora.engine.base import Node
    from remora.types import NodeID

    one, two = Node(NodeID("one"), {"CPU": 2.0}), Node(NodeID("two"), {"CPU": 2.0})
    async with rig(FakeEngine([one, two])) as r:
        await r.deploy(app("default", deployment(num_replicas=2, resources={"CPU": 0.5})))
        await r.until_running()
        nodes = {process.spec.node_id for process in r.engine.processes.values()}
        assert nodes == {"one", "two"}
        fewest = [2]
        r.on_snapshot.append(lambda _snapshot: fewest.append(r.num_routable()))
        r.engine.drain_node(NodeID("one"))
        await r.until(lambda _now: {p.spec.node_id for p in r.engine.processes.values()} == {"two"})
        assert min(fewest) == 2
        r.engine.lose_node(NodeID("one"))
        await asyncio.sleep(1)
        assert r.num_routable() == 2


async def test_a_replica_whose_node_refuses_it_is_started_elsewhere_and_did_not_fail() -> None:
    from remora.engine.base import Node
    from remora.types import NodeID

    one, two = (Node(NodeID(name), {"CPU": 2.0}) for name in ("one", "two"))
    async with rig(FakeEngine([one, two])) as r:
        r.engine.start_delay_s = 1.0
        await r.deploy(app("default", deployment(num_replicas=4, resources={"CPU": 1.0})))
        await r.until(lambda _now: len(r.engine.processes) == 4)
        r.engine.refuse_node(two.node_id, "another version")
        await r.until(lambda _now: r.num_routable() == 2)
        assert {p.spec.node_id for p in r.engine.processes.values()} == {"one"}
        status = await r.status()
        assert status is not None
        message = status.deployments["Model"].message
        assert "; 1 more node takes no processes: two: another version." in message
        assert "failed" not in message
        # What it refuses it may take later.
        r.engine.join_node(two)
        await r.until_running()
        assert r.num_routable() == 4


async def test_watch_tells_every_change_and_the_present_first(r: Rig) -> None:
    from remora.wire.codec import unpack

    seen: list[str] = []

    async def follow() -> None:
        stream = r.admin.handlers["watch"](b"")
        assert hasattr(stream, "__aiter__")
        async for item in stream:
            known: dict[str, ApplicationStatus] = unpack(item, InstanceStatus).applications
            seen.append(known["default"].status if known else "none")
            if seen[-1] == "RUNNING":
                return

    watching = asyncio.create_task(follow())
    await asyncio.sleep(1)
    await r.deploy(app())
    await watching
    assert seen[0] == "none"
    assert "DEPLOYING" in seen
    assert seen[-1] == "RUNNING"


async def test_an_instance_of_a_program_and_one_that_stays_do_not_see_each_others_applications() -> (
    None
):
    store: dict[str, bytes] = {}
    for bound, name in ((False, "stays"), (True, "of a program"), (False, "later")):
        engine = FakeEngine()
        engine.store = store
        async with rig(engine, bound=bound) as r:
            found = set(r.controller.state.applications)
            assert found == ({"stays"} if name == "later" else set())
            await r.deploy(app(name, deployment(code=name.encode()), route_prefix=f"/{name[0]}"))
            await r.until_running(name)
            if name == "later":
                # Its code is still there as well.
                await r.until_running("stays")


async def test_health_checks_that_find_nothing_push_nothing_out_of_the_log(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=5, health_check_period_s=1)))
    await r.until_settled()
    # Routers acknowledge what they were told last, which is logged, too.
    await asyncio.sleep(1)
    before = len(await r.controller.log.read())
    await asyncio.sleep(100)
    assert len(await r.controller.log.read()) == before
    again = replay_kept(await r.controller.log.read(), r.controller.now())
    now = r.controller.state
    assert encode(again, with_event_id=False) == encode(now, with_event_id=False)


async def test_replaying_the_log_gives_the_same_state(r: Rig) -> None:
    await r.deploy(app("default", deployment(num_replicas=2)))
    await r.until_running()
    r.engine.crash(r.replicas.serving[0].process_id)
    await r.until_running()
    await r.deploy(app("default", deployment(version="2", num_replicas=3)))
    await r.until_running()
    await asyncio.sleep(30)
    again = replay_kept(await r.controller.log.read(), r.controller.now())
    present = encode(r.controller.state, with_event_id=False)
    assert encode(again, with_event_id=False) == present
    gone = story_of(r.controller.state, r.controller.state.stopped[0].replica_id)
    assert gone is not None
    assert gone.history[-1].event_id > 0


async def test_thirty_minutes_of_crashes_end_at_the_target() -> None:
    """Random crashes, hangs, lost connections, deploys and controller restarts."""

    rng = random.Random(4711)
    r = Rig()
    r.engine.start_delay_s = lambda _spec: rng.uniform(0.0, 2.0)
    r.replicas.construct_s = lambda _spec: rng.uniform(0.0, 5.0)
    await r.start()
    loop = asyncio.get_running_loop()
    end = loop.time() + 1800.0
    version = 1
    while loop.time() < end:
        await asyncio.sleep(rng.expovariate(1 / 4.0))
        alive = list(r.engine.processes)
        match rng.randrange(8):
            case 0 | 1 | 2 if alive:
                r.engine.crash(rng.choice(alive))
            case 3 if r.replicas.serving:
                rng.choice(r.replicas.serving).is_hung = True
            case 4 if alive:
                r.replicas.lose_connections(rng.choice(alive))
            case 5:
                version += 1
                await r.deploy(
                    app("default", deployment(version=str(version // 3), num_replicas=3))
                )
            case 6 if rng.random() < 0.3:
                await r.stop()
                await r.start()
            case 7 if r.replicas.serving:
                rng.choice(r.replicas.serving).sickness = RuntimeError("unwell")
    await r.deploy(app("default", deployment(version="last", num_replicas=3)))
    await r.until(
        lambda now: (
            now is not None
            and now.status == "RUNNING"
            and now.deployments["Model"].replica_states == {"RUNNING": 3}
        ),
        timeout_s=600,
    )
    assert {each.spec.code_version for each in r.replicas.serving if each.spec} == {"last"}
    assert len(r.engine.processes) == 3
    assert r.num_routable() == 3
    await r.stop()


async def test_a_death_is_in_the_log_once(r: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await r.deploy(app())
    await r.until_running()
    lost = r.replicas.serving[0].process_id
    r.engine.crash(lost, "exit status 3")
    await r.until(lambda now: now is not None and now.status != "RUNNING")
    await r.until_running()
    told = [each.getMessage() for each in caplog.records if lost in each.getMessage()]
    assert told == [f"Replica {lost} died: exit status 3. Another one is started."]
