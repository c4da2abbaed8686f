"""The state in the hands of one step: reads, the few ways to write, and what comes of it.

Rules: pure; lives for one call of `reconcile.step` and works on that call's copy.
"""

from __future__ import annotations

from typing import Any

import msgspec

from remora.core.actions import Action, KillProcess, StopReplica
from remora.core.losses import Loss
from remora.core.replica_state import Cause, Replica, ReplicaState, transition
from remora.core.state import (
    KEPT_STOPPED,
    Activity,
    Application,
    ControllerState,
    Deployment,
    Pacing,
)
from remora.types import DeploymentID, ReplicaID, Seconds

#: A replica that was never ready has nothing to clean up.
STOP_UNREADY_S = 1.0
#: What a destructor gets when draining used up `graceful_shutdown_timeout_s`.
STOP_AT_LEAST_S = 2.0


class Draft:
    """One step's copy of the state, with its actions and its next wake-up."""

    def __init__(self, state: ControllerState, now: Seconds) -> None:
        self.state = state.copy()
        self.now = now
        #: The event that is being looked at; 0: none.
        self.event_id = 0
        self.actions: list[Action] = []
        #: Replicas that died, in this step.
        self.losses: list[Loss] = []
        self.wake_at: Seconds | None = None
        #: Grows with every decision: a step goes on until it stays as it is.
        self.num_decisions = 0
        self._home: dict[ReplicaID, tuple[Application, Deployment]] = {
            replica.replica_id: (app, deployment)
            for app, deployment, replica in self.state.replicas()
        }

    @property
    def unix_s(self) -> float:
        """The present as Unix time."""
        return self.now + self.state.unix_offset_s

    def wake(self, at: Seconds) -> None:
        """Step again at `at` at the latest, even if nothing happens."""
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at

    def find(self, replica_id: ReplicaID) -> tuple[Deployment, Replica] | None:
        """Look up a replica that is not STOPPED."""
        home = self._home.get(replica_id)
        if home is None:
            return None
        replica = home[1].replicas.get(replica_id)
        return (home[1], replica) if replica else None

    def app_of(self, replica_id: ReplicaID) -> Application:
        """Look up the application of a replica that `find` finds."""
        return self._home[replica_id][0]

    def activity(self, replica_id: ReplicaID) -> Activity:
        """What is under way with a replica."""
        return self.state.activity.get(replica_id) or Activity()

    def note(self, replica_id: ReplicaID, **changes: Any) -> Activity:
        """Change what is under way with a replica."""
        changed = msgspec.structs.replace(self.activity(replica_id), **changes)
        self.state.activity[replica_id] = changed
        return changed

    def call(self, action: Action, replica_id: ReplicaID, name: str) -> None:
        """Act on a replica and remember that the answer is to come."""
        self.actions.append(action)
        self.num_decisions += 1
        self.note(replica_id, call=name, call_since_s=self.now)

    def answered(self, replica_id: ReplicaID, name: str) -> bool:
        """End a call; False: it is not the one under way, so its answer is late."""
        if self.activity(replica_id).call != name:
            return False
        self.note(replica_id, call="")
        return True

    def pacing(self, app: str, deployment: Deployment) -> Pacing:
        """When a deployment may start replicas."""
        return self.state.pacing.get(DeploymentID(deployment.name, app)) or Pacing()

    def pace(self, app: str, deployment: Deployment, **changes: Any) -> None:
        """Change when a deployment may start replicas."""
        changed = msgspec.structs.replace(self.pacing(app, deployment), **changes)
        self.state.pacing[DeploymentID(deployment.name, app)] = changed

    def add(self, app: Application, deployment: Deployment, replica: Replica) -> None:
        """Take in a replica that was just decided."""
        deployment.replicas[replica.replica_id] = replica
        self._home[replica.replica_id] = (app, deployment)
        self.note(replica.replica_id)
        self.num_decisions += 1

    def update(self, replica_id: ReplicaID, **changes: Any) -> Replica:
        """Change what is known of a replica, its state excepted."""
        deployment = self._home[replica_id][1]
        changed = msgspec.structs.replace(deployment.replicas[replica_id], **changes)
        deployment.replicas[replica_id] = changed
        return changed

    def move(self, replica_id: ReplicaID, cause: Cause, detail: str = "") -> Replica:
        """Take a replica to the state that follows from `cause`.

        Raises:
            InvalidTransition: a bug.
        """
        deployment = self._home[replica_id][1]
        self.num_decisions += 1
        moved = transition(
            deployment.replicas[replica_id],
            cause,
            self.now,
            at_unix_s=self.unix_s,
            event_id=self.event_id,
            # A traceback belongs into the status, not into every story.
            detail=detail.strip().rsplit("\n", 1)[-1][:300],
        )
        if moved.state is ReplicaState.STOPPED:
            del deployment.replicas[replica_id]
            del self._home[replica_id]
            self.state.activity.pop(replica_id, None)
            self.state.stopped = (*self.state.stopped, moved)[-KEPT_STOPPED:]
        else:
            deployment.replicas[replica_id] = moved
            # Whatever was under way belongs to the state before.
            self.note(replica_id, call="", not_before_s=0.0, left_at_version=None)
        return moved

    def stop(self, replica_id: ReplicaID, cause: Cause, timeout_s: Seconds, detail: str) -> None:
        """Take a replica to STOPPING and ask it to end."""
        replica = self.move(replica_id, cause, detail)
        self.note(replica_id, stop_timeout_s=timeout_s)
        self.call(StopReplica(replica_id, replica.address, timeout_s), replica_id, "stop")

    def let_go(self, deployment: Deployment, replica: Replica, detail: str) -> None:
        """Let a replica leave in the gentlest way that its state allows."""
        replica_id = replica.replica_id
        if replica.state is ReplicaState.PENDING:
            # Its process may be on the way; a late one is killed when it is reported.
            self.move(replica_id, Cause.CANCELLED, detail)
            self.actions.append(KillProcess(replica_id))
        elif replica.state is ReplicaState.STARTING:
            grace_s = deployment.target.config.graceful_shutdown_timeout_s
            timeout_s = grace_s if replica.was_ready else STOP_UNREADY_S
            self.stop(replica_id, Cause.SUPERSEDED, timeout_s, detail)
        elif replica.state is ReplicaState.RUNNING:
            self.move(replica_id, Cause.LEAVE, detail)
