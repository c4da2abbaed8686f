"""Single decisions of `reconcile.step`; its properties are in tests/props."""

from __future__ import annotations

from typing import Any

import pytest

from remora.config import DeploymentConfig, GangSchedulingConfig
from remora.core import actions as act
from remora.core import events as ev
from remora.core.lifecycle import START_PROCESS_S
from remora.core.reconcile import step, story_of
from remora.core.replica_state import ReplicaState
from remora.core.routing_view import routing_snapshot
from remora.core.saved_state import decode, encode
from remora.core.state import ControllerState
from remora.core.status import report
from remora.types import LOCAL_NODE, DeploymentID, ReplicaID


class Driver:
    """Feeds events and keeps what was decided last."""

    def __init__(self, resources: dict[str, float] | None = None) -> None:
        self.now = 1000.0
        self.state = ControllerState()
        self.actions: tuple[act.Action, ...] = ()
        self.feed(
            ev.ControllerStarted(unix_s=1.7e9, salt="x"),
            ev.NodeJoined(node_id=LOCAL_NODE, resources=resources or {}),
        )

    def feed(self, *events: ev.AnyEvent, after_s: float = 0.0) -> None:
        self.now += after_s
        decided = step(self.state, events, self.now)
        self.state, self.actions = decided.state, decided.actions

    def deploy(self, version: str = "1", **options: object) -> None:
        config = DeploymentConfig(**options)  # type: ignore[arg-type]
        one = ev.DeploymentRequest(name="d", code_key="k", code_version=version, config=config)
        app = ev.ApplicationRequest(name="a", route_prefix="/", ingress="d", deployments=(one,))
        self.feed(ev.DeployRequested(applications=(app,)))

    def come_up(self, replica_id: str, *, ready: bool = True) -> None:
        wanted = ReplicaID(replica_id)
        self.feed(
            ev.ProcessStarted(
                replica_id=wanted, address=f"unix:/{replica_id}", pid=7, node_id=LOCAL_NODE
            )
        )
        if ready:
            self.feed(ev.ReplicaReady(replica_id=wanted))

    @property
    def states(self) -> dict[str, ReplicaState]:
        return {each.replica_id: each.state for _, _, each in self.state.replicas()}

    @property
    def status(self) -> str:
        return report(self.state, self.now)["a"].status


def test_a_replica_is_told_which_gpus_it_may_use() -> None:
    driver = Driver({"GPU": 2.0})
    driver.deploy(num_replicas=2, resources={"GPU": 1.0}, env_vars={"A": "1"})
    starts = [action for action in driver.actions if isinstance(action, act.StartProcess)]
    assert [start.env for start in starts] == [{"A": "1"}, {"A": "1"}]
    assert [[hold.gpus for hold in start.holds] for start in starts] == [[(0,)], [(1,)]]


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        ({"resources": {"CPU": 2.5}}, "2"),
        ({"resources": {"CPU": 0.5}}, "1"),
        ({"resources": {"CPU": 2.0}, "env_vars": {"OMP_NUM_THREADS": "7"}}, "7"),
        ({"resources": {"CPU": 0.0}}, None),
        ({}, None),
    ],
)
def test_libraries_are_told_how_many_cores_were_asked_for(
    options: dict[str, Any], threads: str | None
) -> None:
    driver = Driver({"CPU": 4.0})
    driver.deploy(**options)
    (start,) = driver.actions
    assert isinstance(start, act.StartProcess)
    assert start.env.get("OMP_NUM_THREADS") == threads


def test_an_engine_that_says_nothing_counts_as_a_failed_start() -> None:
    driver = Driver()
    driver.deploy()
    driver.feed(after_s=START_PROCESS_S)
    assert act.KillProcess(ReplicaID("a/d#x1")) in driver.actions
    deployment = driver.state.applications["a"].deployments["d"]
    assert deployment.failures == 1
    assert "reported no process for 60 s" in deployment.last_failure
    driver.feed(after_s=1.0)
    assert set(driver.states) == {"a/d#x2"}


def test_a_late_process_of_a_cancelled_replica_is_killed() -> None:
    driver = Driver()
    driver.deploy()
    driver.feed(ev.DeleteRequested(names=("a",)))
    assert driver.states == {}
    driver.come_up("a/d#x1", ready=False)
    assert driver.actions == (act.KillProcess(ReplicaID("a/d#x1")),)


def test_giving_up_ends_the_starts_that_are_still_under_way() -> None:
    driver = Driver()
    driver.deploy(num_replicas=2, max_constructor_retry_count=1)
    driver.come_up("a/d#x1", ready=False)
    driver.come_up("a/d#x2", ready=False)
    driver.feed(ev.ReplicaStartFailed(replica_id=ReplicaID("a/d#x1"), traceback="boom"))
    assert driver.status == "DEPLOY_FAILED"
    assert set(driver.states.values()) == {ReplicaState.STOPPING}
    stopped = {each.replica_id for each in driver.actions if isinstance(each, act.StopReplica)}
    assert stopped == {"a/d#x1", "a/d#x2"}
    route = routing_snapshot(driver.state).deployments[DeploymentID("d", "a")]
    assert "failed to start once;" in route.unavailable


def test_a_version_that_is_fallen_back_on_is_paced_when_it_fails_too() -> None:
    driver = Driver()
    driver.deploy()
    driver.come_up("a/d#x1")
    driver.deploy("2", max_constructor_retry_count=1)
    driver.come_up("a/d#x2", ready=False)
    driver.feed(ev.ReplicaStartFailed(replica_id=ReplicaID("a/d#x2"), traceback="boom"))
    assert driver.status == "DEPLOY_FAILED"
    last = "a/d#x1"
    waits = []
    for _ in range(6):
        driver.feed(ev.ProcessExited(replica_id=ReplicaID(last), reason="died"))
        before = driver.now
        while last in driver.states or not any(
            state is ReplicaState.PENDING for state in driver.states.values()
        ):
            driver.feed(after_s=0.05)
        waits.append(driver.now - before)
        last = next(k for k, v in driver.states.items() if v is ReplicaState.PENDING)
        replica = driver.state.applications["a"].deployments["d"].replicas[ReplicaID(last)]
        assert replica.version == driver.state.applications["a"].deployments["d"].previous.version  # type: ignore[union-attr]
    assert waits[0] == 0.0
    assert waits[-1] > 0.7
    assert waits == sorted(waits)
    assert driver.state.applications["a"].deployments["d"].failures == 1


def test_a_restarted_controller_asks_again_what_was_asked_before() -> None:
    driver = Driver()
    driver.deploy(num_replicas=3, graceful_shutdown_timeout_s=9.0)
    for number in (1, 2, 3):
        driver.come_up(f"a/d#x{number}")
    driver.deploy(num_replicas=1, graceful_shutdown_timeout_s=9.0)
    driver.feed(ev.RoutersAcked(version=driver.state.snapshot_version))
    draining = [key for key, state in driver.states.items() if state is ReplicaState.DRAINING]
    assert len(draining) == 2
    driver.feed(ev.ReplicaIdle(replica_id=ReplicaID(draining[0])))
    driver.state = decode(encode(driver.state))
    driver.now = 50.0
    driver.feed(ev.ControllerStarted(unix_s=1.7e9))
    assert {type(action) for action in driver.actions} == {act.InitializeReplica, act.StopReplica}
    driver.feed(after_s=2.0)
    assert [type(action) for action in driver.actions] == [act.DrainReplica]
    # Nobody is given up before the engine has said who is there.
    assert len(driver.states) == 3
    driver.feed(ev.InventoryComplete())
    assert driver.states == {}


def test_routers_hear_that_the_instance_ends_also_when_nothing_is_left() -> None:
    driver = Driver()
    driver.deploy()
    driver.come_up("a/d#x1")
    assert not routing_snapshot(driver.state).ending
    version = driver.state.snapshot_version
    driver.feed(ev.ShutdownRequested())
    assert routing_snapshot(driver.state).ending
    assert driver.state.snapshot_version > version
    empty = Driver()
    empty.feed(ev.ShutdownRequested())
    assert routing_snapshot(empty.state).ending
    assert empty.state.snapshot_version > 0


def test_a_story_is_found_for_the_living_and_the_gone() -> None:
    driver = Driver()
    driver.deploy()
    driver.come_up("a/d#x1")
    assert story_of(driver.state, ReplicaID("a/d#x1")) is not None
    driver.feed(ev.ProcessExited(replica_id=ReplicaID("a/d#x1"), reason="killed"))
    gone = story_of(driver.state, ReplicaID("a/d#x1"))
    assert gone is not None
    assert gone.state is ReplicaState.STOPPED
    assert gone.history[-1].detail == "killed"
    assert story_of(driver.state, ReplicaID("a/d#never")) is None


def test_a_call_that_was_lost_is_made_again_after_a_moment() -> None:
    driver = Driver()
    driver.deploy(user_config=1)
    driver.come_up("a/d#x1")
    driver.deploy(user_config=2)
    assert isinstance(driver.actions[0], act.Reconfigure)
    driver.feed(ev.CallLost(replica_id=ReplicaID("a/d#x1"), call="reconfigure"))
    assert not list(driver.actions)
    driver.feed(after_s=0.6)
    assert isinstance(driver.actions[0], act.Reconfigure)


def test_routers_are_told_the_zone_of_a_replica() -> None:
    driver = Driver()
    driver.feed(
        ev.NodeJoined(node_id=LOCAL_NODE, resources={}, labels={"ray.io/availability-zone": "west"})
    )
    driver.deploy()
    driver.come_up("a/d#x1")
    (route,) = routing_snapshot(driver.state).deployments[DeploymentID("d", "a")].replicas
    assert route.availability_zone == "west"


def test_nothing_begins_with_a_replica_of_a_gang_that_the_same_step_ends() -> None:
    driver = Driver()
    driver.deploy(num_replicas=2, gang_scheduling_config=GangSchedulingConfig(gang_size=2))
    first = next(iter(driver.states))
    driver.come_up(first, ready=False)
    driver.feed(ev.CallLost(replica_id=ReplicaID(first), call="initialize", reason="lost"))
    # The other one never came up, so the gang ends, in the step that would try the call again.
    driver.feed(after_s=START_PROCESS_S)
    of_first = [
        type(each)
        for each in driver.actions
        if isinstance(each, act.InitializeReplica | act.StopReplica) and each.replica_id == first
    ]
    assert of_first == [act.StopReplica]
