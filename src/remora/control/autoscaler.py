"""Hears what is asked of deployments and tells the controller how many replicas they should have.

Theory of operation: replicas and routers report when their numbers change, so nothing is asked
for. A report has its deployment decided anew; so does the moment that the last decision named,
the end of a delay above all. A decision that changes the number is posted to the controller as an
event, like everything else that happens: the tick takes it in, saves it and acts. Reports
themselves do not wake the controller, or a thousand busy replicas would keep it from its work.

Rules: decides nothing (`core/autoscale` does). One event loop. Nothing in here is saved: after a
restart sources say their numbers anew, and delays begin again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable

from remora.control.load_watch import LoadWatch
from remora.control.policies import Policies
from remora.control.replica_control import Connect
from remora.control.scaled import Scaled
from remora.core import events as ev
from remora.core.autoscale.demand import MAX_NAMES
from remora.core.autoscale.pace import MAX_REPORTS_PER_S, REPORT_S, report_interval_s
from remora.core.goal import in_effect
from remora.core.replica_state import ReplicaState
from remora.core.scale import bounds_for, count_of
from remora.core.state import Application, ControllerState, Deployment
from remora.types import DeploymentID, ReplicaID, Seconds
from remora.wire.control import Subscription
from remora.wire.scaling import DemandReport, DemandWanted, LoadWanted, ReplicaLoad, ScalingDetail

_log = logging.getLogger("remora.controller")

#: Between two decisions about one deployment, however many sources report.
DECIDE_EVERY_S: Seconds = 0.05


class _Router:
    """A process with routers: what it is to report."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.wanted.set()


class Autoscaler:
    """All deployments that are scaled by demand.

    Attributes:
        num_router_reports: how many came of what waits in processes that call.
        num_replica_reports: how many came of what replicas work on.
    """

    def __init__(
        self, post: Callable[[ev.AnyEvent], None], connect: Connect, policies: Policies
    ) -> None:
        """Make an autoscaler.

        Args:
            post: takes the events.
            connect: opens a link to a replica.
            policies: ask the code of users.
        """
        self._post = post
        self._connect = connect
        self._policies = policies
        policies.on_answer = self._decide_soon
        self._scaled: dict[DeploymentID, Scaled] = {}
        self._watches: dict[ReplicaID, LoadWatch] = {}
        #: Applications as they were at the last look: what is the same object has not changed.
        self._seen: dict[str, Application] = {}
        self._routers: dict[str, _Router] = {}
        self._wanted: dict[DeploymentID, Seconds] = {}
        self._unix_offset_s = 0.0
        self._report_s = REPORT_S
        self.num_router_reports = self.num_replica_reports = 0

    def _now(self) -> Seconds:
        return asyncio.get_running_loop().time()

    # --------------------------------------------------------------------- what the state says

    def follow(self, state: ControllerState) -> None:
        """Take over what a tick has changed; costs nothing for applications that are the same."""
        self._unix_offset_s = state.unix_offset_s
        applications = state.applications
        changed = [app for name, app in applications.items() if self._seen.get(name) is not app]
        gone = self._seen.keys() - applications.keys()
        if not changed and not gone:
            return
        for name in gone:
            self._drop([where for where in self._scaled if where.app_name == name])
            self._policies.forget(name)
        for app in changed:
            self._follow_app(app)
        self._seen = dict(applications)
        self._set_wanted()

    def _follow_app(self, app: Application) -> None:
        scaled = {
            DeploymentID(name, app.name): deployment
            for name, deployment in app.deployments.items()
            if in_effect(deployment).config.autoscaling_config is not None
            and not app.deleting
            and not deployment.removed
        }
        self._drop([w for w in self._scaled if w.app_name == app.name and w not in scaled])
        for where, deployment in scaled.items():
            self._follow_deployment(where, deployment)
        self._policies.follow(app, [self._scaled[where] for where in scaled], self._unix_offset_s)

    def _follow_deployment(self, where: DeploymentID, deployment: Deployment) -> None:
        target = in_effect(deployment)
        config = target.config
        assert config.autoscaling_config is not None
        now = self._now()
        scaled = self._scaled.get(where)
        if scaled is None:
            scaled = self._scaled[where] = Scaled(where, config.autoscaling_config, now)
        before = (scaled.config, scaled.bounds, scaled.target, scaled.running)
        scaled.config = config.autoscaling_config
        scaled.policy = config.scaling_policy
        scaled.bounds = bounds_for(deployment, config)
        scaled.target = count_of(deployment, target)
        running = {
            replica.replica_id: replica.address
            for replica in deployment.in_state(ReplicaState.RUNNING)
        }
        for gone in scaled.running.keys() - running.keys():
            self._unwatch(gone)
        for new in running.keys() - scaled.running.keys():
            self._watch(scaled, new, running[new])
        scaled.expect(running, now)
        if before[0].metrics_interval_s != scaled.config.metrics_interval_s:
            # Who has been silent for too long is told by the interval that is in effect.
            self._set_pace(scaled)
        # Most of what happens to a deployment, a health check say, is nothing to this.
        if before != (scaled.config, scaled.bounds, scaled.target, scaled.running):
            self._decide_soon(scaled)

    def _drop(self, those: Iterable[DeploymentID]) -> None:
        for where in list(those):
            scaled = self._scaled.pop(where)
            for replica_id in scaled.running:
                self._unwatch(replica_id)
            if scaled.timer is not None:
                scaled.timer.cancel()

    # ------------------------------------------------------------------------------ the sources

    def _set_wanted(self) -> None:
        """Tell routers what to report, when that has changed."""
        report_s = report_interval_s(len(self._watches), self._report_s, MAX_REPORTS_PER_S)
        if report_s != self._report_s:
            self._report_s = report_s
            for scaled in self._scaled.values():
                self._set_pace(scaled)
        wanted = dict.fromkeys(self._scaled, REPORT_S)
        if wanted != self._wanted:
            self._wanted = wanted
            for router in self._routers.values():
                router.wanted.set()

    def _set_pace(self, scaled: Scaled) -> None:
        """Tell its replicas how often to report, where that has changed."""
        wanted = self._wanted_of(scaled)
        for replica_id in scaled.running:
            if (watch := self._watches.get(replica_id)) is not None:
                watch.want(wanted)

    def _wanted_of(self, scaled: Scaled) -> LoadWanted:
        return LoadWanted(self._report_s, scaled.config.metrics_interval_s)

    def _watch(self, scaled: Scaled, replica_id: ReplicaID, address: str) -> None:
        def on_load(load: ReplicaLoad) -> None:
            self.num_replica_reports += 1
            now = self._now()
            if load.ongoing is not None:
                scaled.demand.report_running(replica_id, load.ongoing, now, scaled.keep_s)
            if load.metrics is not None:
                refused = scaled.demand.report_custom(replica_id, load.metrics, now, scaled.keep_s)
                _warn_of_names(scaled, refused)
            self._decide_soon(scaled)

        self._unwatch(replica_id)
        self._watches[replica_id] = LoadWatch(
            self._connect, address, self._wanted_of(scaled), on_load
        )

    def _unwatch(self, replica_id: ReplicaID) -> None:
        watch = self._watches.pop(replica_id, None)
        if watch is not None:
            watch.close()

    async def demand(self, subscription: Subscription) -> AsyncGenerator[DemandWanted, None]:
        """Tell one process what to report, until it goes: then nothing waits in it any more."""
        name = subscription.subscriber
        router = self._routers[name] = _Router()
        told: dict[DeploymentID, Seconds] = {}
        try:
            while True:
                await router.wanted.wait()
                router.wanted.clear()
                if told != self._wanted:
                    told = self._wanted
                    yield DemandWanted(told)
        finally:
            if self._routers.get(name) is router:
                del self._routers[name]
                self.report(DemandReport(name, dict.fromkeys(self._scaled, 0.0)))

    def report(self, report: DemandReport) -> None:
        """A process says how many requests wait in it."""
        self.num_router_reports += 1
        now = self._now()
        for where, num in report.queued.items():
            scaled = self._scaled.get(where)
            if scaled is not None:
                scaled.demand.report_queued(report.subscriber, num, now, scaled.keep_s)
                self._decide_soon(scaled)

    # ---------------------------------------------------------------------------- its decisions

    def _decide_soon(self, scaled: Scaled) -> None:
        """Decide at once, but not more often than is of use."""
        now, last = self._now(), scaled.decided_s
        self._decide_at(scaled, now if last is None else max(now, last + DECIDE_EVERY_S))

    def _decide_at(self, scaled: Scaled, at: Seconds) -> None:
        if scaled.timer is not None:
            if scaled.due_s <= at:
                return
            scaled.timer.cancel()
        # The handle does not know its time: uvloop gives a plain one for a time that has come.
        scaled.due_s = at
        scaled.timer = asyncio.get_running_loop().call_at(at, self._decide, scaled)

    def _decide(self, scaled: Scaled) -> None:
        scaled.timer = None
        if self._scaled.get(scaled.where) is not scaled:
            return
        now = self._now()
        before = scaled.target
        decision = scaled.decide(now, self._unix_offset_s)
        if decision.target != before:
            record = decision.record
            where = scaled.where
            _log.info(
                "%s: from %d to %d replicas: %s", where, record.before, record.after, record.reason
            )
            self._post(
                ev.ScaleDecided(app_name=where.app_name, deployment=where.name, record=record)
            )
        if decision.look_at is not None:
            self._decide_at(scaled, max(decision.look_at, now + DECIDE_EVERY_S))

    # ------------------------------------------------------------------------------- for people

    def detail(self, where: DeploymentID) -> ScalingDetail | None:
        """Say how a deployment is scaled; None: not by demand."""
        scaled = self._scaled.get(where)
        return None if scaled is None else scaled.detail(self._now(), self._unix_offset_s)

    def error(self, where: DeploymentID) -> str:
        """Say what is wrong with the policy of a deployment; empty: nothing."""
        scaled = self._scaled.get(where)
        return scaled.asked.error if scaled is not None and scaled.asked is not None else ""

    async def close(self) -> None:
        """End everything."""
        self._drop(list(self._scaled))
        await self._policies.close()


def _warn_of_names(scaled: Scaled, refused: list[str]) -> None:
    if not refused or scaled.warned_of_names:
        return
    scaled.warned_of_names = True
    _log.warning(
        "Replicas of %s record more than %d metrics; policies see no others, such as %s. Let "
        "`record_autoscaling_stats` use the same few names each time. Said once.",
        scaled.where,
        MAX_NAMES,
        ", ".join(map(repr, sorted(refused)[:3])),
    )
