"""What a deployment is being brought to just now: its target, or what it falls back on.

Rules: pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from remora.core import restart
from remora.core.replica_state import STAYING, Replica, ReplicaState
from remora.core.scale import attempts_for, count_of
from remora.core.state import Application, ControllerState, Deployment, NodeView, Target
from remora.types import NodeID


@dataclass(frozen=True)
class Goal:
    """Where to go.

    Attributes:
        target: what new replicas are made of; None: start none and let none go.
        count: how many replicas there should be.
        fallen_back: the deploy has failed, and this is what worked before.
        before: how many there should be of what can be fallen back on; 0: there is none.
    """

    target: Target | None
    count: int
    fallen_back: bool = False
    before: int = 0


def goal_of(deployment: Deployment) -> Goal:
    """Choose between going on with the target and falling back. Pure."""
    if has_failed(deployment):
        previous = deployment.previous
        count = count_of(deployment, previous) if previous is not None else 0
        return Goal(previous, count, fallen_back=True)
    previous = deployment.previous
    before = count_of(deployment, previous) if previous is not None else 0
    return Goal(deployment.target, count_of(deployment), before=before)


def in_effect(deployment: Deployment) -> Target:
    """Choose whose options hold for what runs: where there is nothing to go to, the latest. Pure."""
    return goal_of(deployment).target or deployment.target


def has_failed(deployment: Deployment) -> bool:
    """Say whether the present target is given up until somebody deploys again. Pure."""
    if deployment.given_up:
        return True
    limit = restart.max_attempts(
        deployment.target.config.max_constructor_retry_count,
        attempts_for(deployment),
    )
    setbacks = max(deployment.failures, deployment.crashes)
    if setbacks < limit:
        return False
    target = deployment.target
    return restart.gives_up(
        setbacks,
        limit,
        worked_before=deployment.worked,
        can_fall_back=deployment.previous is not None,
        some_run=any(
            replica.config_key == target.config_key and is_current(replica, target, None)
            for replica in deployment.in_state(ReplicaState.RUNNING)
        ),
    )


def failed_how(deployment: Deployment) -> str:
    """Say how often what went wrong, for people. Pure."""
    if deployment.crashes > deployment.failures:
        return f"lost {deployment.crashes} replicas of the new version while it was rolled out"
    return f"failed to start {restart.in_a_row(deployment.failures)}"


def is_current(replica: Replica, target: Target, nodes: dict[NodeID, NodeView] | None) -> bool:
    """Say whether a replica may stay for `target`; its configuration can still be changed.

    Pure. `nodes` is what the engine offers; None: places do not matter.
    """
    if replica.version != target.version or replica.broken:
        return False
    node = nodes.get(replica.node_id) if nodes is not None else None
    return not (node and node.draining)


def is_reached(deployment: Deployment, goal: Goal) -> bool:
    """Say whether exactly the replicas of `goal` run, configured as it says. Pure."""
    if goal.target is None:
        return False
    staying = deployment.in_state(*STAYING)
    return len(staying) == goal.count and all(
        replica.state is ReplicaState.RUNNING
        and replica.config_key == goal.target.config_key
        and is_current(replica, goal.target, None)
        for replica in staying
    )


def is_replaced(deployment: Deployment) -> bool:
    """Say whether the present target runs and is trusted, and nothing is left of any version before it.

    Pure. Until then replicas of before may call what the present target does not know, or come back
    and do.
    """
    goal = goal_of(deployment)
    return (
        deployment.previous is None
        and not goal.fallen_back
        and is_reached(deployment, goal)
        and all(
            replica.version == deployment.target.version for replica in deployment.replicas.values()
        )
    )


def comes_back(state: ControllerState, app: Application) -> bool:
    """An application that is being deleted was declared again since. Pure.

    What it had before goes first or meanwhile; what is declared is being imported, or cannot be.
    """
    if not app.deleting:
        return False
    # Whoever deletes an application forgets what went wrong before.
    return bool(app.build_error) or (
        state.submission is not None
        and any(each.name == app.name for each in state.submission.applications)
    )
