"""What each event changes in the state: facts are taken in, nothing is decided here.

Rules: pure. An event about a replica that is gone, or that comes too late for its state,
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from remora.core import declared, health, rebuild
from remora.core import events as ev
from remora.core.actions import KillProcess
from remora.core.deploy import deploy_application
from remora.core.draft import STOP_AT_LEAST_S, STOP_UNREADY_S, Draft
from remora.core.goal import in_effect
from remora.core.outcomes import settled
from remora.core.replica_state import STAYING, Cause, ReplicaState
from remora.core.scale import set_scale, take_capacity
from remora.core.setbacks import count_failure, note_crash, note_failure, note_loss
from remora.core.state import Activity, Deployment, NodeView
from remora.types import DeploymentID, ReplicaID, Seconds

#: A restarted controller waits this long for the replicas that it knows before it tells
#: routers anything: a replica answers within a loop turn unless it is stuck.
HOLD_SNAPSHOT_S: Seconds = 5.0
#: After a broken connection the process is probably gone, and its exit about to be reported.
RETRY_CALL_S: Seconds = 0.5


def apply_event(draft: Draft, event: ev.AnyEvent) -> None:
    """Change the state as `event` says."""
    draft.event_id = event.event_id
    draft.state.last_event_id = max(draft.state.last_event_id, event.event_id)
    _HANDLERS[type(event)](draft, event)
    draft.event_id = 0


# ------------------------------------------------------------------------- the controller itself


def _controller_started(draft: Draft, event: ev.ControllerStarted) -> None:
    state = draft.state
    state.unix_offset_s = event.unix_s - draft.now
    state.salt = state.salt or event.salt
    state.fixed_nodes = event.fixed_nodes
    if event.new_instance:
        # A shutdown was asked of the instance before this one, and that has ended.
        state.shutting_down = False
    if event.forget:
        state.applications.clear()
        state.submission = None
        state.outcomes = settled(state.outcomes)
    for _, _, replica in state.replicas():
        replica_id = replica.replica_id
        # Times of another process's clock mean nothing here.
        draft.update(replica_id, since_s=draft.now)
        if replica.state is ReplicaState.RUNNING:
            draft.move(replica_id, Cause.CONTROLLER_RESTARTED)
        # Whether the engine ever got a start that was asked for, its inventory will tell.
        call = "start" if replica.state is ReplicaState.PENDING else ""
        state.activity[replica_id] = Activity(found=True, call=call, health_checked_s=draft.now)
    draft.mark_all()
    declared.ask_for_builds(draft)
    state.is_rebuilding = event.rebuild
    waits = bool(state.activity) or event.rebuild
    state.inventory_complete = not waits
    state.hold_snapshot_until_s = draft.now + HOLD_SNAPSHOT_S if waits else None


def _inventory_complete(draft: Draft, _event: ev.InventoryComplete) -> None:
    complete_inventory(draft)


def complete_inventory(draft: Draft) -> None:
    """Part with the replicas that were known before and that no longer exist."""
    if draft.state.inventory_complete:
        return
    draft.state.inventory_complete = True
    draft.mark_all()
    for _, _, replica in draft.state.replicas():
        activity = draft.activity(replica.replica_id)
        if activity.found and not activity.reported:
            draft.move(replica.replica_id, Cause.GONE, "not there after a controller restart")


# ------------------------------------------------------------------------------------- requests


def _deploy_requested(draft: Draft, event: ev.DeployRequested) -> None:
    draft.state.release += 1
    declared.forget(draft, frozenset(request.name for request in event.applications))
    for request in event.applications:
        app = deploy_application(draft, request)
        app.release = draft.state.release
        app.declared = None


def _delete_requested(draft: Draft, event: ev.DeleteRequested) -> None:
    declared.forget(draft, frozenset(event.names))
    found = [app for name in event.names if (app := draft.application(name)) is not None]
    if any(not app.deleting for app in found):
        draft.state.release += 1
    for app in found:
        declared.delete(draft, app)


def config_submitted(draft: Draft, event: ev.ConfigSubmitted) -> None:
    """Begin to import what a config declares; its share of capacity counts at once."""
    declared.config_submitted(draft, event)
    _capacity_requested(draft, ev.CapacityRequested(percent=event.target_capacity))


def _scale_requested(draft: Draft, event: ev.ScaleRequested) -> None:
    where = DeploymentID(event.deployment, event.app_name)
    deployment = draft.deployment(where)
    if deployment is not None and set_scale(deployment, event.num_replicas):
        draft.mark(where)


def _capacity_requested(draft: Draft, event: ev.CapacityRequested) -> None:
    before = draft.state.target_capacity
    if event.percent == before:
        return
    draft.state.target_capacity = event.percent
    # No share given is all of it, so whoever then gives one lowers it.
    draft.state.capacity_grows = event.percent is not None and event.percent > (
        100.0 if before is None else before
    )
    for name, app in draft.state.applications.items():
        for each in list(app.deployments):
            deployment = draft.deployment(DeploymentID(each, name))
            assert deployment is not None
            take_capacity(draft.state, deployment)
    draft.mark_all()


def _scale_decided(draft: Draft, event: ev.ScaleDecided) -> None:
    where = DeploymentID(event.deployment, event.app_name)
    app, deployment = draft.application(where.app_name), draft.deployment(where)
    if app is None or deployment is None or app.deleting or deployment.removed:
        return
    # It was decided for an earlier target: the options may have changed meanwhile.
    if in_effect(deployment).config.autoscaling_config is not None:
        set_scale(deployment, event.record.after)
        # What is fallen back on may have another number now although the failed one has not.
        draft.mark(where)


def _shutdown_requested(draft: Draft, _event: ev.ShutdownRequested) -> None:
    draft.state.shutting_down = True
    declared.give_up(draft)
    names = tuple(draft.state.applications)
    _delete_requested(draft, ev.DeleteRequested(names=names))


# -------------------------------------------------------------------------------------- the engine


def _process_started(draft: Draft, event: ev.ProcessStarted) -> None:
    found = draft.find(event.replica_id)
    if found is None and draft.state.is_rebuilding:
        rebuild.ask(draft, event)
        return
    if found is None:
        # Cancelled before it came up, or of a state that was lost.
        draft.actions.append(KillProcess(event.replica_id))
        return
    _, replica = found
    started = replica.started_at_unix_s or draft.unix_s
    draft.update(
        event.replica_id,
        address=event.address,
        pid=event.pid,
        node_id=event.node_id,
        started_at_unix_s=started,
    )
    draft.note(event.replica_id, reported=True)
    if replica.state is ReplicaState.PENDING:
        draft.move(event.replica_id, Cause.PROCESS_STARTED)


def _process_preparing(draft: Draft, event: ev.ProcessPreparing) -> None:
    if draft.find(event.replica_id) is None:
        draft.actions.append(KillProcess(event.replica_id))
    elif _in_state(draft, event.replica_id, ReplicaState.PENDING):
        draft.note(event.replica_id, preparing=event.what, reported=True)


def _process_exited(draft: Draft, event: ev.ProcessExited) -> None:
    told = len(draft.losses)
    _lose_process(draft, event)
    if event.expected:
        # The whole instance may be ending, the replicas first: that is no death to warn of.
        del draft.losses[told:]


def _lose_process(draft: Draft, event: ev.ProcessExited) -> None:
    found = draft.find(event.replica_id)
    if found is None:
        rebuild.forget(draft, event.replica_id)
        return
    deployment, replica = found
    app = draft.app_of(event.replica_id)
    draft.move(event.replica_id, Cause.GONE, event.reason)
    died = f"Replica {event.replica_id} died: {event.reason}"
    if replica.state not in STAYING:
        if replica.state is ReplicaState.DRAINING:
            note_loss(draft, app.name, deployment, replica, died, was_leaving=True)
        return
    if event.refused and not replica.was_ready:
        # Nothing is wrong with the replica: it is started elsewhere, at once.
        return
    if replica.was_ready:
        note_crash(draft, app.name, deployment, replica, died)
    else:
        note_failure(
            draft,
            app.name,
            deployment,
            replica,
            f"The process of replica {event.replica_id} ended before it was ready: {event.reason}",
        )


def _node_joined(draft: Draft, event: ev.NodeJoined) -> None:
    draft.state.nodes[event.node_id] = NodeView(
        event.resources, labels=event.labels, host=event.host, role=event.role
    )
    draft.nodes_changed()


def _node_refused(draft: Draft, event: ev.NodeRefused) -> None:
    known = draft.state.nodes.get(event.node_id)
    draft.state.nodes[event.node_id] = NodeView(
        event.resources,
        labels=event.labels,
        host=event.host,
        role=event.role,
        draining=known is not None and known.draining,
        closing=known is not None and known.closing,
        refusal=event.reason,
        is_joining=event.is_joining,
    )
    draft.nodes_changed()


def _node_draining(draft: Draft, event: ev.NodeDraining) -> None:
    if node := draft.state.nodes.get(event.node_id):
        draft.state.nodes[event.node_id] = msgspec.structs.replace(node, draining=True)
        draft.nodes_changed()


def _node_lost(draft: Draft, event: ev.NodeLost) -> None:
    draft.state.nodes.pop(event.node_id, None)
    draft.nodes_changed()


def _doors_changed(draft: Draft, event: ev.DoorsChanged) -> None:
    if node := draft.state.nodes.get(event.node_id):
        # Replicas may come there all the same.
        draft.state.nodes[event.node_id] = msgspec.structs.replace(node, closing=event.closing)


# ------------------------------------------------------------------------------------ replicas


def _in_state(draft: Draft, replica_id: ReplicaID, state: ReplicaState) -> Deployment | None:
    found = draft.find(replica_id)
    return found[0] if found and found[1].state is state else None


def _replica_ready(draft: Draft, event: ev.ReplicaReady) -> None:
    deployment = _in_state(draft, event.replica_id, ReplicaState.STARTING)
    if deployment is None:
        return
    replica = draft.move(event.replica_id, Cause.READY)
    period_s = deployment.target.config.health_check_period_s
    checked_s = health.first_checked_s(event.replica_id, period_s, draft.now)
    draft.note(event.replica_id, health_checked_s=checked_s, health_failures=0, found=False)
    app = draft.app_of(event.replica_id)
    if deployment.name == app.ingress:
        app.docs_path = event.docs_path
    if replica.version == deployment.target.version:
        deployment.failures = 0
        if not deployment.crashes:
            deployment.last_failure = ""


def _replica_start_failed(draft: Draft, event: ev.ReplicaStartFailed) -> None:
    deployment = _in_state(draft, event.replica_id, ReplicaState.STARTING)
    if deployment is None:
        return
    app = draft.app_of(event.replica_id)
    replica = deployment.replicas[event.replica_id]
    draft.stop(event.replica_id, Cause.START_FAILED, STOP_UNREADY_S, event.traceback)
    note_failure(draft, app.name, deployment, replica, event.traceback)


def _health_checked(draft: Draft, event: ev.HealthChecked) -> None:
    deployment = _in_state(draft, event.replica_id, ReplicaState.RUNNING)
    if deployment is None or not draft.answered(event.replica_id, "check_health"):
        return
    activity = draft.activity(event.replica_id)
    draft.state.activity[event.replica_id] = health.record(
        activity, draft.now, error=event.error, timed_out=event.timed_out
    )


def _reconfigured(draft: Draft, event: ev.Reconfigured) -> None:
    deployment = _in_state(draft, event.replica_id, ReplicaState.RUNNING)
    if deployment is None or not draft.answered(event.replica_id, "reconfigure"):
        return
    if not event.error:
        # Ranks do not change while somebody is being told.
        draft.update(event.replica_id, config_key=event.config_key, ranks_told=True)
        return
    # It is in an unknown condition, and yet it answers: it stays until another one is ready.
    draft.update(event.replica_id, broken=f"reconfigure failed: {event.error}")
    if event.config_key == deployment.target.config_key:
        app = draft.app_of(event.replica_id)
        # It lives, so it is no loss yet.
        count_failure(draft, app.name, deployment, event.error)


def _replica_idle(draft: Draft, event: ev.ReplicaIdle) -> None:
    if _in_state(draft, event.replica_id, ReplicaState.DRAINING):
        end_drain(draft, event.replica_id, Cause.IDLE, "")


def end_drain(draft: Draft, replica_id: ReplicaID, cause: Cause, detail: str) -> None:
    """Ask a drained replica to end, within what is left of its time."""
    found = draft.find(replica_id)
    if found is None:
        return
    deployment, replica = found
    timeout_s = deployment.target.config.graceful_shutdown_timeout_s
    left_s = timeout_s - (draft.now - replica.since_s)
    draft.stop(replica_id, cause, max(left_s, min(STOP_AT_LEAST_S, timeout_s)), detail)


def _call_lost(draft: Draft, event: ev.CallLost) -> None:
    if draft.find(event.replica_id) is None or not draft.answered(event.replica_id, event.call):
        return
    activity = draft.note(event.replica_id, not_before_s=draft.now + RETRY_CALL_S)
    if event.call == "check_health":
        draft.state.activity[event.replica_id] = health.record(
            activity, draft.now, error=event.reason or "connection lost", timed_out=False
        )


def _routers_acked(draft: Draft, event: ev.RoutersAcked) -> None:
    draft.state.acked_version = max(draft.state.acked_version, event.version)
    draft.mark(*(at for at, attention in draft.state.attention.items() if attention.is_draining))


_HANDLERS: dict[type[ev.Event], Callable[[Draft, Any], None]] = {
    ev.ControllerStarted: _controller_started,
    ev.InventoryComplete: _inventory_complete,
    ev.DeployRequested: _deploy_requested,
    ev.ConfigSubmitted: config_submitted,
    ev.ApplicationBuilt: declared.application_built,
    ev.ApplicationNotBuilt: declared.application_not_built,
    ev.DeleteRequested: _delete_requested,
    ev.ShutdownRequested: _shutdown_requested,
    ev.ScaleRequested: _scale_requested,
    ev.CapacityRequested: _capacity_requested,
    ev.ScaleDecided: _scale_decided,
    ev.ProcessStarted: _process_started,
    ev.ProcessPreparing: _process_preparing,
    ev.ProcessExited: _process_exited,
    ev.NodeJoined: _node_joined,
    ev.NodeRefused: _node_refused,
    ev.NodeDraining: _node_draining,
    ev.NodeLost: _node_lost,
    ev.DoorsChanged: _doors_changed,
    ev.ReplicaReady: _replica_ready,
    ev.ReplicaStartFailed: _replica_start_failed,
    ev.ReplicaDescribed: rebuild.take_in,
    ev.HealthChecked: _health_checked,
    ev.Reconfigured: _reconfigured,
    ev.ReplicaIdle: _replica_idle,
    ev.CallLost: _call_lost,
    ev.RoutersAcked: _routers_acked,
}
