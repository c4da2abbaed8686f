"""Deployment actors: deployments of one replica that belong to another deployment.

They are there before the replicas of their version start, and until the last of them is gone.

Rules: pure.
"""

from __future__ import annotations

from remora.core.draft import Draft
from remora.core.goal import has_failed
from remora.core.replica_state import ReplicaState
from remora.core.state import Application, Deployment, Target
from remora.types import DeploymentID


def awaited(app: Application, target: Target) -> str:
    """Return the name of an actor that replicas of `target` must wait for; empty: none. Pure."""
    for name, deployment in target.config.actors.items():
        found = app.deployments.get(deployment)
        if found is None or not found.in_state(ReplicaState.RUNNING):
            return name
    return ""


def failed_actor(app: Application, deployment: Deployment) -> Deployment | None:
    """Return an actor of the present target that cannot be started; None: there is none. Pure."""
    for name in deployment.target.config.actors.values():
        found = app.deployments.get(name)
        if found is not None and has_failed(found):
            return found
    return None


def is_used(app: Application, deployment: Deployment) -> bool:
    """Say of what is on its way out whether it is an actor that replicas still need. Pure."""
    owner = app.deployments.get(deployment.target.config.actor_of)
    if owner is None:
        return False
    if app.deleting or owner.removed:
        return bool(owner.replicas)
    return any(replica.version != owner.target.version for replica in owner.replicas.values())


def tell_owner(draft: Draft, app: Application, deployment: Deployment) -> None:
    """Decide for the owner of an actor that it has waited for."""
    owner = app.deployments.get(deployment.target.config.actor_of)
    if owner is None or not deployment.in_state(ReplicaState.RUNNING):
        return
    if draft.pacing(app.name, owner).awaits:
        draft.mark(DeploymentID(owner.name, app.name))
