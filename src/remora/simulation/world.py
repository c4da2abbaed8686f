"""Simulated processes, requests and time around the controller's real decisions.

Theory of operation: a heap of what happens next. `core.reconcile.step` decides about replicas,
and what it wants done comes back as its events a while later, as from an engine; deployments
that are scaled are decided for by the class that the controller uses. A request goes to
the less busy of two replicas, or waits in one queue: what many routers do together comes to that.

Rules: no clock and no chance of its own: the seed decides.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from remora.config import DeploymentConfig
from remora.control.policy_process import checked, context_of, make_policy
from remora.control.scaled import Scaled
from remora.core import actions as act
from remora.core import events as ev
from remora.core.autoscale.decide import Asked
from remora.core.reconcile import step
from remora.core.replica_state import ReplicaState
from remora.core.scale import bounds_for, count_of
from remora.core.state import ControllerState, Deployment
from remora.errors import PolicyError
from remora.observe.tracebacks import user_traceback
from remora.simulation.load import Load
from remora.simulation.result import Result, Sample, quantile
from remora.types import LOCAL_NODE, DeploymentID, ReplicaID, Seconds

_APP = "simulation"
#: How often replicas and routers report.
_REPORT_S: Seconds = 0.5
#: How often a policy of the user's is asked.
_ASK_S: Seconds = 1.0
#: Stands for all replicas in the reports: only the sum counts.
_ALL = ReplicaID("all")
#: Health checks decide nothing here.
_NEVER_S: Seconds = 1e9


@dataclass(frozen=True)
class Service:
    """How long requests take, where the load does not say.

    Attributes:
        mean_s: seconds, > 0.
        variation: standard deviation by mean; 0: all the same, 1: as if by chance.
        parallel: how many requests a replica works on at the same time; others that it has taken
            wait inside of it. None: as many as it takes.
        start_s: seconds until a new replica serves.
    """

    mean_s: Seconds = 0.1
    variation: float = 0.0
    parallel: int | None = None
    start_s: Seconds = 0.5

    def draw(self, rng: random.Random) -> Seconds:
        """How long one request takes."""
        if not self.variation:
            return self.mean_s
        shape = 1 / self.variation**2
        return rng.gammavariate(shape, self.mean_s / shape)


@dataclass(frozen=True)
class Simulated:
    """A deployment, its load and its requests."""

    name: str
    config: DeploymentConfig
    load: Load
    service: Service = Service()


def simulate(
    deployments: Sequence[Simulated],
    *,
    length_s: Seconds | None = None,
    seed: int = 0,
    sample_s: Seconds = 1.0,
) -> list[Result]:
    """Let the controller serve these deployments.

    Args:
        deployments: each with a name of its own.
        length_s: seconds to simulate; None: as long as the longest load.
        seed: the same one gives the same result.
        sample_s: seconds between two samples.

    Raises:
        PolicyError: a policy of the user's failed.
    """
    longest_s = max(each.load.length_s for each in deployments)
    world = _World(deployments, seed)
    return world.run(longest_s if length_s is None else length_s, sample_s)


@dataclass
class _Replica:
    """A replica at work."""

    ongoing: int = 0
    working: int = 0
    #: Taken, and not begun: when each came, and how long it takes.
    held: deque[tuple[Seconds, Seconds, Seconds]] = field(default_factory=deque)
    is_draining: bool = False


class _Model:
    """One deployment: its replicas, its queue, and what is known of it."""

    def __init__(self, world: _World, given: Simulated) -> None:
        self.world = world
        self.given = given
        self.where = DeploymentID(given.name, _APP)
        self.rng = random.Random(f"{world.seed}/{given.name}")
        # Its own, so that the same requests come whatever is decided.
        self.arrivals = given.load.arrivals(random.Random(f"{world.seed}/{given.name}/arrivals"))
        self.replicas: dict[ReplicaID, _Replica] = {}
        #: Those that take requests.
        self.open: list[ReplicaID] = []
        self.queue: deque[tuple[Seconds, Seconds]] = deque()
        self.result = Result(given.name)
        self.ongoing = 0
        self.arrived = 0
        self.ended: list[Seconds] = []
        self.scaled: Scaled | None = None
        self.is_looking = False
        #: Integral of the ongoing requests since the last report.
        self.work = 0.0
        self.work_s: Seconds = 0.0
        self.told = (-1.0, -1.0)
        config = given.config.autoscaling_config
        if config is not None:
            self.scaled = Scaled(self.where, config, world.now)
            setup = given.config.scaling_policy
            self.policy = make_policy(setup) if setup.path else None
            self.policy_state: dict[str, object] = {}

    # ------------------------------------------------------------------------------- requests

    def begin(self) -> None:
        """Wait for the first request."""
        self._await_next()
        if self.scaled is not None:
            self.world.at(_REPORT_S, self.report)
            if self.policy is not None:
                self.world.at(0.0, self.ask_policy)

    def _await_next(self) -> None:
        following = next(self.arrivals, None)
        if following is not None:
            at, took = following
            self.world.at(at, self.arrive, took)

    def arrive(self, took: Seconds | None) -> None:
        """A request comes."""
        self._await_next()
        self.arrived += 1
        if took is None:
            took = self.given.service.draw(self.rng)
        chosen = self._choose() if not self.queue else None
        if chosen is None:
            self.queue.append((self.world.now, took))
            if not self.open:
                # Where no replica runs, a router tells of its first request at once.
                self.report_now()
        else:
            self._take(chosen, self.world.now, took)

    def _choose(self) -> ReplicaID | None:
        limit = self.given.config.max_ongoing_requests
        those = self.open
        if not those:
            return None
        if len(those) > 1:
            one, other = self.rng.choice(those), self.rng.choice(those)
            found = min(one, other, key=lambda each: self.replicas[each].ongoing)
            if self.replicas[found].ongoing < limit:
                return found
        return next((each for each in those if self.replicas[each].ongoing < limit), None)

    def _take(self, replica_id: ReplicaID, came_s: Seconds, took: Seconds) -> None:
        replica = self.replicas[replica_id]
        self._count(1)
        replica.ongoing += 1
        self.result.waits.append(self.world.now - came_s)
        parallel = self.given.service.parallel
        if parallel is not None and replica.working >= parallel:
            replica.held.append((came_s, took, self.world.now))
        else:
            replica.working += 1
            self.world.after(took, self.end, replica_id, came_s)

    def end(self, replica_id: ReplicaID, came_s: Seconds) -> None:
        """A request ends."""
        replica = self.replicas[replica_id]
        self._count(-1)
        replica.ongoing -= 1
        latency_s = self.world.now - came_s
        self.result.latencies.append(latency_s)
        self.ended.append(latency_s)
        if replica.held:
            held_s, took, _ = replica.held.popleft()
            self.world.after(took, self.end, replica_id, held_s)
        else:
            replica.working -= 1
        if replica.is_draining:
            if replica.ongoing == 0:
                self.world.tell(ev.ReplicaIdle(replica_id=replica_id))
        elif self.queue and replica.ongoing < self.given.config.max_ongoing_requests:
            self._take(replica_id, *self.queue.popleft())

    def _count(self, change: int) -> None:
        now = self.world.now
        self.work += self.ongoing * (now - self.work_s)
        self.work_s = now
        self.ongoing += change

    # ------------------------------------------------------------------------------- replicas

    def serve(self, deployment: Deployment | None) -> None:
        """Follow the state: who takes requests, and who does not any more."""
        running = (
            {r.replica_id for r in deployment.in_state(ReplicaState.RUNNING)}
            if deployment
            else set()
        )
        for new in sorted(running - self.replicas.keys()):
            self.replicas[new] = _Replica()
            self.open.append(new)
            limit = self.given.config.max_ongoing_requests
            while self.queue and self.replicas[new].ongoing < limit:
                self._take(new, *self.queue.popleft())
        for gone in [each for each in self.open if each not in running]:
            self.open.remove(gone)
        if self.scaled is not None and deployment is not None:
            config = deployment.target.config
            self.scaled.bounds = bounds_for(deployment, config)
            self.scaled.target = count_of(deployment)
            if self.scaled.running.keys() != running:
                self.scaled.running = dict.fromkeys(running, "")
                self.look_soon()

    def drain(self, replica_id: ReplicaID) -> None:
        """A replica is to finish what it works on."""
        replica = self.replicas.get(replica_id)
        if replica is None or replica.ongoing == 0:
            self.world.tell(ev.ReplicaIdle(replica_id=replica_id))
        else:
            replica.is_draining = True

    # ---------------------------------------------------------------------------- its decisions

    def report(self) -> None:
        """Report what is asked, as replicas and routers do."""
        self.world.after(_REPORT_S, self.report)
        self.report_now()

    def report_now(self) -> None:
        """Report if something has changed."""
        scaled, now = self.scaled, self.world.now
        if scaled is None:
            return
        self._count(0)
        mean = self.work / _REPORT_S
        self.work = 0.0
        told = (mean, float(len(self.queue)))
        if told == self.told:
            return
        self.told = told
        scaled.demand.expect([_ALL], now, scaled.keep_s)
        scaled.demand.report_running(_ALL, mean, now, scaled.keep_s)
        scaled.demand.report_queued("router", told[1], now, scaled.keep_s)
        self.decide()

    def look_soon(self) -> None:
        """Decide after what happens now."""
        if not self.is_looking:
            self.is_looking = True
            self.world.after(0.0, self._look)

    def _look(self) -> None:
        self.is_looking = False
        self.decide()

    def decide(self) -> None:
        """Let the autoscaler decide, and look again when it says."""
        scaled, now = self.scaled, self.world.now
        if scaled is None:
            return
        # What is silent here has nothing new.
        scaled.demand.report_running(_ALL, scaled.demand.running.value, now, scaled.keep_s)
        before = scaled.target
        decision = scaled.decide(now, -self.world.begin_s)
        if decision.target != before:
            record = decision.record
            self.result.decisions.append(record)
            self.world.tell(
                ev.ScaleDecided(app_name=_APP, deployment=self.given.name, record=record)
            )
        at = decision.look_at
        if at is not None and math.isfinite(at):
            self.world.at(at - self.world.begin_s, self._look_if_due, at)

    def _look_if_due(self, at: Seconds) -> None:
        scaled = self.scaled
        if scaled is not None and (scaled.decided_s is None or scaled.decided_s < at):
            self.decide()

    def ask_policy(self) -> None:
        """Ask the policy of the user's."""
        scaled, policy = self.scaled, self.policy
        assert scaled is not None
        assert policy is not None
        name = (
            f"The autoscaling policy {scaled.policy.path or self.given.config.scaling_policy.path}"
        )
        view = scaled.view(self.world.now, -self.world.begin_s)
        try:
            answer = policy(context_of(view, self.policy_state))
        except Exception as error:
            raise PolicyError(f"{name} failed.\n{user_traceback(error)}") from error
        if hasattr(answer, "__await__"):
            answer.close()
            raise PolicyError(f"{name} is a coroutine function, which cannot be simulated.")
        num, self.policy_state = checked(name, answer)
        scaled.asked = Asked(num, policy=self.given.config.scaling_policy.path)
        self.world.after(_ASK_S, self.ask_policy)
        self.decide()

    def sample(self) -> None:
        """Note how it is."""
        ended, self.ended = self.ended, []
        arrived, self.arrived = self.arrived, 0
        deployment = self.world.deployment(self.given.name)
        self.result.samples.append(
            Sample(
                at_s=self.world.now - self.world.begin_s,
                target=0 if deployment is None else count_of(deployment),
                running=len(self.open),
                ongoing=self.ongoing,
                queued=len(self.queue),
                arrived=arrived,
                p50_s=quantile(ended, 0.5),
                p99_s=quantile(ended, 0.99),
            )
        )


class _World:
    """Everything, and what happens next."""

    def __init__(self, deployments: Sequence[Simulated], seed: int) -> None:
        self.seed = seed
        self.begin_s = self.now = 1000.0
        self._heap: list[tuple[Seconds, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = itertools.count()
        self._inbox: list[ev.AnyEvent] = []
        self._state = ControllerState()
        self._wake_at: Seconds | None = None
        self.models = {each.name: _Model(self, each) for each in deployments}

    def at(self, since_begin_s: Seconds, what: Callable[..., None], *args: object) -> None:
        """Do something at a time since the beginning."""
        at = max(self.now, self.begin_s + since_begin_s)
        heapq.heappush(self._heap, (at, next(self._numbers), what, args))

    def after(self, delay_s: Seconds, what: Callable[..., None], *args: object) -> None:
        """Do something after a while."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._numbers), what, args))

    def tell(self, event: ev.AnyEvent) -> None:
        """Let the controller know; it steps after what happens now."""
        if not self._inbox:
            self.after(0.0, self._step)
        self._inbox.append(event)

    def deployment(self, name: str) -> Deployment | None:
        """One deployment in the controller's state."""
        app = self._state.applications.get(_APP)
        return None if app is None else app.deployments.get(name)

    def run(self, length_s: Seconds, sample_s: Seconds) -> list[Result]:
        """Let it all happen."""
        self._deploy()
        for model in self.models.values():
            model.begin()
        for number in range(1, math.floor(length_s / sample_s) + 1):
            self.at(number * sample_s, self._sample)
        end = self.begin_s + length_s
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, what, args = heapq.heappop(heap)
            what(*args)
        for model in self.models.values():
            model.result.num_unfinished = model.ongoing + len(model.queue)
            model.result.replica_s = sum(each.running for each in model.result.samples) * sample_s
        return [model.result for model in self.models.values()]

    def _sample(self) -> None:
        for model in self.models.values():
            model.sample()

    def _deploy(self) -> None:
        first = next(iter(self.models))
        self.tell(ev.ControllerStarted(unix_s=0.0, new_instance=True))
        plenty = {"CPU": 1e6, "GPU": 1e4, "memory": 1e15}
        self.tell(ev.NodeJoined(node_id=LOCAL_NODE, resources=plenty))
        self.tell(ev.InventoryComplete())
        requests = tuple(
            ev.DeploymentRequest(
                name=name,
                code_key=name,
                code_version="1",
                config=msgspec.structs.replace(
                    model.given.config, health_check_period_s=_NEVER_S, resources={}
                ),
            )
            for name, model in self.models.items()
        )
        app = ev.ApplicationRequest(
            name=_APP, route_prefix=None, ingress=first, deployments=requests
        )
        self.tell(ev.DeployRequested(applications=(app,)))

    # --------------------------------------------------------------------------- the controller

    def _step(self) -> None:
        events, self._inbox = self._inbox, []
        before = self._state
        decided = step(before, tuple(events), self.now)
        self._state = decided.state
        if decided.wake_at is not None and decided.wake_at != self._wake_at:
            self._wake_at = decided.wake_at
            self.at(decided.wake_at - self.begin_s, self._wake, decided.wake_at)
        for action in decided.actions:
            self._do(action)
        if decided.state.snapshot_version != before.snapshot_version:
            self.tell(ev.RoutersAcked(version=decided.state.snapshot_version))
        old = before.applications.get(_APP)
        new = decided.state.applications.get(_APP)
        if new is not old:
            for name, model in self.models.items():
                model.serve(self.deployment(name))

    def _wake(self, at: Seconds) -> None:
        if at == self._wake_at and not self._inbox:
            self._wake_at = None
            self._step()

    def _do(self, action: act.Action) -> None:
        """What comes of an action, as an event, a while later."""
        match action:
            case act.StartProcess(replica_id=replica_id):
                self.after(
                    0.02,
                    self.tell,
                    ev.ProcessStarted(
                        replica_id=replica_id,
                        address=f"simulated:{replica_id}",
                        pid=1,
                        node_id=LOCAL_NODE,
                    ),
                )
            case act.InitializeReplica(replica_id=replica_id):
                start_s = self._model_of(action.deployment).given.service.start_s
                self.after(start_s, self.tell, ev.ReplicaReady(replica_id=replica_id))
            case act.CheckHealth(replica_id=replica_id):
                self.tell(ev.HealthChecked(replica_id=replica_id))
            case act.DrainReplica(replica_id=replica_id):
                self._model_with(replica_id).drain(replica_id)
            case act.StopReplica(replica_id=replica_id) | act.KillProcess(replica_id=replica_id):
                self.tell(ev.ProcessExited(replica_id=replica_id, reason="stopped", expected=True))
            case _:
                pass

    def _model_of(self, deployment: str) -> _Model:
        return self.models[deployment]

    def _model_with(self, replica_id: ReplicaID) -> _Model:
        name = replica_id.rpartition("#")[0].removeprefix(f"{_APP}/")
        return self.models[name]
