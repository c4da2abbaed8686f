"""The state in the hands of one step: reads, the few ways to write, and what comes of it.

Theory of operation: a step costs what it changes, not what there is. The draft shares everything
with the state that it was made of, and copies an application or a deployment when it is asked for
(`application`, `deployment`, `find`): what these return may be written. It remembers which
deployments there is something to decide for: those that something happened to, and those whose
time has come.

Rules: pure; lives for one call of `reconcile.step`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from remora.core.actions import Action, InitializeReplica, KillProcess, StopReplica
from remora.core.losses import Loss
from remora.core.placement import Capacity
from remora.core.replica_state import Cause, Replica, ReplicaState, transition
from remora.core.state import (
    KEPT_STOPPED,
    Activity,
    Application,
    Attention,
    ControllerState,
    Deployment,
    Pacing,
)
from remora.errors import InternalError
from remora.types import DeploymentID, NodeID, ReplicaID, Seconds

#: A replica that was never ready has nothing to clean up.
STOP_UNREADY_S = 1.0
#: What a destructor gets when draining used up `graceful_shutdown_timeout_s`.
STOP_AT_LEAST_S = 2.0


class Draft:
    """One step's copy of the state, with its actions and its next wake-up."""

    def __init__(self, state: ControllerState, now: Seconds) -> None:
        self.state = msgspec.structs.replace(
            state,
            applications=dict(state.applications),
            nodes=dict(state.nodes),
            activity=dict(state.activity),
            pacing=dict(state.pacing),
            attention=dict(state.attention),
        )
        self.now = now
        #: The event that is being looked at; 0: none.
        self.event_id = 0
        self.actions: list[Action] = []
        #: Replicas that died, in this step.
        self.losses: list[Loss] = []
        #: Whatever else people should read in the log.
        self.warnings: list[str] = []
        #: Deployments that there may be something to decide for.
        self.dirty: set[DeploymentID] = set()
        #: Those that were written to, gone ones included, and applications likewise.
        self.touched: set[DeploymentID] = set()
        self.touched_apps: set[str] = set()
        #: What each node has and gives; None: not worked out yet.
        self.capacities: dict[NodeID, Capacity] | None = None
        self._due_s: Seconds | None = None

    @property
    def unix_s(self) -> float:
        """The present as Unix time."""
        return self.now + self.state.unix_offset_s

    # ------------------------------------------------------------------------- what to look at

    def mark(self, *deployments: DeploymentID) -> None:
        """Decide for these deployments in this step."""
        self.dirty.update(deployments)

    def mark_app(self, app: Application) -> None:
        """Decide for every deployment of an application."""
        self.mark(*(DeploymentID(name, app.name) for name in app.deployments))

    def mark_all(self) -> None:
        """Decide for everything."""
        for app in self.state.applications.values():
            self.mark_app(app)

    def nodes_changed(self) -> None:
        """Decide for everything: where it may be is another question now."""
        self.capacities = None
        self.mark_all()

    def mark_unplaced(self) -> None:
        """Decide for whatever waits for room: some came free, or was taken."""
        self.mark(*(where for where, pacing in self.state.pacing.items() if pacing.num_unplaced))

    def mark_due(self) -> None:
        """Decide for the deployments whose time has come."""
        self.mark(
            *(
                where
                for where, attention in self.state.attention.items()
                if attention.due_s is not None and attention.due_s <= self.now
            )
        )

    def begin(self) -> None:
        """Begin to decide for one deployment."""
        self._due_s = None

    def wake(self, at: Seconds) -> None:
        """Look at the present deployment again at `at` at the latest, even if nothing happens."""
        if self._due_s is None or at < self._due_s:
            self._due_s = at

    def end(self, where: DeploymentID, *, is_draining: bool) -> None:
        """All that was to decide for one deployment by now is decided."""
        self.state.attention[where] = Attention(self._due_s, is_draining)

    # ------------------------------------------------------------------- reading and writing

    def application(self, name: str) -> Application | None:
        """Look up an application; what is returned may be written."""
        app = self.state.applications.get(name)
        if app is None or name in self.touched_apps:
            return app
        self.touched_apps.add(name)
        own = msgspec.structs.replace(app, deployments=dict(app.deployments))
        self.state.applications[name] = own
        return own

    def application_or_new(
        self, name: str, route_prefix: str | None = None, revision: int = 0
    ) -> Application:
        """Look up an application, or make an empty one; what is returned may be written."""
        found = self.application(name)
        if found is None:
            self.touched_apps.add(name)
            found = self.state.applications[name] = Application(
                name=name,
                route_prefix=route_prefix,
                ingress="",
                revision=revision,
                last_deployed_unix_s=self.unix_s,
            )
        return found

    def deployment(self, where: DeploymentID) -> Deployment | None:
        """Look up a deployment; what is returned may be written."""
        app = self.application(where.app_name)
        deployment = app.deployments.get(where.name) if app is not None else None
        if app is None or deployment is None or where in self.touched:
            return deployment
        self.touched.add(where)
        own = msgspec.structs.replace(deployment, replicas=dict(deployment.replicas))
        app.deployments[where.name] = own
        return own

    def home_of(self, replica_id: ReplicaID) -> DeploymentID | None:
        """Say which deployment a replica that is not STOPPED belongs to."""
        path = replica_id.rpartition("#")[0]
        at = path.find("/")
        # Names of applications and of deployments may have slashes.
        while at >= 0:
            where = DeploymentID(path[at + 1 :], path[:at])
            app = self.state.applications.get(where.app_name)
            deployment = app.deployments.get(where.name) if app is not None else None
            if deployment is not None and replica_id in deployment.replicas:
                return where
            at = path.find("/", at + 1)
        return None

    def find(self, replica_id: ReplicaID) -> tuple[Deployment, Replica] | None:
        """Look up a replica that is not STOPPED; something happened to it."""
        where = self.home_of(replica_id)
        if where is None:
            return None
        self.mark(where)
        deployment = self.deployment(where)
        assert deployment is not None
        return deployment, deployment.replicas[replica_id]

    def app_of(self, replica_id: ReplicaID) -> Application:
        """Look up the application of a replica that `find` finds."""
        where = self._required_home(replica_id)
        app = self.application(where.app_name)
        assert app is not None
        return app

    def _required_home(self, replica_id: ReplicaID) -> DeploymentID:
        where = self.home_of(replica_id)
        if where is None:
            raise InternalError(f"Replica {replica_id} is not there (any more).")
        return where

    def _written(self, replica_id: ReplicaID) -> Deployment:
        deployment = self.deployment(self._required_home(replica_id))
        assert deployment is not None
        return deployment

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
        self.mark(self._required_home(replica_id))
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
        self.note(replica.replica_id)
        self.mark(DeploymentID(deployment.name, app.name))
        # Another one's message tells how much is free.
        self.mark_unplaced()

    def update(self, replica_id: ReplicaID, **changes: Any) -> Replica:
        """Change what is known of a replica, its state excepted."""
        deployment = self._written(replica_id)
        changed = msgspec.structs.replace(deployment.replicas[replica_id], **changes)
        deployment.replicas[replica_id] = changed
        return changed

    def move(self, replica_id: ReplicaID, cause: Cause, detail: str = "") -> Replica:
        """Take a replica to the state that follows from `cause`.

        Raises:
            InvalidTransition: a bug.
        """
        where = self._required_home(replica_id)
        self.mark(where)
        deployment = self._written(replica_id)
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
            self.capacities = None
            self.mark_unplaced()
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
        # What this same step decided for it a moment ago never begins.
        self.actions = [
            each
            for each in self.actions
            if not (isinstance(each, InitializeReplica) and each.replica_id == replica_id)
        ]
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
