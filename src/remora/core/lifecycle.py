"""What one replica needs next, given its state, what is under way with it, and the time.

Rules: pure. One call at a time per replica; how many replicas there should be is decided in
`reconcile.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from remora.config import DeploymentConfig
from remora.core import health
from remora.core.actions import (
    CheckHealth,
    DrainReplica,
    InitializeReplica,
    KillProcess,
    StartProcess,
    StopReplica,
)
from remora.core.draft import Draft
from remora.core.event_handlers import end_drain
from remora.core.goal import goal_of
from remora.core.ranks import ranks_of
from remora.core.replica_state import Cause, Replica, ReplicaState
from remora.core.scale import count_of
from remora.core.setbacks import note_crash, note_failure
from remora.core.state import Application, Deployment, Target
from remora.types import Seconds
from remora.wire.control import ReplicaSpec

#: An engine that says nothing about a process for so long has lost it. Pulling an image or an
#: environment takes longer on some engines, but not without a process.
START_PROCESS_S: Seconds = 60.0
#: Routers acknowledge within milliseconds; one that does not is stuck, and its late requests
#: are turned away by the replica, which loses nothing.
ACK_LIMIT_S: Seconds = 2.0
#: Beside what the destructor has, for the engine to report the exit.
KILL_AFTER_S: Seconds = 1.0
#: Between two kills of a process that does not go.
KILL_AGAIN_S: Seconds = 5.0
#: After this, status says that a replica is slow to initialise (MO-09).
SLOW_START_S: Seconds = 30.0


def advance(draft: Draft, app: Application, deployment: Deployment, replica: Replica) -> None:
    """Do the next thing for one replica, or say when to look again."""
    _STEPS[replica.state](draft, app, deployment, replica)


def _pending(draft: Draft, app: Application, deployment: Deployment, replica: Replica) -> None:
    replica_id = replica.replica_id
    activity = draft.activity(replica_id)
    if not activity.preparing:
        if draft.now >= replica.since_s + START_PROCESS_S:
            detail = f"the engine reported no process for {START_PROCESS_S:g} s"
            draft.let_go(deployment, replica, detail)
            message = f"Replica {replica_id} did not start: {detail}"
            note_failure(draft, app.name, deployment, replica, message)
            return
        draft.wake(replica.since_s + START_PROCESS_S)
    if activity.call:
        return
    target = target_for(deployment, replica)
    if target is None:
        draft.let_go(deployment, replica, "superseded")
        return
    start = StartProcess(
        replica_id=replica_id,
        app_name=app.name,
        deployment=deployment.name,
        code_version=target.code_version,
        config=target.config,
        surroundings=target.surroundings,
        env=environment_of(target.config),
        holds=replica.holds,
    )
    draft.call(start, replica_id, "start")


def environment_of(config: DeploymentConfig) -> dict[str, str]:
    """Return the environment variables of a replica. Pure.

    Libraries that make a thread for each core would make as many in every replica: those of one
    that says how many cores it uses are told that number.
    """
    env = dict(config.env_vars)
    cores = config.resources.get("CPU", 0.0)
    if cores > 0:
        env.setdefault("OMP_NUM_THREADS", str(max(1, int(cores))))
    return env


def _starting(draft: Draft, app: Application, deployment: Deployment, replica: Replica) -> None:
    replica_id = replica.replica_id
    activity = draft.activity(replica_id)
    if draft.now < replica.since_s + SLOW_START_S:
        draft.wake(replica.since_s + SLOW_START_S)
    if activity.call:
        return
    if draft.now < activity.not_before_s:
        draft.wake(activity.not_before_s)
        return
    target = target_for(deployment, replica)
    if target is None:
        if not replica.was_ready:
            draft.let_go(deployment, replica, "superseded")
            return
        # It has what it needs and only has to say that it is there.
        target = deployment.target
    if not activity.found:
        draft.update(replica_id, config_key=target.config_key)
    spec = ReplicaSpec(
        replica_id=replica_id,
        application=app.name,
        deployment=deployment.name,
        code_version=target.code_version,
        config=target.config,
        surroundings=target.surroundings,
        route_prefix=target.route_prefix,
        ranks=ranks_of(replica),
        gang=replica.gang,
        world_size=count_of(deployment, target),
        ingress=target.ingress,
        revision=target.revision,
        holds=replica.holds,
    )
    initialize = InitializeReplica(replica_id, replica.address, target.code_key, spec)
    draft.call(initialize, replica_id, "initialize")


def target_for(deployment: Deployment, replica: Replica) -> Target | None:
    """Find what a replica was decided for; None: nobody wants that any more. Pure."""
    goal = goal_of(deployment).target
    if goal is not None and goal.version == replica.version:
        return goal
    for target in (deployment.target, deployment.previous):
        if target is not None and target.version == replica.version:
            return target
    return None


def _running(draft: Draft, app: Application, deployment: Deployment, replica: Replica) -> None:
    replica_id = replica.replica_id
    config = deployment.target.config
    activity = draft.activity(replica_id)
    if activity.call == "check_health":
        lost_at = activity.call_since_s + config.health_check_timeout_s + health.LOST_ANSWER_S
        if draft.now < lost_at:
            draft.wake(lost_at)
            return
        activity = health.record(activity, draft.now, error="", timed_out=True)
        draft.state.activity[replica_id] = activity
        activity = draft.note(replica_id, call="")
    judgement = health.judge(activity)
    if judgement.verdict is not health.Verdict.FINE:
        reason = f"Replica {replica_id}: {judgement.reason}"
        note_crash(draft, app.name, deployment, replica, reason)
        if judgement.verdict is health.Verdict.HUNG:
            grace_s = config.graceful_shutdown_timeout_s
            draft.stop(replica_id, Cause.HUNG, grace_s, judgement.reason)
        else:
            draft.move(replica_id, Cause.LEAVE, judgement.reason)
        return
    if activity.call:
        return
    due_at = max(health.due_at(activity, config.health_check_period_s), activity.not_before_s)
    if draft.now < due_at:
        draft.wake(due_at)
        return
    check = CheckHealth(replica_id, replica.address, config.health_check_timeout_s)
    draft.call(check, replica_id, "check_health")
    draft.wake(draft.now + config.health_check_timeout_s + health.LOST_ANSWER_S)


def _draining(draft: Draft, _app: Application, deployment: Deployment, replica: Replica) -> None:
    replica_id = replica.replica_id
    activity = draft.activity(replica_id)
    deadline = replica.since_s + deployment.target.config.graceful_shutdown_timeout_s
    if draft.now >= deadline:
        end_drain(draft, replica_id, Cause.DRAIN_DEADLINE, "its ongoing requests took too long")
        return
    draft.wake(deadline)
    if activity.call:
        return
    may_drain_at = max(_forgotten_at(draft, replica), activity.not_before_s)
    if draft.now < may_drain_at:
        draft.wake(may_drain_at)
        return
    draft.call(DrainReplica(replica_id, replica.address), replica_id, "drain")


def _forgotten_at(draft: Draft, replica: Replica) -> Seconds:
    """When routers send no more to a replica that leaves; 0: all have said so."""
    left_at = draft.activity(replica.replica_id).left_at_version
    acked = left_at is not None and draft.state.acked_version >= left_at
    return 0.0 if acked else replica.since_s + ACK_LIMIT_S


def is_forgotten(draft: Draft, deployment: Deployment) -> bool:
    """Say whether no router sends anything to a version before the present one any more.

    Who waits for a deploy may ask the new version as soon as it is done, and means that one.
    """
    return all(
        draft.now >= _forgotten_at(draft, replica)
        for replica in deployment.in_state(ReplicaState.DRAINING)
        if replica.version != deployment.target.version
    )


def _stopping(draft: Draft, _app: Application, deployment: Deployment, replica: Replica) -> None:
    replica_id = replica.replica_id
    activity = draft.activity(replica_id)
    if not activity.call:
        if draft.now < activity.not_before_s:
            draft.wake(activity.not_before_s)
            return
        # Found again after a controller restart, in the middle of it.
        grace_s = deployment.target.config.graceful_shutdown_timeout_s
        draft.note(replica_id, stop_timeout_s=grace_s)
        draft.call(StopReplica(replica_id, replica.address, grace_s), replica_id, "stop")
        activity = draft.activity(replica_id)
    kill_at = replica.since_s + activity.stop_timeout_s + KILL_AFTER_S
    if activity.killed_s is not None:
        kill_at = activity.killed_s + KILL_AGAIN_S
    if draft.now >= kill_at:
        draft.actions.append(KillProcess(replica_id))
        draft.note(replica_id, killed_s=draft.now)
        kill_at = draft.now + KILL_AGAIN_S
    draft.wake(kill_at)


def _stopped(_draft: Draft, _app: Application, _deployment: Deployment, _: Replica) -> None:
    """Nothing follows."""


_STEPS: dict[ReplicaState, Callable[[Draft, Application, Deployment, Replica], None]] = {
    ReplicaState.PENDING: _pending,
    ReplicaState.STARTING: _starting,
    ReplicaState.RUNNING: _running,
    ReplicaState.DRAINING: _draining,
    ReplicaState.STOPPING: _stopping,
    ReplicaState.STOPPED: _stopped,
}
