"""What people get to see: status of deployments and applications, computed from the state.

Rules: pure; nothing in here is ever stored, so there are no transitions of status to get wrong.
Names of statuses and triggers are those that Ray Serve's users and their tools know.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from remora.core import restart
from remora.core.goal import comes_back, failed_how, goal_of, has_failed, is_current
from remora.core.lifecycle import SLOW_START_S
from remora.core.owned import failed_actor
from remora.core.replica_state import Replica, ReplicaState
from remora.core.scale import attempts_for, count_of
from remora.core.state import Application, ControllerState, Deployment, Pacing, Target
from remora.types import DeploymentID, Seconds
from remora.wire.control import ApplicationStatus, DeadReplica, DeploymentStatus, ReplicaStatus

#: Worst first (MO-02).
_RANKING = (
    ("DEPLOY_FAILED", ("DEPLOY_FAILED",)),
    ("UNHEALTHY", ("UNHEALTHY",)),
    ("DEPLOYING", ("UPDATING", "UPSCALING", "DOWNSCALING")),
)
#: What a target that was not reached yet, and one that was, looks like (MO-07).
_UNDER_WAY = {"deploy": "UPDATING", "scale_up": "UPSCALING", "scale_down": "DOWNSCALING"}
_DONE = {
    "deploy": "CONFIG_UPDATE_COMPLETED",
    "scale_up": "UPSCALE_COMPLETED",
    "scale_down": "DOWNSCALE_COMPLETED",
}


#: Replicas of a deployment that are shown after their end.
SHOWN_DEAD = 10
_LEAVING = (ReplicaState.DRAINING, ReplicaState.STOPPING, ReplicaState.STOPPED)


@dataclass(frozen=True)
class _Verdict:
    status: str
    trigger: str
    message: str = ""


#: Replicas that have ended, by their deployments.
_Dead = dict[str, list[Replica]]


def report(state: ControllerState, now: Seconds) -> dict[str, ApplicationStatus]:
    """Compute the status of everything. Pure."""
    dead: _Dead = {}
    for replica in state.stopped:
        dead.setdefault(replica.replica_id.rpartition("#")[0], []).append(replica)
    return {
        name: _application(state, app, dead, now)
        for name, app in sorted(state.applications.items())
    }


def _application(
    state: ControllerState, app: Application, dead: _Dead, now: Seconds
) -> ApplicationStatus:
    deployments = {
        name: _deployment(state, app, deployment, dead, now)
        for name, deployment in sorted(app.deployments.items())
    }
    # What the application no longer has does not make it worse.
    counting = [
        deployments[name] for name, deployment in app.deployments.items() if not deployment.removed
    ]
    leaves = app.deleting and not comes_back(state, app)
    status = "DELETING" if leaves else "RUNNING"
    if not leaves:
        found = {deployment.status for deployment in counting}
        status = next((name for name, those in _RANKING if found & set(those)), status)
    message = _application_message(status, counting)
    if not leaves and (own := _import_verdict(state, app)) is not None:
        status, message = own.status, "\n".join(text for text in (own.message, message) if text)
    if app.failure and not leaves:
        message = "\n".join(text for text in (app.failure, message) if text)
    return ApplicationStatus(
        name=app.name,
        status=status,
        message=message,
        # Until there is something behind it, the route that it will have.
        route_prefix=(
            app.declared.route_prefix
            if app.declared is not None and not app.deployments
            else app.route_prefix
        ),
        last_deployed_time_s=app.last_deployed_unix_s,
        deployments=deployments,
        revision=app.revision,
        docs_path=app.docs_path or None,
        release=app.release,
        failure=app.failure,
        source="imperative" if app.declared is None else "declarative",
        ingress=app.ingress,
    )


def _import_verdict(state: ControllerState, app: Application) -> _Verdict | None:
    """How far the import of an application's config is; None: it is done."""
    ingress = app.deployments.get(app.ingress)
    found_again = state.hold_snapshot_until_s is not None
    serves = (
        ingress is not None
        and not app.deleting
        and any(_runs(each, found_again) for each in ingress.replicas.values())
    )
    goes_on = " The version before goes on serving." if serves else ""
    if app.build_error:
        message = f"The config could not be applied.{goes_on}\n{app.build_error}"
        return _Verdict("DEPLOY_FAILED", "", message)
    submission = state.submission
    if submission is None or app.declared is None or app.release != submission.release:
        return None
    pending = any(each.name == app.name for each in submission.pending())
    what = "Its code is being imported." if pending else "Other applications are being imported."
    return _Verdict("DEPLOYING", "", what + goes_on)


def _application_message(status: str, deployments: list[DeploymentStatus]) -> str:
    """Say what is wrong, or what is awaited; an application that runs needs no words."""
    if status == "DELETING":
        return "The application is being deleted."
    relevant = next((those for name, those in _RANKING if name == status), ())
    return "\n".join(
        f"Deployment {deployment.name!r}: {deployment.message}"
        for deployment in deployments
        if deployment.status in relevant and deployment.message
    )


def _deployment(
    state: ControllerState, app: Application, deployment: Deployment, dead: _Dead, now: Seconds
) -> DeploymentStatus:
    where = DeploymentID(deployment.name, app.name)
    pacing = state.pacing.get(where) or Pacing()
    gone = dead.get(str(where), [])[-SHOWN_DEAD:]
    verdict = _judge(state, app, deployment, pacing, now)
    replicas = list(deployment.replicas.values())
    return DeploymentStatus(
        name=deployment.name,
        status=verdict.status,
        status_trigger=verdict.trigger,
        message=verdict.message,
        target_num_replicas=0 if app.deleting else count_of(deployment),
        replica_states=dict(Counter(str(replica.state) for replica in replicas)),
        replicas=tuple(_replica(deployment, replica) for replica in replicas),
        num_waiting=pacing.num_unplaced,
        recent_dead_replicas=tuple(_dead_replica(replica) for replica in gone),
        calls=tuple(DeploymentID(name, app.name) for name in deployment.target.calls),
        required_resources=deployment.target.config.resources,
    )


def _dead_replica(replica: Replica) -> DeadReplica:
    last = replica.history[-1] if replica.history else None
    # Why it left: the end of a process that was told to end says nothing.
    why = [
        f"{moment.cause.value}{f' ({moment.detail})' if moment.detail else ''}"
        for moment in replica.history
        if moment.after in _LEAVING
    ]
    return DeadReplica(
        replica_id=replica.replica_id,
        pid=replica.pid,
        started_at_unix_s=replica.started_at_unix_s,
        ended_at_unix_s=last.at_unix_s if last is not None else 0.0,
        reason=why[0] if why else "",
        node_id=replica.node_id,
    )


def _replica(deployment: Deployment, replica: Replica) -> ReplicaStatus:
    versions = {
        target.version: target.code_version
        for target in (deployment.previous, deployment.target)
        if target is not None
    }
    return ReplicaStatus(
        replica_id=replica.replica_id,
        state=str(replica.state),
        pid=replica.pid,
        code_version=versions.get(replica.version, ""),
        started_at_unix_s=replica.started_at_unix_s,
        node_id=replica.node_id,
    )


def _judge(
    state: ControllerState, app: Application, deployment: Deployment, pacing: Pacing, now: Seconds
) -> _Verdict:
    found_again = state.hold_snapshot_until_s is not None
    if app.deleting or deployment.removed:
        return _Verdict("UPDATING", "DELETING", "The deployment is being deleted.")
    if has_failed(deployment):
        is_actor = bool(deployment.target.config.actor_of)
        trigger = "DEPLOYMENT_ACTOR_FAILED" if is_actor else "REPLICA_STARTUP_FAILED"
        return _Verdict("DEPLOY_FAILED", trigger, _failed_message(deployment, found_again))
    if not deployment.completed and (actor := failed_actor(app, deployment)) is not None:
        name = actor.target.config.actor_name
        message = f"Its deployment actor {name!r} could not be started: {actor.last_failure}"
        return _Verdict("DEPLOY_FAILED", "DEPLOYMENT_ACTOR_FAILED", message)
    running = _num_running(deployment, deployment.target, found_again)
    target = count_of(deployment)
    trouble = _trouble(state, deployment, pacing, now)
    required = deployment.target.config.required_ready_replicas
    if required is not None and min(required, target) <= running < target:
        rest = f"{running} of {target} replicas run, and {required} are required; the others come."
        return _Verdict("HEALTHY", _DONE[deployment.change], " ".join([rest, *trouble]))
    if not deployment.completed:
        progress = f"{running} of {target} replicas are up and running."
        return _Verdict(
            _UNDER_WAY[deployment.change],
            _why_under_way(deployment),
            " ".join([progress, *trouble]),
        )
    if running < target:
        trigger = "REPLICA_STARTUP_FAILED" if deployment.failures else "HEALTH_CHECK_FAILED"
        shortage = f"{running} of {target} replicas run."
        crash = [_crashes(pacing, now)] if pacing.last_crash else []
        return _Verdict("UNHEALTHY", trigger, " ".join([shortage, *crash, *trouble]))
    if _flaps(deployment, pacing, target, now):
        message = f"{running} of {target} replicas run, and do not stay. {_crashes(pacing, now)}"
        return _Verdict("UNHEALTHY", "HEALTH_CHECK_FAILED", message)
    return _Verdict("HEALTHY", _DONE[deployment.change])


def _flaps(deployment: Deployment, pacing: Pacing, target: int, now: Seconds) -> bool:
    """Say whether replicas come and do not stay, although just now they all run."""
    recent = restart.within_window(pacing.crashes_s, now)
    return restart.are_many(len(recent), target) and any(
        now < replica.since_s + restart.STABLE_S
        for replica in deployment.in_state(ReplicaState.RUNNING)
    )


def _crashes(pacing: Pacing, now: Seconds) -> str:
    """Say how the last replica was lost and, where it was not the only one, how many were."""
    recent = len(restart.within_window(pacing.crashes_s, now))
    if recent <= 1:
        return pacing.last_crash
    return f"Replicas were replaced {recent} times in the last minute: {pacing.last_crash}"


def _why_under_way(deployment: Deployment) -> str:
    is_scaled = deployment.target.config.autoscaling_config is not None
    return "AUTOSCALING" if is_scaled and deployment.change != "deploy" else "CONFIG_UPDATE_STARTED"


def _num_running(deployment: Deployment, target: Target, found_again: bool) -> int:
    return sum(
        is_current(replica, target, None) and _runs(replica, found_again)
        for replica in deployment.replicas.values()
    )


def _runs(replica: Replica, found_again: bool) -> bool:
    """Say whether a replica serves, as far as it is known."""
    if found_again and replica.was_ready and replica.state is ReplicaState.STARTING:
        return True
    return replica.state is ReplicaState.RUNNING


def _failed_message(deployment: Deployment, found_again: bool) -> str:
    """Say how often it failed, what serves instead, what to do, and why it failed (MO-08)."""
    return (
        f"It {failed_how(deployment)} and is not tried again until the next deploy.\n"
        f"{_instead(deployment, found_again)}\nThe last failure:\n{deployment.last_failure}"
    )


def _instead(deployment: Deployment, found_again: bool) -> str:
    previous = goal_of(deployment).target
    if previous is None:
        return "There is no version before that worked."
    count = count_of(deployment, previous)
    running = _num_running(deployment, previous, found_again)
    if running >= count:
        return f"The version before goes on serving with {count} replica(s)."
    if running:
        return f"The version before goes on serving with {running} of {count} replicas."
    return f"The version before is started, and 0 of {count} replicas run."


def _trouble(
    state: ControllerState, deployment: Deployment, pacing: Pacing, now: Seconds
) -> list[str]:
    """List what keeps a deployment from its target."""
    trouble = []
    if pacing.awaits:
        trouble.append(f"Its replicas wait for the deployment actor {pacing.awaits!r}.")
    if pacing.num_unplaced:
        outlook = "room" if state.fixed_nodes else "room, or for a node that has it"
        trouble.append(
            f"{pacing.num_unplaced} replica(s) find no place: {pacing.unplaced}. They wait for {outlook}."
        )
    preparing = [
        activity.preparing
        for replica in deployment.in_state(ReplicaState.PENDING)
        if (activity := state.activity.get(replica.replica_id)) and activity.preparing
    ]
    if preparing:
        trouble.append(f"{len(preparing)} replica(s) wait for the engine: {preparing[0]}.")
    slow = [
        now - replica.since_s
        for replica in deployment.in_state(ReplicaState.STARTING)
        if now - replica.since_s >= SLOW_START_S
    ]
    if slow:
        trouble.append(
            f"{len(slow)} replica(s) are slow to initialise: the slowest has taken over "
            f"{int(max(slow) // SLOW_START_S * SLOW_START_S)} s so far. Its constructor may "
            "download or load something large, or wait for something that does not come."
        )
    if deployment.failures:
        config = deployment.target.config
        limit = restart.max_attempts(config.max_constructor_retry_count, attempts_for(deployment))
        left = max(0, limit - deployment.failures)
        outlook = (
            f"{left} more {'attempt follows' if left == 1 else 'attempts follow'}"
            if left and not deployment.worked
            else f"it is tried again, every {restart.MAX_DELAY_S:g} s at the latest"
        )
        trouble.append(
            f"A replica failed to start ({restart.in_a_row(deployment.failures)}; {outlook}):\n"
            f"{deployment.last_failure}"
        )
    return trouble
