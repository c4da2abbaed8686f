"""One deployment that is scaled by demand: what is known of it, and its decisions so far.

Rules: decides nothing itself (`core/autoscale` does). One event loop; time is an argument.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from remora.core.autoscale.capacity import Bounds
from remora.core.autoscale.decide import Decision, decide
from remora.core.autoscale.demand import Demand
from remora.core.autoscale.given import Asked, Memory, Situation
from remora.core.autoscale.record import ScalingRecord
from remora.core.autoscale.status import direction, metrics_health
from remora.core.autoscale.window import look as look_at
from remora.options.autoscaling import AutoscalingConfig, ScalingPolicySetup
from remora.types import DeploymentID, ReplicaID, Seconds
from remora.wire.scaling import PolicyView, ScalingDetail

#: Decisions that are remembered for people.
KEPT_DECISIONS = 50


class Scaled:
    """A deployment with autoscaling.

    Attributes:
        config: how it is scaled.
        policy: of its own; without a path the default one.
        demand: what is asked of it.
        target: replicas that there should be.
        running: replicas that run, with their addresses.
        bounds: of the number.
        asked: what a policy of the user's said last; None: the default policy decides.
        decisions: those that changed the number, oldest first.
        timer: decides again when it is over.
        due_s: when that is.
        decided_s: when the last decision was made; None: none was so far.
        warned_of_names: it was said that its replicas record too many metrics.
    """

    def __init__(self, where: DeploymentID, config: AutoscalingConfig, now: Seconds) -> None:
        self.where = where
        self.config = config
        self.policy = ScalingPolicySetup()
        self.demand = Demand(now)
        self.target = 0
        self.running: dict[ReplicaID, str] = {}
        self.bounds = Bounds(0, 0)
        self.asked: Asked | None = None
        self.decisions: deque[ScalingRecord] = deque(maxlen=KEPT_DECISIONS)
        self.timer: asyncio.Handle | None = None
        self.due_s: Seconds = 0.0
        self.decided_s: Seconds | None = None
        self.warned_of_names = False
        self._memory = Memory()

    @property
    def keep_s(self) -> Seconds:
        """How far back somebody may look."""
        return max(self.config.look_back_period_s, self.config.panic_window_s or 0.0)

    def expect(self, running: Mapping[ReplicaID, str], now: Seconds) -> None:
        """These replicas run."""
        self.running = dict(running)
        self.demand.expect(running, now, self.keep_s)

    def look(self, now: Seconds, unix_offset_s: float) -> Decision:
        """Decide with what is known; nothing comes of it."""
        situation = Situation(
            target=self.target,
            running=len(self.running),
            bounds=self.bounds,
            silent=self.demand.silent(self.config.metrics_interval_s, now),
            unix_offset_s=unix_offset_s,
        )
        return decide(self.config, self.demand, self._memory, situation, now, self.asked)

    def decide(self, now: Seconds, unix_offset_s: float) -> Decision:
        """Decide with what is known, and remember it."""
        decision = self.look(now, unix_offset_s)
        self._memory = decision.memory
        self.decided_s = now
        if decision.target != self.target:
            self.decisions.append(decision.record)
            self.target = decision.target
        return decision

    def view(self, now: Seconds, unix_offset_s: float) -> PolicyView:
        """Describe it to a policy of the user's."""
        config, demand, memory = self.config, self.demand, self._memory
        window = look_at(config, demand, memory, self.target, now)
        start = now - config.look_back_period_s
        return PolicyView(
            deployment=self.where,
            current_num_replicas=len(self.running),
            target_num_replicas=self.target,
            running_replicas=tuple(self.running),
            total_num_requests=window.growing,
            total_queued_requests=window.queued,
            aggregated_metrics=demand.aggregate_custom(config.aggregation_function, start, now),
            raw_metrics={
                name: {
                    replica_id: [(at + unix_offset_s, value) for at, value in values]
                    for replica_id, values in by_replica.items()
                }
                for name, by_replica in demand.custom.items()
            },
            capacity_adjusted_min_replicas=self.bounds.low,
            capacity_adjusted_max_replicas=self.bounds.high,
            last_scale_up_time=_unix(memory.scaled_up_s, unix_offset_s),
            last_scale_down_time=_unix(memory.scaled_down_s, unix_offset_s),
            current_time=now + unix_offset_s,
            config=config,
        )

    def detail(self, now: Seconds, unix_offset_s: float) -> ScalingDetail:
        """Say how it is scaled, for people."""
        demand, config = self.demand, self.config
        custom = demand.aggregate_custom(
            config.aggregation_function, now - config.look_back_period_s, now
        )
        metrics = {
            "queued": demand.queued.value,
            "running": demand.running.value,
            "total": demand.total.value,
        }
        for name, by_replica in custom.items():
            metrics |= {f"{name}[{replica_id}]": value for replica_id, value in by_replica.items()}
        running = len(self.running)
        silent = demand.silent(config.metrics_interval_s, now)
        return ScalingDetail(
            app_name=self.where.app_name,
            deployment=self.where.name,
            by="demand",
            status=direction(running, self.target),
            target_num_replicas=self.target,
            running=running,
            low=self.bounds.low,
            high=self.bounds.high,
            latest=self.look(now, unix_offset_s).record,
            decisions=tuple(self.decisions),
            metrics=metrics,
            metrics_health=metrics_health(running, demand.num_unheard, len(silent)),
            errors=(self.asked.error,) if self.asked is not None and self.asked.error else (),
        )


def _unix(at: Seconds | None, offset_s: float) -> float | None:
    return None if at is None else at + offset_s
