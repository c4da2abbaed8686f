"""Simulated processes and time around the controller's real decisions.

Theory of operation: a heap of what happens next. `core.reconcile.step` decides about replicas,
and what it wants done comes back as its events a while later, as from an engine; deployments
that are scaled are decided for by the class that the controller uses (`scaling`).

Rules: no clock and no chance of its own: the seed decides.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence

import msgspec

from remora.core import actions as act
from remora.core import events as ev
from remora.core.reconcile import step
from remora.core.state import ControllerState, Deployment
from remora.simulation.given import Simulated
from remora.simulation.result import Result
from remora.simulation.scaling import APP
from remora.simulation.served import Served
from remora.types import LOCAL_NODE, ReplicaID, Seconds

#: Health checks decide nothing here.
_NEVER_S: Seconds = 1e9


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
    world = World(deployments, seed)
    return world.run(longest_s if length_s is None else length_s, sample_s)


class World:
    """Everything, and what happens next."""

    def __init__(self, deployments: Sequence[Simulated], seed: int) -> None:
        self.seed = seed
        self.begin_s = self.now = 1000.0
        self._heap: list[tuple[Seconds, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = itertools.count()
        self._inbox: list[ev.AnyEvent] = []
        self._state = ControllerState()
        self._wake_at: Seconds | None = None
        self._served = {each.name: Served(self, each) for each in deployments}

    @property
    def passed_s(self) -> Seconds:
        """Since the beginning."""
        return self.now - self.begin_s

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
        app = self._state.applications.get(APP)
        return None if app is None else app.deployments.get(name)

    def run(self, length_s: Seconds, sample_s: Seconds) -> list[Result]:
        """Let it all happen."""
        self._deploy()
        for served in self._served.values():
            served.begin()
        for number in range(1, math.floor(length_s / sample_s) + 1):
            self.at(number * sample_s, self._sample)
        end = self.begin_s + length_s
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, what, args = heapq.heappop(heap)
            what(*args)
        for served in self._served.values():
            served.result.num_unfinished = served.ongoing + len(served.queue)
            served.result.replica_s = sum(each.running for each in served.result.samples) * sample_s
        return [served.result for served in self._served.values()]

    def _sample(self) -> None:
        for served in self._served.values():
            served.sample()

    def _deploy(self) -> None:
        first = next(iter(self._served))
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
                    served.given.config, health_check_period_s=_NEVER_S, resources={}
                ),
            )
            for name, served in self._served.items()
        )
        app = ev.ApplicationRequest(
            name=APP, route_prefix=None, ingress=first, deployments=requests
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
        old = before.applications.get(APP)
        new = decided.state.applications.get(APP)
        if new is not old:
            for name, served in self._served.items():
                served.serve(self.deployment(name))

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
                start_s = self._of(action.spec.deployment).given.service.start_s
                self.after(start_s, self.tell, ev.ReplicaReady(replica_id=replica_id))
            case act.CheckHealth(replica_id=replica_id):
                self.tell(ev.HealthChecked(replica_id=replica_id))
            case act.DrainReplica(replica_id=replica_id):
                self._with(replica_id).drain(replica_id)
            case act.StopReplica(replica_id=replica_id) | act.KillProcess(replica_id=replica_id):
                self.tell(ev.ProcessExited(replica_id=replica_id, reason="stopped", expected=True))
            case _:
                pass

    def _of(self, deployment: str) -> Served:
        return self._served[deployment]

    def _with(self, replica_id: ReplicaID) -> Served:
        name = replica_id.rpartition("#")[0].removeprefix(f"{APP}/")
        return self._served[name]
