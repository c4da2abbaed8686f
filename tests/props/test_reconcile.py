"""`reconcile.step` against a small model of an engine and its replicas, with faults of all kinds.

After every step the state is valid, a second step at the same time does nothing, and the state
can be saved and read. When the faults stop, the target is reached in bounded time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from remora.config import DeploymentConfig, GangSchedulingConfig
from remora.core import actions as act
from remora.core import events as ev
from remora.core import requests
from remora.core.reconcile import step
from remora.core.replica_state import ReplicaState
from remora.core.routing_view import routing_snapshot
from remora.core.saved_state import decode, encode
from remora.core.state import ControllerState, validate
from remora.core.status import report
from remora.errors import PlacementError, RouteTakenError
from remora.testing import replay
from remora.types import LOCAL_NODE, DeploymentID, ReplicaID
from remora.wire.control import DeclaredApplication

CALLS = {
    act.InitializeReplica: "initialize",
    act.CheckHealth: "check_health",
    act.Reconfigure: "reconfigure",
    act.DrainReplica: "drain",
    act.StopReplica: "stop",
}


NOT_OF_REPLICAS = (act.EndInstance, act.BuildApplication, act.CancelBuilds)


@dataclass
class Process:
    """A process in the model."""

    address: str = ""
    #: The call that it works on.
    call: act.Action | None = None


class World(RuleBasedStateMachine):
    """The controller's decisions, and what they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.wake_at: float | None = None
        self.state = ControllerState()
        self.first = ControllerState()
        self.log: list[ev.LogEntry] = []
        self.processes: dict[ReplicaID, Process] = {}
        self.used: set[ReplicaID] = set()
        self.ended = False
        #: Imports that a config waits for.
        self.builds: list[act.BuildApplication] = []
        self.num_events = 0
        #: Replicas that were reported as RUNNING and are expected to stay reachable.
        self.bad_versions: set[str] = set()

    # ------------------------------------------------------------------------------ machinery

    def feed(self, *events: ev.AnyEvent) -> None:
        """One tick."""
        numbered = []
        for event in events:
            self.num_events += 1
            numbered.append(_numbered(event, self.num_events))
        before = encode(self.state)
        decided = step(self.state, tuple(numbered), self.now)
        assert encode(self.state) == before, "the state that comes in stays as it is"
        self.log.append(ev.LogEntry(self.now, tuple(numbered)))
        self.state = decided.state
        self.wake_at = decided.wake_at
        assert decided.wake_at is None or decided.wake_at > self.now
        per_replica = Counter(
            action.replica_id
            for action in decided.actions
            if not isinstance(action, NOT_OF_REPLICAS) and type(action) in CALLS
        )
        assert all(count == 1 for count in per_replica.values()), decided.actions
        for action in decided.actions:
            self.perform(action)

    def perform(self, action: act.Action) -> None:
        """Begin what was decided; its end comes with a rule."""
        if isinstance(action, act.EndInstance):
            self.ended = True
            return
        if isinstance(action, act.BuildApplication):
            self.builds.append(action)
            return
        if isinstance(action, act.CancelBuilds):
            self.builds = [each for each in self.builds if each.release >= action.before]
            return
        replica_id = action.replica_id
        if isinstance(action, act.StartProcess):
            assert replica_id not in self.used, "an id is never used twice"
            self.used.add(replica_id)
            self.processes[replica_id] = Process()
        elif isinstance(action, act.KillProcess):
            if replica_id in self.processes:
                self.pending_exits().add(replica_id)
        elif replica_id in self.processes:
            self.processes[replica_id].call = action

    def pending_exits(self) -> set[ReplicaID]:
        """Processes that were killed and whose exit is not reported yet."""
        if not hasattr(self, "_exits"):
            self._exits: set[ReplicaID] = set()
        return self._exits

    def exit(self, replica_id: ReplicaID, reason: str) -> None:
        self.processes.pop(replica_id)
        self.pending_exits().discard(replica_id)
        self.feed(ev.ProcessExited(replica_id=replica_id, reason=reason))

    def answer(self, replica_id: ReplicaID) -> None:
        """Let a process end its call as a healthy one does."""
        process = self.processes[replica_id]
        call, process.call = process.call, None
        match call:
            case act.InitializeReplica():
                if call.spec.code_version in self.bad_versions:
                    self.feed(
                        ev.ReplicaStartFailed(replica_id=replica_id, traceback="Traceback: bad")
                    )
                else:
                    self.feed(ev.ReplicaReady(replica_id=replica_id))
            case act.CheckHealth():
                self.feed(ev.HealthChecked(replica_id=replica_id))
            case act.Reconfigure():
                self.feed(ev.Reconfigured(replica_id=replica_id, config_key=call.config_key))
            case act.DrainReplica():
                self.feed(ev.ReplicaIdle(replica_id=replica_id))
            case act.StopReplica():
                self.exit(replica_id, "exit status 0")

    def pick(self, data: st.DataObject, those: list[ReplicaID]) -> ReplicaID:
        return data.draw(st.sampled_from(sorted(those)))

    # ---------------------------------------------------------------------------------- rules

    @initialize()
    def begin(self) -> None:
        self.feed(
            ev.ControllerStarted(unix_s=1.7e9, salt="x", fixed_nodes=True),
            ev.NodeJoined(node_id=LOCAL_NODE, resources={"CPU": 8.0}),
            ev.InventoryComplete(),
        )

    @rule(
        name=st.sampled_from(["one", "two"]),
        version=st.sampled_from(["1", "2", "bad"]),
        count=st.integers(1, 4),
        user_config=st.sampled_from([None, 1, 2]),
        surge=st.sampled_from([0, 50, 100]),
        cpu=st.sampled_from([0.0, 1.0, 3.0]),
        gang=st.sampled_from([1, 1, 2, 3]),
        with_back=st.booleans(),
    )
    def deploy(
        self,
        name: str,
        version: str,
        count: int,
        user_config: int | None,
        surge: int,
        cpu: float,
        gang: int,
        with_back: bool,
    ) -> None:
        self.bad_versions = {"bad"}
        config = DeploymentConfig(
            num_replicas=count,
            user_config=user_config,
            max_surge_percent=surge,
            resources={"CPU": cpu} if cpu else {},
            gang_scheduling_config=GangSchedulingConfig(gang_size=gang) if gang > 1 else None,
        )
        names = ["Front", "Back"] if with_back else ["Front"]
        request = ev.DeployRequested(applications=(_application(name, version, config, names),))
        refused = requests.check(self.state, request)
        if refused is None:
            self.feed(request)
        elif isinstance(refused, PlacementError):
            assert cpu == 3.0 or gang == 3
        else:
            # A config has given its route to another one.
            assert isinstance(refused, RouteTakenError)

    @rule(
        names=st.sets(st.sampled_from(["one", "two", "three"])),
        swapped=st.booleans(),
    )
    def submit(self, names: set[str], swapped: bool) -> None:
        routes = {"one": "/two", "two": "/one", "three": "/three"} if swapped else {}
        request = ev.ConfigSubmitted(
            applications=tuple(
                DeclaredApplication(
                    name=name, route_prefix=routes.get(name, f"/{name}"), given=b"{}"
                )
                for name in sorted(names)
            )
        )
        if requests.check(self.state, request) is None:
            self.feed(request)

    @precondition(lambda self: self.builds)
    @rule(
        data=st.data(),
        fails=st.booleans(),
        late=st.booleans(),
        version=st.sampled_from(["1", "2"]),
    )
    def end_build(self, data: st.DataObject, fails: bool, late: bool, version: str) -> None:
        build = data.draw(st.sampled_from(self.builds))
        self.builds.remove(build)
        # What a builder says that was cancelled changes nothing.
        release = build.release - late
        declared = build.application
        if fails:
            self.feed(
                ev.ApplicationNotBuilt(release=release, name=declared.name, error="Traceback: no")
            )
        else:
            application = msgspec.structs.replace(
                _application(declared.name, version, DeploymentConfig(), ["Front"]),
                route_prefix=declared.route_prefix,
            )
            self.feed(ev.ApplicationBuilt(release=release, application=application))
        if late:
            self.builds.append(build)

    @rule(name=st.sampled_from(["one", "two"]))
    def delete(self, name: str) -> None:
        self.feed(ev.DeleteRequested(names=(name,)))

    @precondition(lambda self: any(not each.address for each in self.processes.values()))
    @rule(data=st.data())
    def come_up(self, data: st.DataObject) -> None:
        waiting = [key for key, process in self.processes.items() if not process.address]
        self.report_up(self.pick(data, waiting))

    def report_up(self, replica_id: ReplicaID) -> None:
        self.processes[replica_id].address = f"unix:/{replica_id}"
        self.feed(
            ev.ProcessStarted(
                replica_id=replica_id,
                address=f"unix:/{replica_id}",
                pid=1,
                node_id=LOCAL_NODE,
            )
        )

    @precondition(lambda self: any(each.call for each in self.processes.values()))
    @rule(data=st.data())
    def answer_one(self, data: st.DataObject) -> None:
        self.answer(self.pick(data, [key for key, each in self.processes.items() if each.call]))

    @precondition(lambda self: any(each.call for each in self.processes.values()))
    @rule(data=st.data(), told=st.booleans())
    def lose_call(self, data: st.DataObject, told: bool) -> None:
        """The connection breaks: the controller hears of it, or of nothing at all."""
        replica_id = self.pick(data, [key for key, each in self.processes.items() if each.call])
        call, self.processes[replica_id].call = self.processes[replica_id].call, None
        # A stop is never lost: the engine does it.
        if isinstance(call, act.StopReplica):
            self.processes[replica_id].call = call
        elif told or not isinstance(call, act.CheckHealth):
            self.feed(ev.CallLost(replica_id=replica_id, call=CALLS[type(call)], reason="broken"))

    @precondition(lambda self: any(each.call for each in self.processes.values()))
    @rule(data=st.data(), how=st.sampled_from(["error", "timeout"]))
    def fail_call(self, data: st.DataObject, how: str) -> None:
        """The user's code raises, or does not answer."""
        replica_id = self.pick(data, [key for key, each in self.processes.items() if each.call])
        call = self.processes[replica_id].call
        match call:
            case act.CheckHealth():
                self.processes[replica_id].call = None
                self.feed(
                    ev.HealthChecked(
                        replica_id=replica_id, error="boom", timed_out=how == "timeout"
                    )
                )
            case act.Reconfigure():
                self.processes[replica_id].call = None
                self.feed(
                    ev.Reconfigured(replica_id=replica_id, config_key=call.config_key, error="boom")
                )
            case act.InitializeReplica():
                self.processes[replica_id].call = None
                self.feed(ev.ReplicaStartFailed(replica_id=replica_id, traceback="boom"))

    @precondition(lambda self: bool(self.processes))
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.exit(self.pick(data, list(self.processes)), "killed by SIGSEGV")

    @precondition(lambda self: bool(self.pending_exits()))
    @rule()
    def report_kills(self) -> None:
        for replica_id in sorted(self.pending_exits()):
            self.exit(replica_id, "killed by SIGKILL")

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.0, 11.0, 70.0, 4000.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        self.feed()

    @precondition(lambda self: self.wake_at is not None)
    @rule()
    def wake(self) -> None:
        assert self.wake_at is not None
        self.now = max(self.now, self.wake_at)
        self.feed()

    @rule()
    def routers_ack(self) -> None:
        self.feed(ev.RoutersAcked(version=self.state.snapshot_version))

    @rule(data=st.data())
    def late_news(self, data: st.DataObject) -> None:
        """Events about replicas that are gone, or that never were, change nothing."""
        gone = [replica.replica_id for replica in self.state.stopped]
        replica_id = data.draw(st.sampled_from([*gone, ReplicaID("one/Front#never")]))
        before = encode(self.state, with_event_id=False)
        self.feed(
            ev.ReplicaReady(replica_id=replica_id),
            ev.HealthChecked(replica_id=replica_id, error="boom"),
            ev.ReplicaIdle(replica_id=replica_id),
            ev.CallLost(replica_id=replica_id, call="drain"),
            ev.Reconfigured(replica_id=replica_id, config_key="k"),
        )
        assert encode(self.state, with_event_id=False) == before or self.wake_at is not None

    @rule(forward=st.sampled_from([0.0, 1.0, 1e6]), reported_share=st.integers(0, 3))
    def restart_controller(self, forward: float, reported_share: int) -> None:
        """A new controller, on another clock, that finds some of the processes."""
        saved = encode(self.state)
        self.state = decode(saved)
        self.now = 500.0 + forward
        self.first, self.log = decode(saved), []
        # Its successor asks for them again.
        self.builds = []
        for process in self.processes.values():
            process.call = None
        self.feed(ev.ControllerStarted(unix_s=1.7e9, salt="y", fixed_nodes=True))
        for number, replica_id in enumerate(sorted(self.processes)):
            if number % 4 < reported_share:
                del self.processes[replica_id]
                self.pending_exits().discard(replica_id)
        self.feed(ev.NodeJoined(node_id=LOCAL_NODE, resources={"CPU": 8.0}))
        for replica_id, process in sorted(self.processes.items()):
            if process.address:
                self.report_up(replica_id)
        self.feed(ev.InventoryComplete())

    # ----------------------------------------------------------------------------- invariants

    @invariant()
    def state_is_valid_and_can_be_saved(self) -> None:
        validate(self.state)
        assert encode(decode(encode(self.state))) == encode(self.state)

    @invariant()
    def a_second_step_does_nothing(self) -> None:
        again = step(self.state, (), self.now)
        assert again.actions == ()
        assert again.state == self.state
        assert again.wake_at == self.wake_at

    @invariant()
    def looking_at_everything_decides_nothing_more(self) -> None:
        whole = step(self.state, (), self.now, look_at_all=True)
        assert whole.actions == ()
        assert whole.state == self.state
        assert self.state.routing == routing_snapshot(self.state)

    @invariant()
    def only_running_replicas_are_exposed(self) -> None:
        exposed = {
            route.replica_id
            for deployment in routing_snapshot(self.state).deployments.values()
            for route in deployment.replicas
        }
        running = {
            replica.replica_id
            for _, _, replica in self.state.replicas()
            if replica.state is ReplicaState.RUNNING
        }
        assert exposed == running

    @invariant()
    def status_can_always_be_told(self) -> None:
        for status in report(self.state, self.now).values():
            assert status.status
            if status.status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                assert status.message

    def teardown(self) -> None:
        """No more faults: everything reaches its target, in bounded time."""
        assert replay(self.first, self.log) == self.state
        if self.state.submission is not None:
            # Also what is not there: it was on its way out, and may have been the config's.
            declared = self.state.submission.applications
            self.feed(ev.DeleteRequested(names=tuple(each.name for each in declared)))
        config = DeploymentConfig(num_replicas=2)
        request = ev.DeployRequested(
            applications=tuple(
                _application(name, "1", config, ["Front"]) for name in self.state.applications
            )
        )
        if requests.check(self.state, request) is None:
            self.feed(request)
        assert self.state.submission is None
        started = self.now
        for _ in range(2000):
            if self.settled():
                break
            self.quiet_round()
        assert self.settled(), report(self.state, self.now)
        assert self.now - started < 600.0
        for app in self.state.applications.values():
            route = routing_snapshot(self.state).deployments[DeploymentID("Front", app.name)]
            assert len(route.replicas) == 2
        self.feed(ev.ShutdownRequested())
        for _ in range(500):
            if self.ended:
                break
            self.quiet_round()
        assert self.ended
        assert not self.state.applications

    def settled(self) -> bool:
        states = [replica.state for _, _, replica in self.state.replicas()]
        return (
            all(status.status == "RUNNING" for status in report(self.state, self.now).values())
            and all(state is ReplicaState.RUNNING for state in states)
            and len(self.processes) == len(states)
            and not any(app.deleting for app in self.state.applications.values())
        )

    def quiet_round(self) -> None:
        """Everything that was asked for happens, and then time passes."""
        for replica_id in sorted(self.pending_exits() & set(self.processes)):
            self.exit(replica_id, "killed by SIGKILL")
        for replica_id, process in sorted(self.processes.items()):
            if replica_id not in self.processes:
                continue
            if not process.address:
                self.report_up(replica_id)
            elif process.call is not None:
                self.answer(replica_id)
        self.feed(ev.RoutersAcked(version=self.state.snapshot_version))
        if self.wake_at is not None and not any(each.call for each in self.processes.values()):
            self.now = max(self.now, self.wake_at)
            self.feed()


def _application(
    name: str, version: str, config: DeploymentConfig, deployments: list[str]
) -> ev.ApplicationRequest:
    return ev.ApplicationRequest(
        name=name,
        route_prefix=f"/{name}",
        ingress="Front",
        deployments=tuple(
            ev.DeploymentRequest(name=each, code_key="code/1", code_version=version, config=config)
            for each in deployments
        ),
    )


def _numbered(event: ev.AnyEvent, number: int) -> ev.AnyEvent:
    return msgspec.structs.replace(event, event_id=number)


TestWorld = pytest.mark.timeout(55)(World.TestCase)
TestWorld.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    phases=(Phase.reuse, Phase.generate, Phase.shrink),
)
