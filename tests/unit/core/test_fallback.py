"""What a roll-out leaves alone until it has succeeded, and what serves when it has failed."""

from __future__ import annotations

from typing import Any

from remora.config import DeploymentConfig, GangSchedulingConfig
from remora.core import events as ev
from remora.core.autoscale.record import ScalingRecord
from remora.core.goal import has_failed, in_effect
from remora.core.lifecycle import ACK_LIMIT_S
from remora.core.reconcile import step
from remora.core.replica_state import ReplicaState
from remora.core.restart import STABLE_S
from remora.core.saved_state import decode, encode
from remora.core.scale import bounds_for
from remora.core.state import ControllerState, Deployment
from remora.options.autoscaling import AutoscalingConfig
from remora.types import LOCAL_NODE, NodeID, ReplicaID

Those = dict[str, dict[str, Any]]


class World:
    """Replicas of version `bad` never start; drains end when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.state = ControllerState()
        self.feed(
            ev.ControllerStarted(unix_s=1.7e9, salt="x"),
            ev.NodeJoined(node_id=LOCAL_NODE, resources={}),
        )

    def feed(self, *events: ev.AnyEvent, after_s: float = 0.0) -> None:
        self.now += after_s
        self.state = step(self.state, events, self.now).state

    def deploy(self, those: Those, name: str = "a", route: str | None = "/") -> None:
        """Deploy deployments by name: their options, and their `version`."""
        made = tuple(
            ev.DeploymentRequest(
                name=each,
                code_key="k",
                code_version=options.get("version", "1"),
                config=DeploymentConfig(
                    health_check_period_s=1e6,
                    **{key: value for key, value in options.items() if key != "version"},
                ),
            )
            for each, options in those.items()
        )
        app = ev.ApplicationRequest(
            name=name, route_prefix=route, ingress=made[0].name, deployments=made
        )
        self.feed(ev.DeployRequested(applications=(app,)))

    def rounds(self, number: int = 1) -> None:
        """Let whatever starts come up or fail, and whatever stops be gone."""
        for _ in range(number):
            for _, deployment, each in self.state.replicas():
                replica_id = each.replica_id
                if each.state is ReplicaState.PENDING:
                    self.feed(
                        ev.ProcessStarted(
                            replica_id=replica_id, address="unix:/x", pid=7, node_id=LOCAL_NODE
                        )
                    )
                    is_bad = deployment.target.code_version == "bad"
                    if is_bad and each.version == deployment.target.version:
                        self.feed(ev.ReplicaStartFailed(replica_id=replica_id, traceback="boom"))
                    else:
                        self.feed(ev.ReplicaReady(replica_id=replica_id))
                elif each.state is ReplicaState.STOPPING:
                    self.feed(ev.ProcessExited(replica_id=replica_id, reason="x", expected=True))
            self.feed(after_s=31.0)

    def come_up(self) -> None:
        """Let whatever starts come up at once."""
        for _, _, each in self.state.replicas():
            if each.state is ReplicaState.PENDING:
                replica_id = each.replica_id
                self.feed(
                    ev.ProcessStarted(
                        replica_id=replica_id, address="unix:/x", pid=7, node_id=LOCAL_NODE
                    ),
                    ev.ReplicaReady(replica_id=replica_id),
                )

    def finish(self, replica_id: str) -> None:
        """A replica that drains has answered everything, and its process ends."""
        self.feed(ev.ReplicaIdle(replica_id=ReplicaID(replica_id)))
        self.feed(ev.ProcessExited(replica_id=ReplicaID(replica_id), reason="x", expected=True))

    def scale(self, name: str, before: int, after: int) -> None:
        """Demand asks for another number of replicas."""
        record = ScalingRecord(
            at_unix_s=0.0,
            before=before,
            after=after,
            running=before,
            queued=0,
            ongoing=0,
            total=0,
            window_s=1.0,
            aggregation="mean",
            policy="d",
            formula="",
            asked=after,
        )
        self.feed(ev.ScaleDecided(app_name="a", deployment=name, record=record))

    def deployment(self, name: str, app: str = "a") -> Deployment:
        return self.state.applications[app].deployments[name]

    def states(self, name: str) -> list[str]:
        """Each replica's state and whether it is of the version that was asked for last."""
        deployment = self.deployment(name)
        return [
            f"{'new' if each.version == deployment.target.version else 'old'} {each.state}"
            for each in deployment.replicas.values()
        ]


def test_what_the_version_before_calls_stays_when_the_new_one_fails() -> None:
    world = World()
    world.deploy({"A": {}, "B": {}})
    world.rounds()
    world.deploy({"A": {"version": "bad"}})
    world.rounds(4)
    assert world.states("A") == ["old RUNNING"]
    assert world.states("B") == ["new RUNNING"]
    world.deploy({"A": {"version": "2"}})
    world.rounds(4)
    assert world.states("A") == ["new RUNNING"]
    assert "B" not in world.state.applications["a"].deployments


def test_what_the_version_before_calls_stays_until_that_has_answered_everything() -> None:
    world = World()
    world.deploy({"A": {}, "B": {}})
    world.rounds()
    world.deploy({"A": {"version": "2"}})
    world.come_up()
    assert world.states("A") == ["old DRAINING", "new RUNNING"]
    assert world.states("B") == ["new RUNNING"]
    world.finish("a/A#x1")
    assert world.states("A") == ["new RUNNING"]
    assert world.states("B") == ["new RUNNING"], "the new version is not trusted yet"
    world.feed(after_s=STABLE_S)
    assert world.states("B") == ["new DRAINING"]
    world.finish("a/B#x2")
    assert "B" not in world.state.applications["a"].deployments


def test_a_deploy_is_done_when_no_router_sends_anything_to_the_version_before() -> None:
    world = World()
    world.deploy({"A": {}})
    world.rounds()
    world.deploy({"A": {"version": "2"}})
    world.come_up()
    assert world.states("A") == ["old DRAINING", "new RUNNING"]
    assert not world.deployment("A").completed
    world.feed(ev.RoutersAcked(version=world.state.snapshot_version))
    assert world.deployment("A").completed
    # A router that says nothing holds a deploy up for a moment only.
    world.finish("a/A#x1")
    world.deploy({"A": {"version": "3"}})
    world.come_up()
    world.feed(after_s=ACK_LIMIT_S - 0.1)
    assert not world.deployment("A").completed
    world.feed(after_s=0.2)
    assert world.deployment("A").completed


def test_what_the_version_before_calls_is_there_when_the_new_one_comes_up_and_does_not_stay() -> (
    None
):
    world = World()
    world.deploy({"A": {}, "B": {}})
    world.rounds()
    world.deploy({"A": {"version": "2"}})
    world.come_up()
    world.finish("a/A#x1")
    for _ in range(3):
        (dies,) = world.deployment("A").in_state(ReplicaState.RUNNING)
        world.feed(ev.ProcessExited(replica_id=dies.replica_id, reason="x"), after_s=1.0)
        world.feed(after_s=1.0)
        world.come_up()
    assert has_failed(world.deployment("A"))
    world.rounds(4)
    assert world.states("A") == ["old RUNNING"]
    assert world.states("B") == ["new RUNNING"]


def test_a_deploy_that_lowers_the_number_and_fails_leaves_all_that_ran() -> None:
    world = World()
    world.deploy({"A": {"num_replicas": 5}})
    world.rounds()
    world.deploy({"A": {"num_replicas": 2, "version": "bad"}})
    fewest = 5
    for _ in range(8):
        world.rounds()
        fewest = min(fewest, world.states("A").count("old RUNNING"))
    assert world.deployment("A").given_up
    assert fewest == 5
    assert world.states("A") == ["old RUNNING"] * 5
    world.deploy({"A": {"num_replicas": 2, "version": "2"}})
    world.rounds(12)
    assert world.states("A") == ["new RUNNING"] * 2


def test_a_deploy_that_lowers_the_number_goes_on_where_there_is_no_room_for_more() -> None:
    for fixed in (True, False):
        world = World()
        options: dict[str, Any] = {"resources": {"CPU": 1.0}}
        world.feed(ev.NodeJoined(node_id=LOCAL_NODE, resources={"CPU": 3.0}))
        world.state.fixed_nodes = fixed
        world.deploy({"A": {"num_replicas": 3, **options}})
        world.rounds()
        world.deploy({"A": {"num_replicas": 1, "version": "2", **options}})
        world.rounds(8)
        assert world.states("A") == ["new RUNNING"], fixed


def gangs_of(size: int, count: int, cpu: float = 0.0, version: str = "1") -> Those:
    gang = GangSchedulingConfig(gang_size=size)
    resources = {"CPU": cpu} if cpu else {}
    return {
        "A": {
            "num_replicas": count,
            "gang_scheduling_config": gang,
            "resources": resources,
            "version": version,
        }
    }


def test_a_gang_of_the_version_before_serves_while_the_new_one_finds_no_room() -> None:
    world = World()
    world.feed(ev.NodeJoined(node_id=LOCAL_NODE, resources={"CPU": 4.0}))
    world.deploy(gangs_of(4, 4, cpu=1.0))
    world.rounds()
    world.deploy(gangs_of(2, 2, cpu=3.0, version="2"))
    world.rounds(4)
    assert world.states("A") == ["old RUNNING"] * 4
    world.feed(ev.NodeJoined(node_id=NodeID("more"), resources={"CPU": 6.0}))
    world.rounds(6)
    assert world.states("A") == ["new RUNNING"] * 2


def test_gangs_that_are_too_many_leave_one_by_one_where_there_is_no_room_for_more() -> None:
    for fixed in (True, False):
        world = World()
        world.feed(ev.NodeJoined(node_id=LOCAL_NODE, resources={"CPU": 6.0}))
        world.state.fixed_nodes = fixed
        world.deploy(gangs_of(2, 6, cpu=1.0))
        world.rounds()
        world.deploy(gangs_of(3, 3, cpu=1.0, version="2"))
        fewest = 6
        for _ in range(12):
            world.rounds()
            fewest = min(fewest, len(world.deployment("A").in_state(ReplicaState.RUNNING)))
        if fixed:
            assert world.states("A") == ["new RUNNING"] * 3
        else:
            # Nobody knows whether it would help to take one more.
            assert world.states("A") == ["old RUNNING"] * 4
            assert fewest == 4


def test_a_full_machine_lets_whole_gangs_go_for_the_new_version() -> None:
    world = World()
    world.feed(ev.NodeJoined(node_id=LOCAL_NODE, resources={"CPU": 6.0}))
    world.state.fixed_nodes = True
    world.deploy(gangs_of(3, 6, cpu=1.0))
    world.rounds()
    world.deploy(gangs_of(2, 6, cpu=1.0, version="2"))
    fewest = 6
    for _ in range(12):
        world.rounds()
        fewest = min(fewest, len(world.deployment("A").in_state(ReplicaState.RUNNING)))
    assert world.states("A") == ["new RUNNING"] * 6
    # One gang of three makes room for one of two, and then the other for two of them.
    assert fewest == 2


def test_a_deploy_of_gangs_of_another_size_that_fails_leaves_all_that_ran() -> None:
    for before, after in ((2, 5), (5, 2), (1, 5), (5, 1)):
        world = World()
        world.deploy(gangs_of(before, 10))
        world.rounds()
        fewest = 10
        for version in ("bad", "2"):
            world.deploy(gangs_of(after, 10, version=version))
            for _ in range(20):
                world.rounds()
                fewest = min(fewest, len(world.deployment("A").in_state(ReplicaState.RUNNING)))
        assert fewest == 10, (before, after)
        assert world.states("A") == ["new RUNNING"] * 10, (before, after)


def test_an_application_that_is_deleted_in_the_middle_of_that_goes_whole() -> None:
    world = World()
    world.deploy({"A": {}, "B": {}})
    world.rounds()
    world.deploy({"A": {"version": "2"}})
    world.come_up()
    world.feed(ev.DeleteRequested(names=("a",)))
    assert world.states("B") == ["new RUNNING"]
    world.rounds(3)
    assert world.state.applications == {}


def test_a_private_application_that_is_rolled_back_is_private_again() -> None:
    world = World()
    world.deploy({"A": {}}, name="other", route=None)
    world.deploy({"A": {"rollback": "auto"}}, route=None)
    world.rounds()
    world.deploy({"A": {"rollback": "auto", "version": "bad"}}, route="/new")
    world.rounds(4)
    assert world.state.applications["a"].failure
    assert world.state.applications["a"].route_prefix is None


def test_a_version_that_was_given_up_stays_that_however_many_replicas_are_wanted_later() -> None:
    world = World()
    scaled = {"autoscaling_config": AutoscalingConfig(min_replicas=1, max_replicas=10)}
    world.deploy({"A": scaled})
    world.rounds()
    world.deploy({"A": {**scaled, "version": "bad"}})
    world.rounds(4)
    assert world.deployment("A").failures == 3
    world.scale("A", 1, 5)
    world.rounds(2)
    assert world.deployment("A").failures == 3
    assert world.states("A") == ["old RUNNING"] * 5
    saved = decode(encode(world.state)).applications["a"].deployments["A"]
    assert saved.given_up
    world.deploy({"A": {**scaled, "version": "2"}})
    assert not has_failed(world.deployment("A"))
    world.rounds(8)
    assert world.states("A") == ["new RUNNING"] * 5


def test_a_restart_of_the_controller_gives_nothing_up() -> None:
    """What runs is not known to run for a moment."""
    world = World()
    world.deploy({"A": {"num_replicas": 2, "max_constructor_retry_count": 1}})
    first, second = (each.replica_id for _, _, each in world.state.replicas())
    for each in (first, second):
        world.feed(ev.ProcessStarted(replica_id=each, address="unix:/x", pid=7, node_id=LOCAL_NODE))
    world.feed(ev.ReplicaReady(replica_id=first))
    world.feed(ev.ReplicaStartFailed(replica_id=second, traceback="boom"))
    assert not has_failed(world.deployment("A"))
    world.state = decode(encode(world.state))
    world.feed(
        ev.ControllerStarted(unix_s=1.7e9, salt="y"),
        ev.NodeJoined(node_id=LOCAL_NODE, resources={}),
        ev.ProcessStarted(replica_id=first, address="unix:/x", pid=7, node_id=LOCAL_NODE),
    )
    world.feed(ev.InventoryComplete())
    world.feed(ev.ReplicaReady(replica_id=first))
    assert not world.deployment("A").given_up
    assert "new RUNNING" in world.states("A")


def test_what_is_fallen_back_on_is_scaled_by_its_own_limits() -> None:
    world = World()
    wide = {"autoscaling_config": AutoscalingConfig(min_replicas=1, max_replicas=10)}
    narrow = {"autoscaling_config": AutoscalingConfig(min_replicas=1, max_replicas=2)}
    world.deploy({"A": wide})
    world.rounds()
    world.scale("A", 1, 2)
    world.rounds()
    world.deploy({"A": {**narrow, "version": "bad"}})
    world.rounds(8)
    assert world.deployment("A").given_up
    config = in_effect(world.deployment("A")).config
    assert bounds_for(world.deployment("A"), config).high == 10
    world.scale("A", 2, 8)
    world.rounds(2)
    assert world.states("A") == ["old RUNNING"] * 8


def test_demand_for_what_is_fallen_back_on_is_no_number_for_a_later_version() -> None:
    world = World()
    world.deploy({"A": {"autoscaling_config": AutoscalingConfig(min_replicas=1, max_replicas=9)}})
    world.rounds()
    world.deploy({"A": {"version": "bad", "num_replicas": 2}})
    world.rounds(8)
    world.scale("A", 1, 5)
    world.rounds(2)
    assert world.states("A") == ["old RUNNING"] * 5
    world.deploy({"A": {"version": "2", "num_replicas": 2}})
    world.rounds(12)
    assert world.states("A") == ["new RUNNING"] * 2
