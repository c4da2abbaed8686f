"""One deployment of a simulation: its requests, its queue, and the replicas that work on them.

A request goes to the less busy of two replicas, or waits in one queue: what many routers do
together comes to that.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remora.core import events as ev
from remora.core.replica_state import ReplicaState
from remora.core.scale import count_of
from remora.core.state import Deployment
from remora.simulation.given import Simulated
from remora.simulation.result import Result, Sample, quantile
from remora.simulation.scaling import Scaling
from remora.types import ReplicaID, Seconds

if TYPE_CHECKING:
    from remora.simulation.world import World


@dataclass
class _Replica:
    """A replica at work."""

    ongoing: int = 0
    working: int = 0
    #: Taken, and not begun: when each came, and how long it takes.
    held: deque[tuple[Seconds, Seconds, Seconds]] = field(default_factory=deque)
    is_draining: bool = False


class Served:
    """One deployment, as its clients see it.

    Attributes:
        given: what it was given.
        queue: when each request came that no replica has, and how long it takes.
        ongoing: requests that a replica has.
        result: what is noted.
    """

    def __init__(self, world: World, given: Simulated) -> None:
        self._world = world
        self.given = given
        self._rng = random.Random(f"{world.seed}/{given.name}")
        # Its own, so that the same requests come whatever is decided.
        self._arrivals = given.load.arrivals(random.Random(f"{world.seed}/{given.name}/arrivals"))
        self._replicas: dict[ReplicaID, _Replica] = {}
        #: Those that take requests.
        self._open: list[ReplicaID] = []
        self.queue: deque[tuple[Seconds, Seconds]] = deque()
        self.result = Result(given.name)
        self.ongoing = 0
        self._arrived = 0
        self._ended: list[Seconds] = []
        #: Integral of the ongoing requests since it was taken.
        self._work = 0.0
        self._work_s: Seconds = 0.0
        config = given.config.autoscaling_config
        self._scaling = None if config is None else Scaling(world, self, config)

    # ------------------------------------------------------------------------------- requests

    def begin(self) -> None:
        """Wait for the first request."""
        self._await_next()
        if self._scaling is not None:
            self._scaling.begin()

    def _await_next(self) -> None:
        following = next(self._arrivals, None)
        if following is not None:
            at, took = following
            self._world.at(at, self.arrive, took)

    def arrive(self, took: Seconds | None) -> None:
        """A request comes."""
        self._await_next()
        self._arrived += 1
        if took is None:
            took = self.given.service.draw(self._rng)
        chosen = self._choose() if not self.queue else None
        if chosen is None:
            self.queue.append((self._world.now, took))
            if not self._open and self._scaling is not None:
                # Where no replica runs, a router tells of its first request at once.
                self._scaling.report()
        else:
            self._take(chosen, self._world.now, took)

    def _choose(self) -> ReplicaID | None:
        limit = self.given.config.max_ongoing_requests
        those = self._open
        if not those:
            return None
        if len(those) > 1:
            one, other = self._rng.choice(those), self._rng.choice(those)
            found = min(one, other, key=lambda each: self._replicas[each].ongoing)
            if self._replicas[found].ongoing < limit:
                return found
        return next((each for each in those if self._replicas[each].ongoing < limit), None)

    def _take(self, replica_id: ReplicaID, came_s: Seconds, took: Seconds) -> None:
        replica = self._replicas[replica_id]
        self._count(1)
        replica.ongoing += 1
        self.result.waits.append(self._world.now - came_s)
        parallel = self.given.service.parallel
        if parallel is not None and replica.working >= parallel:
            replica.held.append((came_s, took, self._world.now))
        else:
            replica.working += 1
            self._world.after(took, self.end, replica_id, came_s)

    def end(self, replica_id: ReplicaID, came_s: Seconds) -> None:
        """A request ends."""
        replica = self._replicas[replica_id]
        self._count(-1)
        replica.ongoing -= 1
        latency_s = self._world.now - came_s
        self.result.latencies.append(latency_s)
        self._ended.append(latency_s)
        if replica.held:
            held_s, took, _ = replica.held.popleft()
            self._world.after(took, self.end, replica_id, held_s)
        else:
            replica.working -= 1
        if replica.is_draining:
            if replica.ongoing == 0:
                self._world.tell(ev.ReplicaIdle(replica_id=replica_id))
        elif self.queue and replica.ongoing < self.given.config.max_ongoing_requests:
            self._take(replica_id, *self.queue.popleft())

    def _count(self, change: int) -> None:
        now = self._world.now
        self._work += self.ongoing * (now - self._work_s)
        self._work_s = now
        self.ongoing += change

    def take_work(self) -> float:
        """The integral of the ongoing requests since the last time."""
        self._count(0)
        work, self._work = self._work, 0.0
        return work

    # ------------------------------------------------------------------------------- replicas

    def serve(self, deployment: Deployment | None) -> None:
        """Follow the state: who takes requests, and who does not any more."""
        running = (
            {r.replica_id for r in deployment.in_state(ReplicaState.RUNNING)}
            if deployment
            else set()
        )
        for new in sorted(running - self._replicas.keys()):
            self._replicas[new] = _Replica()
            self._open.append(new)
            limit = self.given.config.max_ongoing_requests
            while self.queue and self._replicas[new].ongoing < limit:
                self._take(new, *self.queue.popleft())
        for gone in [each for each in self._open if each not in running]:
            self._open.remove(gone)
        if self._scaling is not None and deployment is not None:
            self._scaling.follow(deployment, running)

    def drain(self, replica_id: ReplicaID) -> None:
        """A replica is to finish what it works on."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.ongoing == 0:
            self._world.tell(ev.ReplicaIdle(replica_id=replica_id))
        else:
            replica.is_draining = True

    def sample(self) -> None:
        """Note how it is."""
        ended, self._ended = self._ended, []
        arrived, self._arrived = self._arrived, 0
        deployment = self._world.deployment(self.given.name)
        self.result.samples.append(
            Sample(
                at_s=self._world.passed_s,
                target=0 if deployment is None else count_of(deployment),
                running=len(self._open),
                ongoing=self.ongoing,
                queued=len(self.queue),
                arrived=arrived,
                p50_s=quantile(ended, 0.5),
                p99_s=quantile(ended, 0.99),
            )
        )
