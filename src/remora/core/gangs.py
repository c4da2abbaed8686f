"""Gangs: replicas that are started together, counted as one, and replaced together.

A deployment without gangs has groups of one, so that a roll-out need not know the difference.

Rules: pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from remora.core.draft import Draft
from remora.core.goal import is_current
from remora.core.replica_state import STAYING, Replica, ReplicaState
from remora.core.rollout import Member
from remora.core.state import Deployment, NodeView, Target
from remora.types import NodeID, ReplicaID

#: A group is as far as the last of its members: the first of these that one of them is in.
_SLOWEST = (
    ReplicaState.DRAINING,
    ReplicaState.PENDING,
    ReplicaState.STARTING,
    ReplicaState.RUNNING,
)


def groups_of(deployment: Deployment) -> dict[ReplicaID, list[Replica]]:
    """Return what a roll-out counts as one, by the id of its first replica. Pure."""
    groups: dict[ReplicaID, list[Replica]] = {}
    for replica in deployment.in_state(*STAYING, ReplicaState.DRAINING):
        first = replica.gang.members[0] if replica.gang else replica.replica_id
        groups.setdefault(first, []).append(replica)
    return groups


def member(
    key: ReplicaID, group: Sequence[Replica], target: Target, nodes: dict[NodeID, NodeView]
) -> Member:
    """Describe a group as a roll-out sees it. Pure."""
    if len(group) == 1:
        (only,) = group
        return Member(key, only.state, is_current(only, target, nodes), only.rank)
    states = {replica.state for replica in group}
    return Member(
        key,
        next(state for state in _SLOWEST if state in states),
        all(is_current(replica, target, nodes) for replica in group),
        min(replica.rank for replica in group),
        len(group),
    )


def end_broken(draft: Draft, deployment: Deployment) -> None:
    """Let the rest of a gang go that has lost a member: a new gang takes its place."""
    if all(replica.gang is None for replica in deployment.replicas.values()):
        return
    for group in groups_of(deployment).values():
        gang = group[0].gang
        if gang is None:
            continue
        staying = [replica for replica in group if replica.state in STAYING]
        if staying and len(staying) < len(gang.members):
            lost = len(gang.members) - len(staying)
            why = f"its gang {gang.gang_id} lost {lost} of {len(gang.members)} replicas"
            for replica in staying:
                draft.let_go(deployment, replica, why)
