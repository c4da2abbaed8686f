"""What routers get to see of the state.

Rules: pure. Only RUNNING replicas; an application that is being deleted has no route any more.
"""

from __future__ import annotations

from remora.core import restart
from remora.core.goal import has_failed
from remora.core.replica_state import ROUTABLE
from remora.core.snapshot import AppRoute, DeploymentRoute, ReplicaRoute, Snapshot
from remora.core.state import Application, ControllerState, Deployment
from remora.types import DeploymentID


def routing_snapshot(state: ControllerState) -> Snapshot:
    """Make the routing snapshot of a state. Pure."""
    apps = {
        app.name: AppRoute(app.name, app.route_prefix, app.ingress)
        for app in state.applications.values()
        if not app.deleting
    }
    deployments = {
        DeploymentID(deployment.name, app.name): route
        for app in state.applications.values()
        for deployment in app.deployments.values()
        if (route := _route(app, deployment)) is not None
    }
    leaving = {
        app.route_prefix: app.name
        for app in state.applications.values()
        if app.deleting and app.route_prefix
    }
    return Snapshot(state.snapshot_version, apps, deployments, leaving, state.shutting_down)


def _route(app: Application, deployment: Deployment) -> DeploymentRoute | None:
    replicas = tuple(
        ReplicaRoute(replica.replica_id, replica.address, replica.node_id)
        for replica in deployment.in_state(*ROUTABLE)
    )
    # Callees of an application that goes stay reachable for as long as they run.
    if not replicas and (app.deleting or deployment.removed):
        return None
    config = deployment.target.config
    return DeploymentRoute(
        replicas=replicas,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        idempotent=config.idempotent,
        backpressure_status=config.backpressure_config.status_code,
        backpressure_retry_after_s=config.backpressure_config.retry_after_s,
        policy=config.policy,
        unavailable="" if replicas else why_unavailable(deployment),
    )


def why_unavailable(deployment: Deployment) -> str:
    """Say why no replica will come for now; empty: one is coming. Pure."""
    config = deployment.target.config
    limit = restart.max_attempts(config.max_constructor_retry_count, config.num_replicas)
    if deployment.failures < limit:
        return ""
    if has_failed(deployment) and deployment.previous is None:
        return f"it failed to start {restart.in_a_row(deployment.failures)}; see `remora status`"
    if deployment.worked:
        return (
            f"it failed to start {restart.in_a_row(deployment.failures)} and is tried again every "
            f"{restart.MAX_DELAY_S:g} s at the latest; see `remora status`"
        )
    return ""
