"""What is said to the controller and by the controller to a replica, as plain structs.

Both travel as requests of kind CONTROL on the ordinary wire, with a msgpack body. Nothing in
here is ever unpickled by the controller: code stays opaque bytes until a replica opens it.

Methods of the controller (application and deployment of the envelope are empty):

    deploy(DeployRequest) -> Accepted    accepted, state saved; progress comes through `watch`
    submit(ConfigRequest) -> Accepted    the same for a config, whose code is imported after this
    releases(None) -> Releases           who deployed what when (wire/releases.py)
    rollback(RollbackRequest) -> Accepted
    plan(ConfigRequest) -> Plan          what `submit` would change (wire/plan.py)
    configs(None) -> Configs
    delete(DeleteRequest) -> None
    status(None) -> InstanceStatus
    watch(None) -> stream of InstanceStatus, one now and one after every change
    story(StoryRequest) -> Story         what happened to one replica, for people
    shutdown(None) -> None               drains and deletes everything, then ends the instance
    subscribe(Subscription) -> stream of SnapshotDiff (core/snapshot.py)
    ack(Ack) -> None                     a router has applied that version
    callees(Callees) -> None             which deployments a process calls
    health(None) -> ControllerHealth     how the controller itself is (wire/health.py)
    snapshot_version(None) -> SnapshotVersion   what every subscriber has been or is being told
    queue(QueueClaim) -> stream of QueueShares      how many may wait in the caller
    claim(QueueClaim) -> None            what a router holds and needs of queues by now
    metrics(MetricsRequest) -> MetricsReport    of everybody but the one who asks (wire/metrics.py)
    follow_metrics(Subscription) -> stream of MetricsCall       each is answered with ...
    answer_metrics(MetricsAnswer) -> None                       ... what that process counts

Methods of a builder, a process that imports one application and ends:

    build(BuildRequest) -> BuildResult

Methods of a replica:

    initialize(ReplicaSpec) -> ReplicaReady     idempotent: waits for a running construction
    check_health(HealthCheck) -> None           raises what the user's check raised
    reconfigure(ReplicaReconfigure) -> None
    describe(None) -> ReplicaSpec               as what it runs, for a controller that lost its state
    drain(None) -> None                         turns new requests away; answers when idle
    stop(None) -> MetricsReport                 runs the destructor; the process exits after it, and
                                                the user's counters are told for the last time
    metrics(None) -> MetricsReport
"""

from __future__ import annotations

import msgspec

from remora.config import DeploymentConfig, ScalingPolicySetup
from remora.options.resources import RuntimeEnv
from remora.types import LOCAL_NODE, DeploymentID, NodeID, Seconds
from remora.wire.holds import Gang, Hold


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment as the driver describes it."""

    name: str
    #: Pickled `(callable, init_args, init_kwargs)`; opened only in a replica.
    code: bytes
    #: Two specs with the same version have the same code and arguments.
    code_version: str
    config: DeploymentConfig
    #: Deployments of its application that it was bound with, and those that hold its actors.
    calls: tuple[str, ...] = ()


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the code of an application finds what it imports."""

    #: Put in front of the replica's `sys.path`, in order.
    sys_path: tuple[str, ...] = ()
    #: Working directory of the replica; empty: the supervisor's.
    cwd: str = ""
    #: Modules worth importing before a replica forks (names the template knows to be safe).
    preload: tuple[str, ...] = ()


class ApplicationSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One application as the driver describes it."""

    name: str
    route_prefix: str | None
    #: Name of the ingress deployment.
    ingress: str
    deployments: tuple[DeploymentSpec, ...]
    surroundings: Surroundings = Surroundings()
    #: Its deployments take their numbers of replicas from outside (`scale`).
    external_scaler: bool = False
    #: Decides for all deployments that are scaled; without a path each has its own policy.
    scaling_policy: ScalingPolicySetup = ScalingPolicySetup()


class DeclaredApplication(msgspec.Struct, frozen=True, kw_only=True):
    """One application of a config, before its code was imported."""

    name: str
    route_prefix: str | None
    #: Its part of the config as it was written, as JSON.
    given: bytes
    #: Where its code is imported from.
    surroundings: Surroundings = Surroundings()
    #: Environment variables of the process that imports it, and of its replicas.
    env: dict[str, str] = {}
    #: Packages and folders of these processes, as they were when the config was handed in.
    runtime_env: RuntimeEnv = RuntimeEnv()
    #: Where the config names each deployment, by name, for people: `serve.yaml:7: …`.
    places: dict[str, str] = {}


class ConfigRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A whole config: what was declared before and is not in here is to go."""

    applications: tuple[DeclaredApplication, ...]
    #: Who or what it comes from, for people.
    source: str
    #: Per cent of the replicas of every deployment that are switched on; None: all.
    target_capacity: float | None = None


class Configs(msgspec.Struct, frozen=True):
    """What was declared of each application, as JSON, by name."""

    applications: dict[str, bytes]


class Accepted(msgspec.Struct, frozen=True):
    """The number of the release that a request began."""

    release: int


class BuildRequest(msgspec.Struct, frozen=True):
    """Import this application and describe it."""

    application: DeclaredApplication


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an import path led to."""

    application: ApplicationSpec | None = None
    #: Why it leads to no application, with the user's traceback; empty: it does.
    error: str = ""


class DeployRequest(msgspec.Struct, frozen=True):
    """Deploy these applications; others stay as they are."""

    applications: tuple[ApplicationSpec, ...]


class DeleteRequest(msgspec.Struct, frozen=True):
    """Delete these applications; unknown names are no error."""

    names: tuple[str, ...]


class StoryRequest(msgspec.Struct, frozen=True):
    """Which replica's story is wanted."""

    replica_id: str


class Story(msgspec.Struct, frozen=True):
    """What happened to a replica, one line for each change of state and each logged event."""

    text: str


class Subscription(msgspec.Struct, frozen=True):
    """Who subscribes; the same name is used in acknowledgements."""

    subscriber: str
    pid: int


class Ack(msgspec.Struct, frozen=True):
    """Sent after a snapshot version was applied."""

    subscriber: str
    version: int


class Callees(msgspec.Struct, frozen=True):
    """The deployments that a replica calls, all of them."""

    replica_id: str
    deployments: tuple[DeploymentID, ...]


class QueueClaim(msgspec.Struct, frozen=True):
    """What one router holds and needs of the queues of deployments with a limit."""

    #: The same name as in `Subscription`.
    subscriber: str
    #: Places held, places that it can use, and the version of the last share that it applied.
    claims: dict[DeploymentID, tuple[int, int, int]]


class QueueShares(msgspec.Struct, frozen=True):
    """How many requests may wait in a router: only what has changed."""

    #: Places and version.
    shares: dict[DeploymentID, tuple[int, int]]


class SnapshotVersion(msgspec.Struct, frozen=True):
    """The latest version that was published."""

    version: int


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One replica in a status report."""

    replica_id: str
    #: PENDING, STARTING, RUNNING, DRAINING or STOPPING.
    state: str
    pid: int | None = None
    code_version: str = ""
    #: Unix time.
    started_at_unix_s: float | None = None
    #: Where it is, or is to be.
    node_id: str = ""


class DeadReplica(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that has ended lately."""

    replica_id: str
    pid: int | None = None
    started_at_unix_s: float | None = None
    #: Unix time.
    ended_at_unix_s: float = 0.0
    #: What ended it, for people.
    reason: str = ""
    node_id: str = ""


class DeploymentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment in a status report; computed from state, never stored."""

    name: str
    #: UPDATING, HEALTHY, UNHEALTHY, DEPLOY_FAILED, UPSCALING or DOWNSCALING.
    status: str
    #: CONFIG_UPDATE_STARTED, CONFIG_UPDATE_COMPLETED, REPLICA_STARTUP_FAILED, …
    status_trigger: str
    message: str
    target_num_replicas: int
    #: Count of replicas by state.
    replica_states: dict[str, int]
    replicas: tuple[ReplicaStatus, ...] = ()
    #: How many more there would be if there were room; `message` says what is missing.
    num_waiting: int = 0
    #: The last ones that ended, oldest first.
    recent_dead_replicas: tuple[DeadReplica, ...] = ()
    #: Deployments that it was bound with, and those that its replicas have called.
    calls: tuple[DeploymentID, ...] = ()
    #: What each replica reserves: `CPU`, `GPU`, `memory` (bytes) and custom names.
    required_resources: dict[str, float] = {}


class ApplicationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One application in a status report."""

    name: str
    #: DEPLOYING, RUNNING, DEPLOY_FAILED, UNHEALTHY or DELETING.
    status: str
    message: str
    route_prefix: str | None
    #: Unix time of the last deploy request.
    last_deployed_time_s: float
    deployments: dict[str, DeploymentStatus]
    #: Grows with every deploy of this application, so a waiter can tell its own deploy.
    revision: int = 0
    #: Path of the API docs under the route prefix (`/docs`); None: it has none, or none ran yet.
    docs_path: str | None = None
    #: Why the last deploy was rolled back; empty: it was not.
    failure: str = ""
    #: The release that last asked for it.
    release: int = 0
    #: `declarative`: a config did; `imperative`: a program.
    source: str = "imperative"
    #: The deployment that requests enter at; empty: there is none yet.
    ingress: str = ""


class ProcessView(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the instance in a status report."""

    name: str
    pid: int
    #: STARTING, HEALTHY, or DRAINING: its node goes away soon.
    status: str
    restarts: int = 0
    #: Where it runs.
    node_id: NodeID = LOCAL_NODE


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the engine's."""

    node_id: NodeID
    #: Its address; empty: there is one node.
    host: str = ""
    #: `head`: Ray's head is there.
    role: str = ""
    #: What replicas can have of it in all, by name.
    resources: dict[str, float] = {}
    #: It is about to be taken away.
    draining: bool = False
    #: Why it takes no new replicas, without a full stop; empty: it takes some.
    refusal: str = ""
    #: That is because it is being made ready.
    joining: bool = False
    #: What it lacks although it takes replicas, without a full stop; empty: nothing.
    trouble: str = ""
    #: Its front doors are about to go, as no replica is there; it stays.
    closing: bool = False
    #: Of the process that holds its front doors; 0: there is none.
    agent_pid: int = 0
    num_proxies: int = 0
    #: All that have not ended.
    num_replicas: int = 0


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `remora status` shows."""

    home: str
    #: URL of the front door; empty without HTTP.
    http_url: str
    controller_pid: int
    supervisor_pid: int
    proxies: tuple[ProcessView, ...]
    applications: dict[str, ApplicationStatus]
    #: `host:port` of gRPC; empty without.
    grpc_address: str = ""
    #: The latest release; 0: nothing was ever deployed.
    release: int = 0
    #: URL of the REST API; empty: it has only its Unix socket, in the state folder.
    admin_url: str = ""
    #: Per cent of the replicas of every deployment that are switched on; None: all.
    target_capacity: float | None = None
    #: Nodes that are about to be taken away.
    draining: tuple[NodeID, ...] = ()
    #: What is wrong with processes that are no replicas, for people.
    troubles: tuple[str, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()
    #: Node of the controller.
    controller_node_id: str = ""


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a replica needs to become one. The controller decides without its code."""

    replica_id: str
    application: str
    deployment: str
    code: bytes = b""
    code_version: str
    config: DeploymentConfig
    surroundings: Surroundings
    #: Route prefix of the application ("" for none), for the ASGI root path.
    route_prefix: str = ""
    #: Rank, rank of its node, rank on its node.
    ranks: tuple[int, int, int] = (0, 0, 0)
    gang: Gang | None = None
    #: How many replicas there are to be.
    world_size: int = 1
    #: True: this deployment is the application's ingress.
    ingress: bool = False
    #: Of the application, that brought it or its present options.
    revision: int = 0
    #: What is reserved for it, its own bundle first.
    holds: tuple[Hold, ...] = ()


class ReplicaReady(msgspec.Struct, frozen=True, kw_only=True):
    """A replica has constructed the user's object and passed its first health check."""

    pid: int
    #: Path of the API docs under the route prefix (`/docs`), if any.
    docs_path: str = ""


class HealthCheck(msgspec.Struct, frozen=True):
    """A health check, and how long a replica may take for it, or stand still otherwise."""

    timeout_s: Seconds


class ReplicaReconfigure(msgspec.Struct, frozen=True, kw_only=True):
    """New options, or new ranks, for a running replica."""

    config: DeploymentConfig
    #: As in `ReplicaSpec`; None: they stay.
    ranks: tuple[int, int, int] | None = None
    world_size: int = 1
    revision: int = 0
