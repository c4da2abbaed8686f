"""The controller's methods, as its clients call them (`wire/control.py` lists them).

Rules: asks the controller; decides nothing. Code stays opaque bytes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping

from remora.control.builders import stored
from remora.control.controller import Controller
from remora.control.handlers import asked, followed, read, told
from remora.control.node_status import nodes_of
from remora.control.planning import Measure, planned
from remora.control.scaling_admin import scaling_handlers, with_policy_errors
from remora.core import events as ev
from remora.core import releases
from remora.core.reconcile import story_of
from remora.core.replica_state import story
from remora.core.restart import MANY_CRASHES, in_a_row
from remora.core.state import ControllerState
from remora.core.status import report
from remora.engine.base import SystemProcess
from remora.errors import EngineError, ReleaseError
from remora.transport.control import ControlHandler
from remora.types import NodeID, ReplicaID, Seconds
from remora.wire.codec import pack
from remora.wire.control import (
    Accepted,
    Ack,
    ApplicationStatus,
    Callees,
    ConfigRequest,
    Configs,
    DeclaredApplication,
    DeleteRequest,
    DeployRequest,
    InstanceStatus,
    ProcessView,
    QueueClaim,
    SnapshotVersion,
    Story,
    StoryRequest,
    Subscription,
)
from remora.wire.health import ControllerHealth
from remora.wire.metrics import MetricsAnswer, MetricsReport, MetricsRequest
from remora.wire.plan import Plan
from remora.wire.releases import Releases, RollbackRequest

#: Of the controller's time, at most so much goes to each one who watches.
WATCHING_SHARE = 0.1
#: A report that takes no longer, of processor time, delays nobody.
QUICK_REPORT_S: Seconds = 0.005


class Admin:
    """Answers for one controller."""

    def __init__(
        self,
        controller: Controller,
        *,
        home: str,
        http_url: str = "",
        grpc_address: str = "",
        admin_url: str = "",
        measure: Measure = lambda _pid: 0,
    ) -> None:
        """Make the methods.

        Args:
            controller: who decides.
            home: the instance's folder, for status.
            http_url: of the front door, for status; empty without one.
            grpc_address: of the one for gRPC.
            admin_url: of the REST API; empty: it has only its Unix socket.
            measure: tells the memory of a replica's process, for plans.
        """
        self._measure = measure
        self._admin_url = admin_url
        self._controller = controller
        self._home = home
        self._http_url = http_url
        self._grpc_address = grpc_address
        #: Processor time that it took to work the last status out.
        self._report_s: Seconds = 0.0

    @property
    def handlers(self) -> Mapping[str, ControlHandler]:
        """The methods by name."""
        controller = self._controller
        ready = controller.ready
        return {
            "deploy": asked(DeployRequest, self._deploy, ready),
            "submit": asked(ConfigRequest, self._submit, ready),
            "configs": read(self._configs, ready),
            "plan": asked(ConfigRequest, self._plan, ready),
            "releases": read(self._releases, ready),
            "rollback": asked(RollbackRequest, self._rollback, ready),
            "delete": asked(DeleteRequest, self._delete),
            "shutdown": self._shutdown,
            "story": asked(StoryRequest, self._story),
            "status": read(self.status, ready),
            "watch": self._watch,
            "subscribe": followed(Subscription, controller.publisher.subscribe),
            "ack": told(Ack, controller.publisher.ack),
            "callees": told(Callees, controller.callees.note),
            "health": read(self._health, ready),
            "snapshot_version": self._snapshot_version,
            "queue": followed(QueueClaim, controller.leases.follow),
            "claim": told(QueueClaim, controller.leases.claim),
            "metrics": asked(MetricsRequest, self._metrics),
            "follow_metrics": followed(Subscription, controller.metrics.follow),
            "answer_metrics": told(MetricsAnswer, controller.metrics.on_answer),
            **scaling_handlers(controller),
        }

    async def status(self) -> InstanceStatus:
        """Compute the status of the instance."""
        controller = self._controller
        try:
            processes = await controller.engine.system_processes()
        except EngineError:
            # The instance is ending: what is known without the engine is still worth telling.
            processes = []
        supervisor = next((each.pid for each in processes if each.name == "supervisor"), 0)
        nodes = nodes_of(controller.state, processes)
        leaving = controller.state.routing.draining
        node_id = next((each.node_id for each in processes if each.name == "controller"), "")
        return InstanceStatus(
            home=self._home,
            http_url=self._http_url,
            controller_pid=os.getpid(),
            supervisor_pid=supervisor,
            proxies=tuple(
                _view(each, leaving) for each in processes if each.name.startswith("proxy")
            ),
            applications=self._report(),
            grpc_address=self._grpc_address,
            release=controller.state.release,
            admin_url=self._admin_url,
            target_capacity=controller.state.target_capacity,
            draining=tuple(node.node_id for node in nodes if node.draining),
            nodes=nodes,
            controller_node_id=node_id,
            troubles=tuple(filter(None, map(_trouble, processes))),
        )

    def _report(self) -> dict[str, ApplicationStatus]:
        controller = self._controller
        began = time.thread_time()
        found = report(controller.state, controller.now())
        self._report_s = time.thread_time() - began
        return with_policy_errors(controller.callees.added(found), controller.autoscaler)

    async def _deploy(self, request: DeployRequest) -> Accepted:
        keys: list[str] = []
        try:
            code = self._controller.code
            defaults = self._controller.engine.default_resources
            applications = [await stored(code, app, keys, defaults) for app in request.applications]
            number = await self._controller.request(
                ev.DeployRequested(applications=tuple(applications), source="a program")
            )
        finally:
            self._controller.code.unpin(keys)
        return Accepted(number)

    async def _submit(self, request: ConfigRequest) -> Accepted:
        return Accepted(await self._controller.request(_submitted(request)))

    async def _releases(self) -> Releases:
        failed = {
            name: app.release
            for name, app in sorted(self._controller.state.applications.items())
            if app.failure and not app.deleting
        }
        outcomes = self._controller.state.outcomes
        return Releases(releases.told(await self._records(), failed, outcomes))

    async def _records(self) -> list[releases.Record]:
        """What is kept and counts; one that was written last and refused after does not."""
        latest = self._controller.state.release
        return [each for each in await self._controller.releases.read() if each.number <= latest]

    async def _rollback(self, request: RollbackRequest) -> Accepted:
        records, state = await self._records(), self._controller.state
        # Whoever lost the answer asks again, also another controller than the one that saved it.
        if (made := releases.made_for(records, request.request_id)) is not None:
            return Accepted(made)
        if request.number:
            record = releases.to_go_back_to(records, request.number)
        else:
            record = releases.before_present(
                records, state.outcomes, _declared(state), state.target_capacity
            )
        code, keys = self._controller.code, record.code_keys()
        # A release that drops out of those that are kept must not take the code along meanwhile.
        code.pin(keys)
        try:
            if not all(code.has(key) for key in keys):
                raise ReleaseError(
                    f"The code of release {record.number}, which a program deployed, is not kept "
                    "any more: run the program again."
                )
            return Accepted(
                await self._controller.request(releases.again(record, request.request_id))
            )
        finally:
            code.unpin(keys)

    async def _plan(self, request: ConfigRequest) -> Plan:
        return await planned(self._controller, _submitted(request), self._measure)

    async def _configs(self) -> Configs:
        found = sorted(_declared(self._controller.state).items())
        return Configs({name: each.given for name, each in found})

    async def _delete(self, request: DeleteRequest) -> None:
        await self._controller.request(ev.DeleteRequested(names=request.names))

    async def _shutdown(self, _body: bytes) -> bytes:
        await self._controller.request(ev.ShutdownRequested())
        return b""

    async def _watch(self, _body: bytes) -> AsyncIterator[bytes]:
        controller = self._controller
        await controller.ready.wait()
        changed = controller.watch()
        told = None
        try:
            while True:
                changed.clear()
                status = await self.status()
                if status != told:
                    told = status
                    yield pack(status)
                await changed.wait()
                # With thousands of replicas it takes long to tell: who watches must not be what
                # the controller does all day.
                if self._report_s > QUICK_REPORT_S:
                    await asyncio.sleep(self._report_s / WATCHING_SHARE)
        finally:
            controller.unwatch(changed)

    async def _story(self, request: StoryRequest) -> Story:
        wanted = ReplicaID(request.replica_id)
        controller = self._controller
        replica = story_of(controller.state, wanted)
        lines = [] if replica is None else [f"{wanted} is {replica.state}", story(replica)]
        lines += [
            f"  [event {event.event_id}] {event}"
            for event in await controller.log.find(
                lambda event: getattr(event, "replica_id", None) == wanted
            )
        ]
        if not lines:
            raise EngineError(
                f"Nothing is known of replica {wanted}. `remora status --json` names those that "
                "live; of those that are gone the last few are remembered."
            )
        return Story("\n".join(lines))

    async def _snapshot_version(self, body: bytes) -> bytes:
        return pack(SnapshotVersion(self._controller.publisher.version))

    async def _health(self) -> ControllerHealth:
        return self._controller.health(self._measure(os.getpid()))

    async def _metrics(self, request: MetricsRequest) -> MetricsReport:
        return MetricsReport(tuple(await self._controller.metrics.read(request.subscriber)))


def _declared(state: ControllerState) -> dict[str, DeclaredApplication]:
    """List what is declared now."""
    return {
        name: app.declared
        for name, app in state.applications.items()
        if app.declared is not None and not app.deleting
    }


def _trouble(process: SystemProcess) -> str:
    """Say that a process does not stay; empty: it does."""
    if process.crashes < MANY_CRASHES:
        return ""
    return (
        f"{process.name} has ended {in_a_row(process.crashes)}, each time soon after its start, and is "
        "started again with pauses; its log says why"
    )


def _view(process: SystemProcess, leaving: Collection[NodeID]) -> ProcessView:
    status = "HEALTHY" if process.pid else "STARTING"
    if process.crashes >= MANY_CRASHES:
        status = "UNHEALTHY"
    return ProcessView(
        name=process.name,
        pid=process.pid,
        status="DRAINING" if process.node_id in leaving else status,
        restarts=process.restarts,
        node_id=process.node_id,
    )


def _submitted(request: ConfigRequest) -> ev.ConfigSubmitted:
    return ev.ConfigSubmitted(
        applications=request.applications,
        target_capacity=request.target_capacity,
        source=request.source,
    )
