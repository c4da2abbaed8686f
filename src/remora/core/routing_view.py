"""What routers get to see of the state.

A step works out anew only what it touched: with a thousand deployments all of it takes too long
for a tick.

Rules: pure. Only RUNNING replicas; an application that is being deleted has no route any more.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from remora.core import restart
from remora.core.draft import Draft
from remora.core.goal import has_failed
from remora.core.labels import zone_of
from remora.core.replica_state import ROUTABLE, ReplicaState
from remora.core.scale import attempts_for
from remora.core.snapshot import AppRoute, DeploymentRoute, ReplicaRoute, Snapshot
from remora.core.state import Application, ControllerState, Deployment
from remora.types import DeploymentID, NodeID

K = TypeVar("K")
V = TypeVar("V")


def routing_snapshot(state: ControllerState) -> Snapshot:
    """Make the routing snapshot of a state, all of it. Pure."""
    apps = {
        name: found for name in state.applications if (found := _find_app(state, name)) is not None
    }
    deployments = {
        DeploymentID(deployment.name, app.name): route
        for app in state.applications.values()
        for deployment in app.deployments.values()
        if (route := _route(state, app, deployment)) is not None
    }
    return Snapshot(
        state.snapshot_version,
        apps,
        deployments,
        _leaving(state),
        state.shutting_down,
        _draining(state),
    )


def publish_routing(draft: Draft) -> None:
    """Give the snapshot a new version when what a step touched changed it, and note who left."""
    state, known = draft.state, draft.state.routing
    apps = _changed(known.apps, {name: _find_app(state, name) for name in draft.touched_apps})
    deployments = _changed(
        known.deployments, {where: _find_route(state, where) for where in draft.touched}
    )
    leaving = _leaving(state) if draft.touched_apps else known.leaving
    found = Snapshot(
        known.version, apps, deployments, leaving, state.shutting_down, _draining(state)
    )
    if not _is_same(known, found):
        state.snapshot_version += 1
        state.routing = msgspec.structs.replace(found, version=state.snapshot_version)
    for where in draft.touched:
        _note_departures(draft, where)


def _is_same(known: Snapshot, found: Snapshot) -> bool:
    # The large ones are the same object when nothing in them differs.
    return (
        found.apps is known.apps
        and found.deployments is known.deployments
        and found.leaving == known.leaving
        and found.ending == known.ending
        and found.draining == known.draining
    )


def _note_departures(draft: Draft, where: DeploymentID) -> None:
    """Remember of replicas that drain which snapshot was the first without them."""
    deployment = _find_deployment(draft.state, where)
    for replica in deployment.in_state(ReplicaState.DRAINING) if deployment else ():
        if draft.activity(replica.replica_id).left_at_version is None:
            draft.note(replica.replica_id, left_at_version=draft.state.snapshot_version)


def _changed(known: dict[K, V], found: dict[K, V | None]) -> dict[K, V]:
    """Put what was found in its place; the same object when nothing differs."""
    changes = {key: value for key, value in found.items() if known.get(key) != value}
    if not changes:
        return known
    merged = dict(known)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _find_app(state: ControllerState, name: str) -> AppRoute | None:
    app = state.applications.get(name)
    # One whose code is being imported for the first time has nothing behind its route.
    return None if app is None or app.deleting or not app.deployments else _app_route(app)


def _find_deployment(state: ControllerState, where: DeploymentID) -> Deployment | None:
    app = state.applications.get(where.app_name)
    return app.deployments.get(where.name) if app is not None else None


def _find_route(state: ControllerState, where: DeploymentID) -> DeploymentRoute | None:
    deployment = _find_deployment(state, where)
    if deployment is None:
        return None
    return _route(state, state.applications[where.app_name], deployment)


def _app_route(app: Application) -> AppRoute:
    return AppRoute(app.name, app.route_prefix, app.ingress)


def _leaving(state: ControllerState) -> dict[str, str]:
    return {
        app.route_prefix: app.name
        for app in state.applications.values()
        if app.deleting and app.route_prefix
    }


def _draining(state: ControllerState) -> tuple[NodeID, ...]:
    return tuple(
        sorted(node_id for node_id, node in state.nodes.items() if node.draining or node.closing)
    )


def _zone(state: ControllerState, node_id: NodeID) -> str:
    node = state.nodes.get(node_id)
    return zone_of(node.labels) if node is not None else ""


def _route(
    state: ControllerState, app: Application, deployment: Deployment
) -> DeploymentRoute | None:
    replicas = tuple(
        ReplicaRoute(
            replica.replica_id,
            replica.address,
            replica.node_id,
            _zone(state, replica.node_id),
        )
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
    if has_failed(deployment) and deployment.previous is None:
        return (
            f"it failed to start {restart.in_a_row(deployment.failures)}; see `remora status`, mend "
            "the cause and deploy again"
        )
    config = deployment.target.config
    limit = restart.max_attempts(config.max_constructor_retry_count, attempts_for(deployment))
    if deployment.failures >= limit and deployment.worked:
        return (
            f"it failed to start {restart.in_a_row(deployment.failures)} and is tried again every "
            f"{restart.MAX_DELAY_S:g} s at the latest; see `remora status`"
        )
    return ""
