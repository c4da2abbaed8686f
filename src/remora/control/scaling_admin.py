"""The controller's methods about numbers of replicas (`wire/scaling.py` lists them).

Rules: asks the controller; decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from remora.control.autoscaler import Autoscaler
from remora.control.controller import Controller
from remora.control.handlers import asked, followed, told
from remora.control.scaled import KEPT_DECISIONS
from remora.core import events as ev
from remora.core.autoscale.record import ScalingRecord
from remora.core.autoscale.status import decided_by, direction
from remora.core.goal import in_effect
from remora.core.replica_state import ReplicaState
from remora.core.scale import count_of
from remora.core.state import Application, Deployment
from remora.errors import UnknownTargetError
from remora.transport.control import ControlHandler
from remora.types import DeploymentID
from remora.wire.control import ApplicationStatus, Subscription
from remora.wire.scaling import (
    CapacityRequest,
    DemandReport,
    ScaleRequest,
    ScalingDetail,
    ScalingDetails,
    ScalingRequest,
)


def scaling_handlers(controller: Controller) -> Mapping[str, ControlHandler]:
    """Make the methods of one controller, by name."""

    async def scale(request: ScaleRequest) -> None:
        await controller.request(
            ev.ScaleRequested(
                app_name=request.app_name,
                deployment=request.deployment,
                num_replicas=request.num_replicas,
            )
        )

    async def capacity(request: CapacityRequest) -> None:
        await controller.request(ev.CapacityRequested(percent=request.percent))

    async def scaling(request: ScalingRequest) -> ScalingDetails:
        found = details(controller, request)
        if request.past:
            past = await _past_decisions(controller)
            found = [_with_past(each, past) for each in found]
        return ScalingDetails(tuple(found))

    ready, autoscaler = controller.ready, controller.autoscaler
    return {
        "scale": asked(ScaleRequest, scale, ready),
        "capacity": asked(CapacityRequest, capacity, ready),
        "scaling": asked(ScalingRequest, scaling, ready),
        "report": told(DemandReport, autoscaler.report),
        "demand": followed(Subscription, autoscaler.demand),
    }


async def _past_decisions(
    controller: Controller,
) -> dict[DeploymentID, tuple[ScalingRecord, ...]]:
    """Look up in the event log what was decided, by controllers before this one too."""
    past: dict[DeploymentID, deque[ScalingRecord]] = {}
    for event in await controller.log.find(lambda event: isinstance(event, ev.ScaleDecided)):
        assert isinstance(event, ev.ScaleDecided)
        where = DeploymentID(event.deployment, event.app_name)
        past.setdefault(where, deque(maxlen=KEPT_DECISIONS)).append(event.record)
    return {where: tuple(records) for where, records in past.items()}


def _with_past(
    detail: ScalingDetail, past: Mapping[DeploymentID, tuple[ScalingRecord, ...]]
) -> ScalingDetail:
    """Put together what the log has and what is in memory: each may have what the other lost. Pure."""
    logged = past.get(DeploymentID(detail.deployment, detail.app_name), ())
    both = [*logged, *(each for each in detail.decisions if each not in logged)]
    decisions = tuple(sorted(both, key=lambda record: record.at_unix_s)[-KEPT_DECISIONS:])
    return msgspec.structs.replace(detail, decisions=decisions)


def details(controller: Controller, request: ScalingRequest) -> list[ScalingDetail]:
    """Say how the deployments that are asked about are scaled.

    Raises:
        UnknownTargetError: there is no such application or deployment.
    """
    applications = controller.state.applications
    if request.app_name is not None and request.app_name not in applications:
        known = ", ".join(sorted(applications)) or "none"
        raise UnknownTargetError(
            f"There is no application {request.app_name!r}. Applications: {known}."
        )
    found = []
    for name, app in sorted(applications.items()):
        if request.app_name not in (None, name):
            continue
        if request.deployment is not None and request.deployment not in app.deployments:
            raise UnknownTargetError(
                f"Application {name!r} has no deployment {request.deployment!r}. It has: "
                f"{', '.join(sorted(app.deployments))}."
            )
        for each, deployment in sorted(app.deployments.items()):
            if request.deployment in (None, each):
                where = DeploymentID(each, name)
                detail = controller.autoscaler.detail(where)
                found.append(detail or _plain(app, deployment))
    return found


def _plain(app: Application, deployment: Deployment) -> ScalingDetail:
    """Describe a deployment that demand does not scale, or not yet after a restart."""
    target = count_of(deployment, in_effect(deployment))
    running = len(deployment.in_state(ReplicaState.RUNNING))
    return ScalingDetail(
        app_name=app.name,
        deployment=deployment.name,
        by=decided_by(app, deployment),
        status=direction(running, target),
        target_num_replicas=target,
        running=running,
        low=target,
        high=target,
    )


def with_policy_errors(
    applications: dict[str, ApplicationStatus], autoscaler: Autoscaler
) -> dict[str, ApplicationStatus]:
    """Add to the messages of deployments what is wrong with their policies."""
    return {name: _with_errors(app, autoscaler) for name, app in applications.items()}


def _with_errors(app: ApplicationStatus, autoscaler: Autoscaler) -> ApplicationStatus:
    changed = {}
    for name, deployment in app.deployments.items():
        error = autoscaler.error(DeploymentID(name, app.name))
        if error:
            message = "\n".join(each for each in (deployment.message, error) if each)
            changed[name] = msgspec.structs.replace(deployment, message=message)
    if not changed:
        return app
    return msgspec.structs.replace(app, deployments=app.deployments | changed)
