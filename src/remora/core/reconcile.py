"""The controller's decision: from a state and what happened to a new state and what to do.

Theory of operation: take in the events, then compare what is with what should be, deployment by
deployment (`goal`, `rollout`, `placement`), then give each replica its next thing
(`lifecycle`). Every decision is made from the state alone, so a step that is repeated, late or
missed does no harm: the next one finds what is still to do. Where time matters, the step says
when it wants to be called again.

A step looks only at deployments that something happened to, or whose time has come: `draft.py`
keeps count. Looking at all of them must decide nothing else, which the property tests hold.

Rules: pure; the state that comes in stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from remora.core import gangs, losses, owned, rebuild, restart, rollback, rollout, starting
from remora.core.actions import Action, EndInstance, Reconfigure
from remora.core.apply_config import apply_config
from remora.core.deploy import deploy_application
from remora.core.draft import Draft
from remora.core.event_handlers import apply_event, complete_inventory
from remora.core.events import AnyEvent
from remora.core.goal import (
    Goal,
    comes_back,
    goal_of,
    has_failed,
    is_current,
    is_reached,
    is_replaced,
)
from remora.core.lifecycle import advance, is_forgotten
from remora.core.outcomes import note_outcomes
from remora.core.ranks import ranks_of, settled
from remora.core.replica_state import STAYING, Replica, ReplicaState
from remora.core.routing_view import publish_routing
from remora.core.state import Application, ControllerState, Deployment
from remora.types import DeploymentID, ReplicaID, Seconds

_LEAVING = (ReplicaState.DRAINING, ReplicaState.STOPPING)


@dataclass(frozen=True)
class Step:
    """What one step decided.

    Attributes:
        actions: in the order in which they are to begin.
        wake_at: when to step again even if nothing happens; None: no need.
        warnings: what people should read in the log: replicas that died, and what follows.
        touched: deployments that may differ from before; all others are the same objects.
        touched_apps: likewise applications.
    """

    state: ControllerState
    actions: tuple[Action, ...]
    wake_at: Seconds | None
    warnings: tuple[str, ...] = ()
    touched: frozenset[DeploymentID] = frozenset()
    touched_apps: frozenset[str] = frozenset()


def step(
    state: ControllerState,
    events: tuple[AnyEvent, ...],
    now: Seconds,
    *,
    look_at_all: bool = False,
) -> Step:
    """Take in `events` and decide what to do.

    Pure. Invariants: without events a second step at the same time has no actions; at most one
    call per replica is under way; replaying the events gives the same state; `look_at_all`
    changes nothing but the time it takes.
    """
    draft = Draft(state, now)
    for event in events:
        apply_event(draft, event)
    apply_config(draft)
    draft.mark_due()
    if look_at_all:
        draft.mark_all()
    _end_hold(draft)
    while draft.dirty:
        # One decision can make another one due (a crash wants a replacement, a replacement a
        # process). A replica changes its state a few times at most, so this ends.
        while draft.dirty:
            marked, draft.dirty = sorted(draft.dirty), set()
            for where in marked:
                _decide(draft, where)
        _end_hold(draft)
    publish_routing(draft)
    _end_instance(draft)
    note_outcomes(state, draft.state, draft.touched_apps)
    warnings = (*draft.warnings, *(losses.tell(loss, draft.state, now) for loss in draft.losses))
    return Step(
        draft.state,
        tuple(draft.actions),
        _wake_at(draft.state),
        warnings,
        frozenset(draft.touched),
        frozenset(draft.touched_apps),
    )


def _wake_at(state: ControllerState) -> Seconds | None:
    times = [each.due_s for each in state.attention.values() if each.due_s is not None]
    if state.hold_snapshot_until_s is not None:
        times.append(state.hold_snapshot_until_s)
    return min(times, default=None)


def _decide(draft: Draft, where: DeploymentID) -> None:
    """Decide what there is to decide for one deployment, as far as it can be seen now."""
    app = draft.application(where.app_name)
    deployment = draft.deployment(where)
    if app is None or deployment is None:
        return
    draft.begin()
    for replica in list(deployment.replicas.values()):
        advance(draft, app, deployment, replica)
    if draft.state.hold_snapshot_until_s is None:
        deployment.given_up = has_failed(deployment)
        if app.deleting:
            _take_down(draft, app)
        elif not deployment.removed:
            _reconcile_deployment(draft, app, deployment)
    _note_completion(draft, deployment)
    _tell_when_steady(draft, where, deployment)
    rollback.note_good(app)
    if (back := rollback.wanted(draft, app, deployment)) is not None:
        failure = rollback.told(app, deployment)
        failed_by, good_by = app.requested_by, app.good_by
        app = deploy_application(draft, back)
        app.failure = failure
        rollback.declare(app, failed_by, good_by)
        draft.warnings.append(f"Application {app.name!r}: {failure}")
    owned.tell_owner(draft, app, deployment)
    draft.end(where, is_draining=bool(deployment.in_state(ReplicaState.DRAINING)))
    _drop_removed(draft, app)
    _prune(draft, app)


def _end_hold(draft: Draft) -> None:
    """After a restart: wait until it is known which replicas are still there."""
    state = draft.state
    if state.hold_snapshot_until_s is None:
        return
    late = draft.now >= state.hold_snapshot_until_s
    if late:
        complete_inventory(draft)
    unanswered = any(
        replica.was_ready and replica.state is ReplicaState.STARTING
        for _, _, replica in state.replicas()
    )
    if late or (state.inventory_complete and not unanswered and not state.strangers):
        rebuild.finish(draft)
        state.hold_snapshot_until_s = None
        draft.mark_all()


# ---------------------------------------------------------------------------------- applications


def _drop_removed(draft: Draft, app: Application) -> None:
    """Let go what the new version no longer has, once nothing of the old one calls it."""
    removed = [name for name, deployment in app.deployments.items() if deployment.removed]
    if app.deleting or not removed or draft.state.hold_snapshot_until_s is not None:
        return
    staying = [deployment for deployment in app.deployments.values() if not deployment.removed]
    if all(is_replaced(deployment) for deployment in staying):
        for name in removed:
            if owned.is_used(app, app.deployments[name]):
                continue
            _empty(draft, app, name, "no longer part of the application")


def _take_down(draft: Draft, app: Application) -> None:
    """Take the ingress first: what it still works on may need the others."""
    ingress = app.deployments.get(app.ingress)
    if ingress is not None:
        _empty(draft, app, ingress.name, "the application is being deleted")
        if app.deployments[app.ingress].in_state(ReplicaState.RUNNING, ReplicaState.DRAINING):
            return
    for name in list(app.deployments):
        if owned.is_used(app, app.deployments[name]):
            continue
        _empty(draft, app, name, "the application is being deleted")


def _empty(draft: Draft, app: Application, name: str, why: str) -> None:
    if not app.deployments[name].in_state(*STAYING):
        return
    deployment = draft.deployment(DeploymentID(name, app.name))
    assert deployment is not None
    for replica in deployment.in_state(*STAYING):
        draft.let_go(deployment, replica, why)


def _note_completion(draft: Draft, deployment: Deployment) -> None:
    goal = goal_of(deployment)
    if goal.fallen_back or not is_reached(deployment, goal):
        return
    if not (deployment.completed or is_forgotten(draft, deployment)):
        return
    deployment.completed = deployment.worked = True
    deployment.reached_unix_s = deployment.reached_unix_s or draft.unix_s
    if deployment.previous is None:
        return
    youngest_s = max(
        (replica.since_s for replica in deployment.in_state(ReplicaState.RUNNING)), default=0.0
    )
    reached_s = draft.now - (draft.unix_s - deployment.reached_unix_s)
    trusted_s = min(youngest_s + restart.STABLE_S, reached_s + restart.TRUSTED_S)
    if draft.now >= trusted_s:
        deployment.previous = None
        deployment.crashes = 0
    else:
        draft.wake(trusted_s)


def _tell_when_steady(draft: Draft, where: DeploymentID, deployment: Deployment) -> None:
    """After crashes the status changes with time alone, and whoever watches it hears of steps."""
    pacing = draft.state.pacing.get(where)
    since_s = [replica.since_s for replica in deployment.in_state(ReplicaState.RUNNING)]
    if pacing is None or len(pacing.crashes_s) <= restart.FREE_CRASHES or not since_s:
        return
    if draft.now < (steady_s := max(since_s) + restart.STABLE_S):
        draft.wake(steady_s)


def _prune(draft: Draft, app: Application) -> None:
    for name, deployment in list(app.deployments.items()):
        if (app.deleting or deployment.removed) and not deployment.replicas:
            where = DeploymentID(name, app.name)
            draft.touched.add(where)
            del app.deployments[name]
            draft.state.pacing.pop(where, None)
            draft.state.attention.pop(where, None)
    if not app.deleting or app.deployments:
        return
    if comes_back(draft.state, app):
        # As new: without a route until there is something behind it.
        app.deleting, app.route_prefix = False, None
    else:
        draft.state.applications.pop(app.name, None)


# ----------------------------------------------------------------------------------- deployments


def _reconcile_deployment(draft: Draft, app: Application, deployment: Deployment) -> None:
    goal = goal_of(deployment)
    if goal.target is None:
        # Failed, with nothing to fall back on: whatever runs goes on.
        for replica in deployment.in_state(ReplicaState.PENDING, ReplicaState.STARTING):
            draft.let_go(deployment, replica, "the deploy has failed")
        return
    gangs.end_broken(draft, deployment)
    groups = gangs.groups_of(deployment)
    limits = rollout.bounds(goal.target.config, goal.count)
    members = [
        gangs.member(key, group, goal.target, draft.state.nodes) for key, group in groups.items()
    ]
    plan = rollout.plan(members, goal.count, limits, goal.before)
    for gone in (*plan.cancel, *plan.drain):
        for replica in groups[gone]:
            draft.let_go(deployment, replica, plan.reason)
    _start(draft, app, deployment, goal, plan.start)
    _settle_ranks(draft, deployment, goal)
    _reconfigure(draft, deployment, goal, limits.batch // limits.size)


def _start(draft: Draft, app: Application, deployment: Deployment, goal: Goal, count: int) -> None:
    target = goal.target
    assert target is not None
    pacing = draft.pacing(app.name, deployment)
    if count and draft.now < pacing.retry_at_s:
        draft.wake(pacing.retry_at_s)
        return
    actor = owned.awaited(app, target) if count else ""
    if actor != pacing.awaits:
        draft.pace(app.name, deployment, awaits=actor)
    if actor:
        return
    if starting.start(draft, app, deployment, target, count):
        return
    # Those that have no process yet, or none any more, will have left room by themselves.
    if deployment.in_state(ReplicaState.PENDING, ReplicaState.STARTING, *_LEAVING):
        return
    groups = gangs.groups_of(deployment)
    members = [gangs.member(key, each, target, draft.state.nodes) for key, each in groups.items()]
    # Whole gangs: one that has lost a member ends.
    old = [groups[each.replica_id] for each in members if not each.current]
    going = starting.makes_room(draft, app, deployment, target, old)
    if not going:
        # That it is not wanted any more is reason enough, where nobody knows whether it helps.
        spare = len(deployment.in_state(ReplicaState.RUNNING)) - goal.count
        going = next((each for each in old if len(each) <= spare), [])
    for replica in going:
        draft.let_go(deployment, replica, "makes room: there is none for old and new together")


def _settle_ranks(draft: Draft, deployment: Deployment, goal: Goal) -> None:
    """Close the gaps between ranks once nothing of the deployment changes any more."""
    if len(deployment.in_state(ReplicaState.RUNNING)) != len(deployment.replicas):
        return
    telling = any(draft.activity(each).call == "reconfigure" for each in deployment.replicas)
    if not telling and is_reached(deployment, goal):
        for replica_id, ranks in settled(deployment.replicas.values()).items():
            draft.update(replica_id, **ranks._asdict(), ranks_told=False)


def _reconfigure(draft: Draft, deployment: Deployment, goal: Goal, batch: int) -> None:
    """Hand new options to running replicas, some at a time, and stop when they are refused."""
    target = goal.target
    if target is None or (deployment.failures and not goal.fallen_back):
        return
    running = deployment.in_state(ReplicaState.RUNNING)
    calls = {replica.replica_id: draft.activity(replica.replica_id).call for replica in running}
    room = batch - sum(call == "reconfigure" for call in calls.values())
    for replica in running:
        if room <= 0:
            break
        current = is_current(replica, target, None)
        told = replica.config_key == target.config_key and replica.ranks_told
        if told or not current or _busy(draft, replica):
            continue
        reconfigure = Reconfigure(
            replica.replica_id,
            replica.address,
            target.config,
            target.config_key,
            ranks_of(replica),
            target.revision,
            goal.count,
        )
        draft.call(reconfigure, replica.replica_id, "reconfigure")
        room -= 1


def _busy(draft: Draft, replica: Replica) -> bool:
    activity = draft.activity(replica.replica_id)
    if draft.now < activity.not_before_s:
        draft.wake(activity.not_before_s)
        return True
    return bool(activity.call)


# ------------------------------------------------------------------------------------ the instance


def _end_instance(draft: Draft) -> None:
    state = draft.state
    if state.shutting_down and not state.applications and not state.end_sent:
        draft.actions.append(EndInstance())
        state.end_sent = True


def story_of(state: ControllerState, wanted: ReplicaID) -> Replica | None:
    """Find a replica, living or stopped, to tell its story. Pure."""
    for _, _, replica in state.replicas():
        if replica.replica_id == wanted:
            return replica
    return next((gone for gone in state.stopped if gone.replica_id == wanted), None)
