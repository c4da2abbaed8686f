"""What each event changes in the state: facts are taken in, nothing is decided here.

Rules: pure. An event about a replica that is gone, or that comes too late for its state,
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from remora.core import events as ev
from remora.core import health, restart
from remora.core.actions import KillProcess
from remora.core.replica_state import STAYING, Cause, ReplicaState
from remora.core.state import (
    Activity,
    Application,
    Deployment,
    NodeView,
    Target,
    make_target,
)
from remora.core.workspace import STOP_AT_LEAST_S, STOP_UNREADY_S, Workspace
from remora.types import ReplicaID, Seconds

#: A restarted controller waits this long for the replicas that it knows before it tells
#: routers anything: a replica answers within a loop turn unless it is stuck.
HOLD_SNAPSHOT_S: Seconds = 5.0
#: After a broken connection the process is probably gone, and its exit about to be reported.
RETRY_CALL_S: Seconds = 0.5


def take_in(work: Workspace, event: ev.AnyEvent) -> None:
    """Change the state as `event` says."""
    work.event_id = event.event_id
    work.state.last_event_id = max(work.state.last_event_id, event.event_id)
    _HANDLERS[type(event)](work, event)
    work.event_id = 0


# ------------------------------------------------------------------------- the controller itself


def _controller_started(work: Workspace, event: ev.ControllerStarted) -> None:
    state = work.state
    state.unix_offset_s = event.unix_s - work.now
    state.salt = state.salt or event.salt
    if event.new_instance:
        # A shutdown was asked of the instance before this one, and that has ended.
        state.shutting_down = False
    if event.forget:
        state.applications.clear()
    for _, _, replica in state.replicas():
        replica_id = replica.replica_id
        # Times of another process's clock mean nothing here.
        work.update(replica_id, since_s=work.now)
        if replica.state is ReplicaState.RUNNING:
            work.move(replica_id, Cause.CONTROLLER_RESTARTED)
        # Whether the engine ever got a start that was asked for, its inventory will tell.
        call = "start" if replica.state is ReplicaState.PENDING else ""
        state.activity[replica_id] = Activity(found=True, call=call, health_checked_s=work.now)
    state.inventory_complete = not state.activity
    state.hold_snapshot_until_s = work.now + HOLD_SNAPSHOT_S if state.activity else None


def _inventory_complete(work: Workspace, _event: ev.InventoryComplete) -> None:
    complete_inventory(work)


def complete_inventory(work: Workspace) -> None:
    """Part with the replicas that were known before and that no longer exist."""
    if work.state.inventory_complete:
        return
    work.state.inventory_complete = True
    for _, _, replica in work.state.replicas():
        activity = work.activity(replica.replica_id)
        if activity.found and not activity.reported:
            work.move(replica.replica_id, Cause.GONE, "not there after a controller restart")


# ------------------------------------------------------------------------------------- requests


def _deploy_requested(work: Workspace, event: ev.DeployRequested) -> None:
    for request in event.applications:
        _deploy_application(work, request)


def _deploy_application(work: Workspace, request: ev.ApplicationRequest) -> None:
    app = work.state.applications.get(request.name)
    if app is None:
        app = Application(
            name=request.name,
            route_prefix=request.route_prefix,
            ingress=request.ingress,
            revision=0,
            last_deployed_unix_s=work.unix_s,
        )
        work.state.applications[request.name] = app
    app.route_prefix = request.route_prefix
    app.ingress = request.ingress
    app.revision += 1
    app.last_deployed_unix_s = work.unix_s
    app.deleting = False
    for name, deployment in app.deployments.items():
        deployment.removed = all(wanted.name != name for wanted in request.deployments)
    for wanted in request.deployments:
        target = make_target(
            code_key=wanted.code_key,
            code_version=wanted.code_version,
            config=wanted.config,
            surroundings=request.surroundings,
            route_prefix=request.route_prefix or "",
            ingress=wanted.name == request.ingress,
            revision=app.revision,
        )
        found = app.deployments.get(wanted.name)
        if found is None:
            app.deployments[wanted.name] = Deployment(name=wanted.name, target=target)
        else:
            _retarget(found, target)
            # Whoever deploys again wants to see a try now.
            work.pace(app.name, found, retry_at_s=work.now, crashes_s=())


def _retarget(deployment: Deployment, target: Target) -> None:
    old = deployment.target
    deployment.target = target
    deployment.failures = 0
    deployment.last_failure = ""
    same = (old.version, old.config_key) == (target.version, target.config_key)
    grows_by = target.config.num_replicas - old.config.num_replicas
    if same and not grows_by:
        return
    if same:
        deployment.change = "scale_up" if grows_by > 0 else "scale_down"
    else:
        runs = any(
            replica.version == old.version for replica in deployment.in_state(ReplicaState.RUNNING)
        )
        # A target of which nothing ever ran is nothing to fall back on.
        if deployment.worked or runs:
            deployment.previous = old
        deployment.change = "deploy"
        deployment.worked = False
    deployment.completed = False


def _delete_requested(work: Workspace, event: ev.DeleteRequested) -> None:
    for name in event.names:
        if app := work.state.applications.get(name):
            app.deleting = True


def _shutdown_requested(work: Workspace, _event: ev.ShutdownRequested) -> None:
    work.state.shutting_down = True
    for app in work.state.applications.values():
        app.deleting = True


# -------------------------------------------------------------------------------------- the engine


def _process_started(work: Workspace, event: ev.ProcessStarted) -> None:
    found = work.find(event.replica_id)
    if found is None:
        # Cancelled before it came up, or of a state that was lost.
        work.actions.append(KillProcess(event.replica_id))
        return
    _, replica = found
    started = replica.started_at_unix_s or work.unix_s
    work.update(
        event.replica_id,
        address=event.address,
        pid=event.pid,
        node_id=event.node_id,
        started_at_unix_s=started,
    )
    work.note(event.replica_id, reported=True)
    if replica.state is ReplicaState.PENDING:
        work.move(event.replica_id, Cause.PROCESS_STARTED)


def _process_exited(work: Workspace, event: ev.ProcessExited) -> None:
    found = work.find(event.replica_id)
    if found is None:
        return
    deployment, replica = found
    app = work.app_of(event.replica_id)
    work.move(event.replica_id, Cause.GONE, event.reason)
    if replica.state not in STAYING:
        return
    if replica.was_ready:
        note_crash(work, app.name, deployment, f"Replica {event.replica_id} died: {event.reason}")
    else:
        note_failure(
            work,
            app.name,
            deployment,
            replica.version,
            f"The process of replica {event.replica_id} ended before it was ready: {event.reason}",
        )


def note_crash(work: Workspace, app: str, deployment: Deployment, message: str) -> None:
    """Remember that a working replica was lost, and when the next may start."""
    crashes, retry_at_s = restart.after_crash(work.pacing(app, deployment).crashes_s, work.now)
    work.pace(app, deployment, crashes_s=crashes, retry_at_s=retry_at_s, last_crash=message)


def note_failure(
    work: Workspace, app: str, deployment: Deployment, version: str, message: str
) -> None:
    """Remember that a replica did not come up, and when the next may start."""
    if version != deployment.target.version:
        # What was fallen back on; it worked before, so its failures are crashes.
        note_crash(work, app, deployment, message)
        return
    deployment.failures += 1
    deployment.last_failure = message
    work.pace(app, deployment, retry_at_s=work.now + restart.delay_s(deployment.failures))


def _node_joined(work: Workspace, event: ev.NodeJoined) -> None:
    work.state.nodes[event.node_id] = NodeView(event.resources)


def _node_draining(work: Workspace, event: ev.NodeDraining) -> None:
    if node := work.state.nodes.get(event.node_id):
        work.state.nodes[event.node_id] = msgspec.structs.replace(node, draining=True)


def _node_lost(work: Workspace, event: ev.NodeLost) -> None:
    work.state.nodes.pop(event.node_id, None)


# ------------------------------------------------------------------------------------ replicas


def _in_state(work: Workspace, replica_id: ReplicaID, state: ReplicaState) -> Deployment | None:
    found = work.find(replica_id)
    return found[0] if found and found[1].state is state else None


def _replica_ready(work: Workspace, event: ev.ReplicaReady) -> None:
    deployment = _in_state(work, event.replica_id, ReplicaState.STARTING)
    if deployment is None:
        return
    replica = work.move(event.replica_id, Cause.READY)
    work.note(event.replica_id, health_checked_s=work.now, health_failures=0, found=False)
    app = work.app_of(event.replica_id)
    if deployment.name == app.ingress:
        app.docs_path = event.docs_path
    if replica.version == deployment.target.version:
        deployment.failures = 0
        deployment.last_failure = ""


def _replica_start_failed(work: Workspace, event: ev.ReplicaStartFailed) -> None:
    deployment = _in_state(work, event.replica_id, ReplicaState.STARTING)
    if deployment is None:
        return
    app = work.app_of(event.replica_id)
    version = deployment.replicas[event.replica_id].version
    work.stop(event.replica_id, Cause.START_FAILED, STOP_UNREADY_S, event.traceback)
    note_failure(work, app.name, deployment, version, event.traceback)


def _health_checked(work: Workspace, event: ev.HealthChecked) -> None:
    deployment = _in_state(work, event.replica_id, ReplicaState.RUNNING)
    if deployment is None or not work.answered(event.replica_id, "check_health"):
        return
    activity = work.activity(event.replica_id)
    work.state.activity[event.replica_id] = health.record(
        activity, work.now, error=event.error, timed_out=event.timed_out
    )


def _reconfigured(work: Workspace, event: ev.Reconfigured) -> None:
    deployment = _in_state(work, event.replica_id, ReplicaState.RUNNING)
    if deployment is None or not work.answered(event.replica_id, "reconfigure"):
        return
    if not event.error:
        work.update(event.replica_id, config_key=event.config_key)
        return
    # It is in an unknown condition, and yet it answers: it stays until another one is ready.
    work.update(event.replica_id, broken=f"reconfigure failed: {event.error}")
    if event.config_key == deployment.target.config_key:
        app = work.app_of(event.replica_id)
        note_failure(work, app.name, deployment, deployment.target.version, event.error)


def _replica_idle(work: Workspace, event: ev.ReplicaIdle) -> None:
    if _in_state(work, event.replica_id, ReplicaState.DRAINING):
        end_drain(work, event.replica_id, Cause.IDLE, "")


def end_drain(work: Workspace, replica_id: ReplicaID, cause: Cause, detail: str) -> None:
    """Ask a drained replica to end, within what is left of its time."""
    found = work.find(replica_id)
    if found is None:
        return
    deployment, replica = found
    timeout_s = deployment.target.config.graceful_shutdown_timeout_s
    left_s = timeout_s - (work.now - replica.since_s)
    work.stop(replica_id, cause, max(left_s, min(STOP_AT_LEAST_S, timeout_s)), detail)


def _call_lost(work: Workspace, event: ev.CallLost) -> None:
    if work.find(event.replica_id) is None or not work.answered(event.replica_id, event.call):
        return
    activity = work.note(event.replica_id, not_before_s=work.now + RETRY_CALL_S)
    if event.call == "check_health":
        work.state.activity[event.replica_id] = health.record(
            activity, work.now, error=event.reason or "connection lost", timed_out=False
        )


def _routers_acked(work: Workspace, event: ev.RoutersAcked) -> None:
    work.state.acked_version = max(work.state.acked_version, event.version)


_HANDLERS: dict[type[ev.Event], Callable[[Workspace, Any], None]] = {
    ev.ControllerStarted: _controller_started,
    ev.InventoryComplete: _inventory_complete,
    ev.DeployRequested: _deploy_requested,
    ev.DeleteRequested: _delete_requested,
    ev.ShutdownRequested: _shutdown_requested,
    ev.ProcessStarted: _process_started,
    ev.ProcessExited: _process_exited,
    ev.NodeJoined: _node_joined,
    ev.NodeDraining: _node_draining,
    ev.NodeLost: _node_lost,
    ev.ReplicaReady: _replica_ready,
    ev.ReplicaStartFailed: _replica_start_failed,
    ev.HealthChecked: _health_checked,
    ev.Reconfigured: _reconfigured,
    ev.ReplicaIdle: _replica_idle,
    ev.CallLost: _call_lost,
    ev.RoutersAcked: _routers_acked,
}
