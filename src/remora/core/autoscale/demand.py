"""What is asked of one deployment: what its replicas work on, and what waits for them.

Every source says one number, and says it again when it has changed: a replica how many requests
it works on, a router how many wait in it. Streams, WebSockets and long jobs are ongoing requests
for as long as they take. What nobody works on any more counts no longer, so a source that is
gone is dropped; one that is silent is believed, and nothing is scaled down on its word.

Rules: pure; time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from remora.core.autoscale.timeline import Timeline
from remora.types import ReplicaID, Seconds

#: A source that was silent for so long, and for two of its intervals, may have changed.
SILENT_AFTER_S: Seconds = 10.0
#: Values of one metric of one replica that a policy gets to see.
_KEPT_VALUES = 1000
#: Metrics of one deployment: a name with an id in it makes a new one with every request.
MAX_NAMES = 100


class Demand:
    """The numbers of one deployment's sources, summed up at every instant.

    Attributes:
        queued: requests that wait in routers.
        running: requests that replicas work on.
        total: both.
        since_s: when somebody began to count.
        custom: what replicas record of themselves, by metric and replica, with times.
    """

    def __init__(self, now: Seconds) -> None:
        self.since_s = now
        self.queued = Timeline(now)
        self.running = Timeline(now)
        self.total = Timeline(now)
        self.custom: dict[str, dict[ReplicaID, list[tuple[Seconds, float]]]] = {}
        self._queued: dict[str, float] = {}
        self._running: dict[ReplicaID, float] = {}
        #: When each replica of those that run was last heard, or began to be expected.
        self._heard: dict[ReplicaID, Seconds] = {}

    def report_queued(self, router: str, num: float, now: Seconds, keep_s: Seconds) -> None:
        """So many requests wait in a router."""
        if num:
            self._queued[router] = num
        else:
            self._queued.pop(router, None)
        self._sum_up(now, keep_s)

    def report_running(
        self, replica_id: ReplicaID, num: float, now: Seconds, keep_s: Seconds
    ) -> None:
        """A replica works on so many requests; one that is not expected is not counted."""
        if replica_id not in self._heard:
            return
        self._heard[replica_id] = now
        self._running[replica_id] = num
        self._sum_up(now, keep_s)

    def report_custom(
        self, replica_id: ReplicaID, metrics: Mapping[str, float], now: Seconds, keep_s: Seconds
    ) -> list[str]:
        """A replica has recorded these of itself, and nothing else any more.

        Returns:
            Names that are not kept, because there are too many.
        """
        if replica_id not in self._heard:
            return []
        self._forget_old(replica_id, metrics, now - keep_s)
        refused = []
        for name, value in metrics.items():
            if name not in self.custom and len(self.custom) >= MAX_NAMES:
                refused.append(name)
                continue
            values = self.custom.setdefault(name, {}).setdefault(replica_id, [])
            values.append((now, float(value)))
            while len(values) > 1 and (values[1][0] <= now - keep_s or len(values) > _KEPT_VALUES):
                del values[0]
        return refused

    def _forget_old(
        self, replica_id: ReplicaID, recorded: Mapping[str, float], before: Seconds
    ) -> None:
        """Forget what a replica records no longer, when nobody may look back at it any more."""
        for name, by_replica in list(self.custom.items()):
            values = by_replica.get(replica_id)
            if values and name not in recorded and values[-1][0] <= before:
                del by_replica[replica_id]
                if not by_replica:
                    del self.custom[name]

    def expect(self, replicas: Iterable[ReplicaID], now: Seconds, keep_s: Seconds) -> None:
        """These run: what others had to do is theirs no more."""
        wanted = set(replicas)
        if wanted == self._heard.keys():
            return
        for gone in self._heard.keys() - wanted:
            del self._heard[gone]
            self._running.pop(gone, None)
            for name, values in list(self.custom.items()):
                values.pop(gone, None)
                if not values:
                    del self.custom[name]
        for new in wanted - self._heard.keys():
            self._heard[new] = now
        self._sum_up(now, keep_s)

    def silent(self, interval_s: Seconds, now: Seconds) -> list[ReplicaID]:
        """Replicas that should have said something by now. Pure."""
        limit_s = max(2 * interval_s, SILENT_AFTER_S)
        return sorted(
            replica_id for replica_id, heard_s in self._heard.items() if now - heard_s >= limit_s
        )

    @property
    def num_unheard(self) -> int:
        """Replicas that have said nothing yet. Pure."""
        return sum(replica_id not in self._running for replica_id in self._heard)

    @property
    def waiting(self) -> float:
        """Requests that wait just now."""
        return self.queued.value

    def _sum_up(self, now: Seconds, keep_s: Seconds) -> None:
        queued = sum(self._queued.values())
        running = sum(self._running.values())
        self.queued.set(now, queued, keep_s)
        self.running.set(now, running, keep_s)
        self.total.set(now, queued + running, keep_s)

    def aggregate_custom(
        self, how: str, start: Seconds, now: Seconds
    ) -> dict[str, dict[ReplicaID, float]]:
        """Each metric of each replica over a window. Pure."""
        return {
            name: {
                replica_id: _aggregate(values, how, start, now)
                for replica_id, values in by_replica.items()
                if values
            }
            for name, by_replica in self.custom.items()
        }


def _aggregate(
    values: list[tuple[Seconds, float]], how: str, start: Seconds, now: Seconds
) -> float:
    line = Timeline(*values[0])
    for at, value in values[1:]:
        line.set(at, value, now - start)
    return line.aggregate(how, max(start, values[0][0]), now)
