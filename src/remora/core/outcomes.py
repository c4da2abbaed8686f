"""What became of each release: is it under way, deployed, failed, rolled back, replaced?

Theory of operation: a release is judged by the applications that it was the last to ask for. A step
that changes the verdict on one of them judges its release anew, and what comes out is kept with the
state, because later releases take its applications over and nothing else tells then how it went.

Rules: pure. What has settled is never under way again: replicas that come and go later are no
matter of the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from remora.core.goal import comes_back, has_failed, is_current
from remora.core.replica_state import ReplicaState
from remora.core.scale import count_of
from remora.core.state import Application, ControllerState, Deployment
from remora.wire.releases import Outcome, ReleaseStatus

#: As many releases as are kept.
KEPT_OUTCOMES = 100
#: A reason is for a line of `remora history`; the traceback stands in the status.
REASON_LENGTH = 200

_UNDER_WAY = Outcome(status=ReleaseStatus.UNDER_WAY)
_DEPLOYED = Outcome(status=ReleaseStatus.DEPLOYED)
#: What counts for the whole release if it is so for one application, first things first.
_RANKING = (ReleaseStatus.ROLLED_BACK, ReleaseStatus.FAILED, ReleaseStatus.UNDER_WAY)


def note_outcomes(before: ControllerState, after: ControllerState, changed: Iterable[str]) -> None:
    """Judge the releases anew of which a step has changed anything.

    Args:
        before: the state that the step was made from.
        after: what came out of it; its outcomes are replaced by others.
        changed: names of the applications that may differ.
    """
    fresh = set(range(before.release + 1, after.release + 1))
    if before.submission is not after.submission and before.submission is not None:
        fresh.add(before.submission.release)
    lost: dict[int, int] = {}
    for name in changed:
        old, new = before.applications.get(name), after.applications.get(name)
        is_ours = new is not None and not new.deleting
        if new is not None and is_ours and (old is None or _differs(before, old, after, new)):
            fresh.add(new.release)
        if old is None or old.deleting:
            continue
        if new is None or not is_ours or new.release != old.release:
            by = new.release if new is not None and is_ours else after.release
            is_open = _verdict(before, old) == _UNDER_WAY
            lost[old.release] = max(lost.get(old.release, 0), by if is_open else 0)
    outcomes = dict(after.outcomes)
    for number in fresh | lost.keys():
        known = outcomes.get(number)
        if number in fresh or (known is not None and known.status == ReleaseStatus.UNDER_WAY):
            judged = _judge(after, number)
            outcomes[number] = _next(known or _UNDER_WAY, judged, lost.get(number, 0), number)
    kept = dict(sorted(each for each in outcomes.items() if each[0])[-KEPT_OUTCOMES:])
    if kept != after.outcomes:
        after.outcomes = kept


def settled(outcomes: Mapping[int, Outcome]) -> dict[int, Outcome]:
    """Leave out what was under way: nobody will ever say how it ended. Pure."""
    return {
        number: each for number, each in outcomes.items() if each.status != ReleaseStatus.UNDER_WAY
    }


def _next(known: Outcome, judged: Outcome, replaced_by: int, number: int) -> Outcome:
    """Say how a release is now, from how it was and what is left to it. Pure."""
    by = max(known.replaced_by, replaced_by)
    if by > number and judged.status == ReleaseStatus.DEPLOYED != known.status:
        # The rest of it is there, as far as it has a rest.
        judged = Outcome(status=ReleaseStatus.REPLACED, reason=f"by release {by}, while under way")
    elif judged.status == ReleaseStatus.UNDER_WAY:
        judged = known
    return msgspec.structs.replace(judged, replaced_by=by if by > number else 0)


def _judge(state: ControllerState, number: int) -> Outcome:
    """Say how a release is, by what is left to it. Pure."""
    if state.submission is not None and state.submission.release == number:
        return _UNDER_WAY
    verdicts = [
        _verdict(state, app) for app in state.applications.values() if app.release == number
    ]
    for status in _RANKING:
        found = next((each for each in verdicts if each.status == status), None)
        if found is not None:
            return found
    return _DEPLOYED


def _differs(
    before: ControllerState, old: Application, after: ControllerState, new: Application
) -> bool:
    """Say whether the verdict on an application may have changed; costs what changed. Pure."""
    if (old.release, old.deleting, old.failure, old.build_error) != (
        new.release,
        new.deleting,
        new.failure,
        new.build_error,
    ) or _awaits_import(before, old) != _awaits_import(after, new):
        return True
    known = old.deployments
    return any(
        known.get(name) is not each
        and (name not in known or _state_of(known[name]) != _state_of(each))
        for name, each in new.deployments.items()
    )


def _awaits_import(state: ControllerState, app: Application) -> bool:
    return state.submission is not None and state.submission.release == app.release


def _verdict(state: ControllerState, app: Application) -> Outcome:
    """Say how an application is, as far as that concerns the release that asked for it. Pure."""
    if app.deleting and not comes_back(state, app):
        return _DEPLOYED
    if _awaits_import(state, app):
        return _UNDER_WAY
    if app.failure:
        return _outcome(ReleaseStatus.ROLLED_BACK, app.name, app.failure)
    if app.build_error:
        return _outcome(ReleaseStatus.FAILED, app.name, app.build_error)
    states = {name: _state_of(each) for name, each in app.deployments.items()}
    for name, status in states.items():
        if status == ReleaseStatus.FAILED:
            return _outcome(status, f"{app.name}/{name}", app.deployments[name].last_failure)
    return _UNDER_WAY if ReleaseStatus.UNDER_WAY in states.values() else _DEPLOYED


def _state_of(deployment: Deployment) -> ReleaseStatus:
    """Say how a deployment is; one that leaves is no matter of the release. Pure."""
    if deployment.removed:
        return ReleaseStatus.DEPLOYED
    if has_failed(deployment):
        return ReleaseStatus.FAILED
    return ReleaseStatus.DEPLOYED if _is_there(deployment) else ReleaseStatus.UNDER_WAY


def _is_there(deployment: Deployment) -> bool:
    """Say whether a deployment does what it was deployed for. Pure."""
    required = deployment.target.config.required_ready_replicas
    if deployment.completed or required is None:
        return deployment.completed
    running = sum(
        is_current(replica, deployment.target, None)
        for replica in deployment.in_state(ReplicaState.RUNNING)
    )
    return running >= min(required, count_of(deployment))


def _outcome(status: ReleaseStatus, where: str, failure: str) -> Outcome:
    """Tell a failure in one line: that of its exception, which ends a traceback. Pure."""
    lines = [line for line in failure.splitlines() if line.strip() and line[0] not in " \t"]
    return Outcome(status=status, reason=f"{where}: {lines[-1] if lines else ''}"[:REASON_LENGTH])
