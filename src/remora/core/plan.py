"""What a config would do to what runs now: the deploy itself, taken as far as its decision.

Theory of operation: the config takes effect on a draft of the state, by the very function that lets
it take effect (`apply_config`); what differs then is the plan. How many replicas there are in
between follows from the limits of a roll-out.

Rules: pure; the state that comes in stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from remora.core import declared, rollout
from remora.core import events as ev
from remora.core.apply_config import apply_config
from remora.core.draft import Draft
from remora.core.event_handlers import config_submitted
from remora.core.goal import Goal, goal_of, is_current
from remora.core.replica_state import STAYING, Replica
from remora.core.state import Application, ControllerState, Deployment, Target
from remora.core.submission import ApplicationRequest
from remora.core.update_class import UPDATE_CLASS
from remora.types import DeploymentID
from remora.wire.plan import ApplicationPlan, DeploymentPlan, Plan

#: Follow from other options, or from the code.
_DERIVED = frozenset({"policy", "scaling_policy"})


def plan(
    state: ControllerState,
    submitted: ev.ConfigSubmitted,
    built: Iterable[ApplicationRequest],
    failed: Mapping[str, str],
    replica_bytes: Mapping[DeploymentID, int],
) -> Plan:
    """Say what a config would change.

    Pure.

    Args:
        state: as it is now.
        submitted: the config.
        built: what their import paths lead to.
        failed: why some of them lead nowhere, by name.
        replica_bytes: memory of one replica of each deployment, as far as it is known.
    """
    draft = Draft(state, 0.0)
    config_submitted(draft, submitted)
    release = draft.state.release
    for request in built:
        event = ev.ApplicationBuilt(release=release, application=request)
        declared.application_built(draft, event)
    for name, error in failed.items():
        declared.application_not_built(
            draft, ev.ApplicationNotBuilt(release=release, name=name, error=error)
        )
    apply_config(draft)
    after = draft.state.applications
    declared_names = {app.name for app in submitted.applications}
    made = []
    for name in sorted(declared_names | state.applications.keys()):
        old, new = state.applications.get(name), after.get(name)
        deleted = new is None or new.deleting
        if name not in declared_names and (not deleted or old is None or old.deleting):
            continue
        if new is not None and new.build_error:
            error = new.build_error
            route = old.route_prefix if old is not None else None
            made.append(
                ApplicationPlan(
                    name=name, action="fail", route_before=route, route_after=route, error=error
                )
            )
        else:
            made.append(_application(draft, name, old, None if deleted else new, replica_bytes))
    return Plan(tuple(made))


def _application(
    draft: Draft,
    name: str,
    old: Application | None,
    new: Application | None,
    replica_bytes: Mapping[DeploymentID, int],
) -> ApplicationPlan:
    # What is on its way out comes back as something new.
    had = old.deployments if old is not None else {}
    has = new.deployments if new is not None else {}
    deployments = tuple(
        _deployment(
            draft,
            each,
            had.get(each),
            has.get(each),
            replica_bytes.get(DeploymentID(each, name)),
        )
        for each in sorted(had.keys() | has.keys())
    )
    before = old.route_prefix if old is not None and not old.deleting else None
    after = new.route_prefix if new is not None else None
    changes = before != after or any(each.steps for each in deployments)
    action = "update" if changes else "none"
    if new is None:
        action = "delete"
    elif old is None or not had:
        action = "create"
    return ApplicationPlan(
        name=name,
        action=action,
        route_before=before,
        route_after=after,
        deployments=deployments,
    )


def _deployment(
    draft: Draft,
    name: str,
    old: Deployment | None,
    new: Deployment | None,
    replica_bytes: int | None,
) -> DeploymentPlan:
    running = old.in_state(*STAYING) if old is not None else []
    if new is None or new.removed:
        return DeploymentPlan(
            name=name,
            steps=("delete",) if old is None or not old.removed else (),
            before=len(running),
            peak=len(running),
        )
    goal = goal_of(new)
    target = new.target
    stale = [each for each in running if not is_current(each, target, draft.state.nodes)]
    told = all(each.config_key == target.config_key for each in running if each not in stale)
    changed = _changed(old.target, target) if old is not None else ()
    happens = {
        "create": old is None,
        "roll": bool(stale),
        "reconfigure": not told,
        "scale": old is not None and len(running) != goal.count,
    }
    steps = [step for step, does in happens.items() if does]
    if changed and not steps:
        steps = ["options"]
    return DeploymentPlan(
        name=name,
        steps=tuple(steps),
        changed=changed,
        before=len(running),
        after=goal.count,
        peak=_peak(goal, target, len(running), stale),
        replica_bytes=_asked(target) if replica_bytes is None else replica_bytes,
    )


def _peak(goal: Goal, target: Target, running: int, stale: Sequence[Replica]) -> int:
    """How many replicas there are at most: new ones come before old ones leave."""
    if not stale:
        return max(running, goal.count)
    old = (len(each.gang.members) if each.gang else 1 for each in stale)
    kept = max(goal.count, goal.before)
    most = kept + rollout.most_beside(rollout.bounds(target.config, goal.count), old, kept)
    # Those of the new version that are there already are not started again.
    missing = max(0, goal.count - (running - len(stale)))
    return max(running, min(most, running + missing))


def _changed(old: Target, new: Target) -> tuple[str, ...]:
    found = []
    if old.code_version != new.code_version:
        found.append("code")
    if (old.surroundings.sys_path, old.surroundings.cwd) != (
        new.surroundings.sys_path,
        new.surroundings.cwd,
    ):
        found.append("folders")
    if old.ingress != new.ingress:
        found.append("ingress")
    before, after = (msgspec.structs.asdict(each.config) for each in (old, new))
    options = [name for name in UPDATE_CLASS if name not in _DERIVED]
    return (*found, *(name for name in options if before[name] != after[name]))


def _asked(target: Target) -> int | None:
    asked = target.config.resources.get("memory")
    return None if asked is None else int(asked)
