"""What the controller knows: applications, their deployments, their replicas, the nodes.

Theory of operation: the durable part (applications and everything below them) is saved
(`saved_state.py`) and survives the controller. The volatile part (`activity`, `pacing`, `nodes`,
acknowledgements) is what a new controller learns again: calls under way, timers, what the engine
offers. Status is nowhere in here; it is computed (`status.py`).

Rules: pure data. `reconcile.step` copies what it changes (`draft.py`); nobody else changes a state.
`validate` states what must always hold.
"""

from __future__ import annotations

import hashlib

import msgspec

from remora.config import DeploymentConfig, ScalingPolicySetup
from remora.core.replica_state import LIVE, TERMINAL, Replica, ReplicaState
from remora.core.snapshot import Snapshot
from remora.core.submission import ApplicationRequest, Submission
from remora.core.update_class import UpdateClass, options_that
from remora.errors import InternalError
from remora.options.resources import RuntimeEnv
from remora.types import DeploymentID, NodeID, ReplicaID, Seconds
from remora.wire.codec import to_ordered_json
from remora.wire.control import DeclaredApplication, Surroundings
from remora.wire.releases import Outcome

#: Stopped replicas kept for their story.
KEPT_STOPPED = 50


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment should be."""

    code_key: str
    code_version: str
    config: DeploymentConfig
    surroundings: Surroundings
    #: Route prefix of the application; empty: none.
    route_prefix: str
    #: This deployment is the application's ingress.
    ingress: bool
    #: The application's revision that brought it.
    revision: int
    #: Differs: a new replica is needed.
    version: str
    #: Differs: `reconfigure` is enough.
    config_key: str
    #: Deployments of the application that it was bound with.
    calls: tuple[str, ...] = ()


def make_target(
    *,
    code_key: str,
    code_version: str,
    config: DeploymentConfig,
    surroundings: Surroundings,
    route_prefix: str,
    ingress: bool,
    revision: int,
    calls: tuple[str, ...] = (),
) -> Target:
    """Describe a target and tell what of it needs a restart, and what a reconfiguration. Pure."""
    born_with = options_that(UpdateClass.RESTART, config)
    heavy = [code_version, surroundings.sys_path, surroundings.cwd, ingress, born_with]
    light = options_that(UpdateClass.RECONFIGURE, config)
    return Target(
        code_key=code_key,
        code_version=code_version,
        config=config,
        surroundings=surroundings,
        route_prefix=route_prefix,
        ingress=ingress,
        revision=revision,
        version=_digest(heavy),
        config_key=_digest(light),
        calls=calls,
    )


def _digest(value: object) -> str:
    return hashlib.sha256(to_ordered_json(value)).hexdigest()[:16]


class Deployment(msgspec.Struct, kw_only=True):
    """One deployment of an application."""

    name: str
    target: Target
    #: The last target that ran and was not given up, while the present one is not trusted: to fall
    #: back on.
    previous: Target | None = None
    #: The present target was reached once.
    completed: bool = False
    #: Its version and configuration were: whatever fails now may pass, so nobody gives up.
    worked: bool = False
    #: When that was so for the first time, as Unix time.
    reached_unix_s: float = 0.0
    #: What the present target changed: `deploy`, `scale_up` or `scale_down`.
    change: str = "deploy"
    #: The application does not name it any more; it goes when the others are complete.
    removed: bool = False
    #: Failed starts of the present target in a row.
    failures: int = 0
    #: Replicas of the present target that were lost before it was reached for the first time.
    crashes: int = 0
    #: The present target has failed. What that was judged by, the number of replicas above all, may
    #: be another one later; the verdict holds until the next deploy.
    given_up: bool = False
    #: The user's traceback of the last failed start or reconfiguration.
    last_failure: str = ""
    #: How many replicas demand or somebody outside asked for; None: the options say it.
    scale: int | None = None
    #: Per cent of it that is switched on; None: all. `growing`: that share was raised last.
    capacity: float | None = None
    growing: bool = False
    replicas: dict[ReplicaID, Replica] = {}

    def in_state(self, *states: ReplicaState) -> list[Replica]:
        """Replicas in one of `states`, oldest first."""
        return [replica for replica in self.replicas.values() if replica.state in states]


class Application(msgspec.Struct, kw_only=True):
    """One application."""

    name: str
    route_prefix: str | None
    ingress: str
    revision: int
    last_deployed_unix_s: float
    #: Being taken down; its routes are gone already.
    deleting: bool = False
    #: Path of the API docs, as its ingress reported it.
    docs_path: str = ""
    #: Its deployments take their number of replicas from outside.
    external_scaler: bool = False
    #: Decides for all its deployments; without a path each has its own policy.
    scaling_policy: ScalingPolicySetup = ScalingPolicySetup()
    deployments: dict[str, Deployment] = {}
    #: The release that last asked for it.
    release: int = 0
    #: What a config says of it; None: a program deployed it.
    declared: DeclaredApplication | None = None
    #: What it was asked to be last; None: a state of before does not say.
    request: ApplicationRequest | None = None
    #: All its deployments were complete as that says, together.
    is_good: bool = False
    #: If not: what it was asked to be last that worked and was not given up.
    good: ApplicationRequest | None = None
    #: What a config said of `request` and of `good`; None: a program deployed it.
    requested_by: DeclaredApplication | None = None
    good_by: DeclaredApplication | None = None
    #: Why what it was asked for before was rolled back; empty: it was not.
    failure: str = ""
    #: Why its latest config leads to no application, with the user's traceback; empty: it does.
    build_error: str = ""


class NodeView(msgspec.Struct, frozen=True):
    """A node as the engine reported it."""

    resources: dict[str, float]
    draining: bool = False
    labels: dict[str, str] = {}
    #: Its front doors are about to go: load balancers are sent away.
    closing: bool = False
    #: For people.
    host: str = ""
    role: str = ""
    #: Why it takes no new processes, for people; empty: it takes some.
    refusal: str = ""
    #: That is because it is being made ready.
    is_joining: bool = False


class Activity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is under way with one replica; volatile."""

    #: The call under way: `start`, `initialize`, `check_health`, `reconfigure`, `drain`, `stop`.
    call: str = ""
    call_since_s: Seconds = 0.0
    #: No new call before this.
    not_before_s: Seconds = 0.0
    #: When the last health check ended.
    health_checked_s: Seconds = 0.0
    #: Failed health checks in a row, and how the last one failed.
    health_failures: int = 0
    health_error: str = ""
    #: Every one of those failures was a timeout.
    only_timeouts: bool = True
    #: The first snapshot that it is not in any more; None: not published yet.
    left_at_version: int | None = None
    #: How long its destructor may take.
    stop_timeout_s: Seconds = 0.0
    #: When it was last killed.
    killed_s: Seconds | None = None
    #: Found again after a controller restart: configured already.
    found: bool = False
    #: The engine said that its process is there.
    reported: bool = False
    #: What the engine does before there is a process; empty: it starts one.
    preparing: str = ""


class Pacing(msgspec.Struct, frozen=True, kw_only=True):
    """When a deployment may start replicas again, and why it waits; volatile."""

    retry_at_s: Seconds = 0.0
    #: Recent crashes of running replicas, oldest first.
    crashes_s: tuple[Seconds, ...] = ()
    last_crash: str = ""
    #: Why replicas found no place; empty: they did.
    unplaced: str = ""
    num_unplaced: int = 0
    #: The deployment actor that new replicas wait for; empty: none.
    awaits: str = ""


class Stranger(msgspec.Struct, frozen=True):
    """A replica that runs and that the saved state does not name; volatile."""

    address: str
    pid: int
    node_id: NodeID


class Attention(msgspec.Struct, frozen=True, gc=False):
    """When a deployment is looked at although nothing happened to it; volatile."""

    #: None: not before something happens.
    due_s: Seconds | None = None
    #: It has replicas that may wait for routers to acknowledge.
    is_draining: bool = False


class ControllerState(msgspec.Struct, kw_only=True):
    """Everything, at one moment."""

    applications: dict[str, Application] = {}
    shutting_down: bool = False
    #: Per cent of every deployment that is switched on; None: all of it.
    target_capacity: float | None = None
    #: That share was raised last.
    capacity_grows: bool = False
    #: Part of every replica id of this state.
    salt: str = ""
    next_replica: int = 1
    last_event_id: int = 0
    #: Version of the routing snapshot; grows when its content changes.
    snapshot_version: int = 0
    #: Number of the latest accepted deploy or deletion.
    release: int = 0
    #: A config whose applications are being imported.
    submission: Submission | None = None
    #: What became of the latest releases, by number.
    outcomes: dict[int, Outcome] = {}
    # ---- volatile
    #: Unix time minus `now`.
    unix_offset_s: float = 0.0
    nodes: dict[NodeID, NodeView] = {}
    #: No node will ever join these.
    fixed_nodes: bool = False
    activity: dict[ReplicaID, Activity] = {}
    pacing: dict[DeploymentID, Pacing] = {}
    attention: dict[DeploymentID, Attention] = {}
    #: What routers get to see, kept up to date by each step.
    routing: Snapshot = Snapshot()
    #: Latest ones last, at most `KEPT_STOPPED`.
    stopped: tuple[Replica, ...] = ()
    acked_version: int = 0
    #: The engine's report of what is alive is complete.
    inventory_complete: bool = True
    #: After a restart nothing is published before every found replica answered, or this time.
    hold_snapshot_until_s: Seconds | None = None
    end_sent: bool = False
    #: Part of the saved state could not be read: who runs is asked what it is.
    is_rebuilding: bool = False
    #: Those who were asked, and what came out of it.
    strangers: dict[ReplicaID, Stranger] = {}
    rebuilt: frozenset[DeploymentID] = frozenset()

    def replicas(self) -> list[tuple[Application, Deployment, Replica]]:
        """Every replica that is not STOPPED, with where it belongs."""
        return [
            (app, deployment, replica)
            for app in self.applications.values()
            for deployment in app.deployments.values()
            for replica in deployment.replicas.values()
        ]

    def code_keys(self) -> set[str]:
        """Keys of all code that a replica may still be started from."""
        built = self.submission.code_keys() if self.submission is not None else set()
        kept = {
            deployment.code_key
            for app in self.applications.values()
            if app.good is not None
            for deployment in app.good.deployments
        }
        return (
            kept
            | built
            | {
                target.code_key
                for app in self.applications.values()
                for deployment in app.deployments.values()
                for target in (deployment.target, deployment.previous)
                if target is not None
            }
        )

    def environments(self) -> set[RuntimeEnv]:
        """Environments that a process may still be started with. Pure."""
        found = self.submission.environments() if self.submission is not None else set()
        for app in self.applications.values():
            for request in (app.request, app.good):
                found |= request.environments() if request is not None else set()
            for declared in (app.declared, app.requested_by, app.good_by):
                found |= {declared.runtime_env} if declared is not None else set()
            for deployment in app.deployments.values():
                for target in (deployment.target, deployment.previous):
                    found |= {target.config.runtime_env} if target is not None else set()
        return {env for env in found if env}


def validate(state: ControllerState) -> None:
    """Check everything that must hold between two steps.

    Raises:
        InternalError: something does not hold; the message says what.
    """
    seen: set[ReplicaID] = set()
    prefixes: dict[str, str] = {}
    for name, app in state.applications.items():
        _require(name == app.name, f"application {app.name} is filed under {name}")
        if app.route_prefix is not None and not app.deleting:
            other = prefixes.setdefault(app.route_prefix, name)
            _require(other == name, f"{name} and {other} share route prefix {app.route_prefix}")
        for key, deployment in app.deployments.items():
            _require(key == deployment.name, f"deployment {deployment.name} is filed under {key}")
            _validate_replicas(name, deployment, seen)
    for replica_id in state.activity:
        _require(replica_id in seen, f"{replica_id} is gone, and yet something is under way")
    for stopped in state.stopped:
        _require(stopped.state in TERMINAL, f"{stopped.replica_id} is {stopped.state} in the past")
        _require(stopped.replica_id not in seen, f"{stopped.replica_id} lives and is in the past")
    _validate_gpus(state)


def _validate_replicas(app: str, deployment: Deployment, seen: set[ReplicaID]) -> None:
    ranks: set[int] = set()
    for replica_id, replica in deployment.replicas.items():
        _require(replica_id == replica.replica_id, f"{replica.replica_id} is filed as {replica_id}")
        _require(replica_id not in seen, f"{replica_id} exists twice")
        seen.add(replica_id)
        belongs = f"{DeploymentID(deployment.name, app)}#"
        _require(replica_id.startswith(belongs), f"{replica_id} is in {belongs[:-1]}")
        _require(replica.state in LIVE, f"{replica_id} is {replica.state} among the living")
        _require(replica.rank not in ranks, f"rank {replica.rank} of {deployment.name} is doubled")
        ranks.add(replica.rank)
        if replica.state is ReplicaState.RUNNING:
            _require(bool(replica.address), f"{replica_id} is RUNNING without an address")


def _validate_gpus(state: ControllerState) -> None:
    used: dict[tuple[NodeID, int], float] = {}
    for _, _, replica in state.replicas():
        for hold in replica.holds:
            share = min(hold.resources.get("GPU", 0.0), 1.0)
            for gpu in hold.gpus:
                where = hold.node_id, gpu
                used[where] = used.get(where, 0.0) + share
                _require(used[where] <= 1.0 + 1e-9, f"GPU {gpu} of {hold.node_id} is overbooked")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InternalError(f"The controller's state is wrong: {otherwise}.")
