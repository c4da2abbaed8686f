"""What a replica knows about itself: `get_replica_context()`.

A replica says so before it constructs the user's object (`replica/surroundings.py`). One process
is one replica, so this is a fact of the process, not of a request (that is `request_context`);
only tests put several replicas into one process, where the running request or task tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakSet

from remora.errors import RemoraError
from remora.models.held import HeldModels
from remora.observe.batches import BatchCounters
from remora.observe.user_metrics import UserMetrics
from remora.request_context import current
from remora.types import DeploymentID


class Batching(Protocol):
    """Where the calls of a batched function wait.

    Attributes:
        name: of the function.
    """

    name: str

    def count_into(self, total: BatchCounters) -> int:
        """Add what its batches were like to `total`; returns how many calls wait."""


class ReplicaID(str):
    """The id of a replica: text that knows its parts."""

    __slots__ = ()

    @property
    def deployment_id(self) -> DeploymentID:
        """The deployment that the replica is one of."""
        app_name, _, name = self.rpartition("#")[0].partition("/")
        return DeploymentID(name, app_name)

    @property
    def unique_id(self) -> str:
        """What tells it from others of its deployment."""
        return self.rpartition("#")[2]

    def to_full_id_str(self) -> str:
        """The whole id as plain text."""
        return str(self)


@dataclass(frozen=True)
class ReplicaRank:
    """Where a replica stands among its deployment's.

    Attributes:
        rank: 0 … world_size - 1.
        node_rank: of its node.
        local_rank: among the replicas on its node.
    """

    rank: int = 0
    node_rank: int = 0
    local_rank: int = 0


@dataclass(frozen=True)
class GangContext:
    """The gang of a replica: those that were started with it and are replaced with it.

    Attributes:
        gang_id: never used twice.
        rank: place in the gang, 0 … world_size - 1.
        world_size: how many replicas it has.
        member_replica_ids: their ids, by rank.
        pg_name: name of what is reserved for them together; here the gang's id.
    """

    gang_id: str
    rank: int
    world_size: int
    member_replica_ids: list[str]
    pg_name: str = ""


@dataclass(frozen=True)
class DeploymentActorContext:
    """The deployment actor that this code runs in.

    Attributes:
        deployment_id: whose actor it is.
        actor_name: by which its replicas find it.
        code_version: of the deployment that it belongs to.
    """

    deployment_id: DeploymentID
    actor_name: str
    code_version: str = ""

    @property
    def app_name(self) -> str:
        """Name of the application."""
        return self.deployment_id.app_name

    @property
    def deployment(self) -> str:
        """Name of the deployment."""
        return self.deployment_id.name


@dataclass
class ReplicaContext:
    """The replica that this code runs in.

    Attributes:
        replica_id: never used twice.
        deployment_id: application and deployment.
        servable_object: the user's object; None while it is being constructed.
        rank: where this replica stands among its deployment's.
        world_size: target number of replicas.
        code_version: equal for equal code and arguments.
        gang_context: the gang that it belongs to; None: to none.
        max_ongoing_requests: how many requests this replica works on at a time; 0: unknown.
        actors: the deployments that hold the actors of this one, by the actors' names.
        actor: the deployment actor that this is; None: it is a replica.
        held_models: what its multiplexed methods hold.
        batching: where the calls of its batched methods wait.
        user_metrics: what its code counts by `remora.metrics`.
    """

    replica_id: ReplicaID
    deployment_id: DeploymentID
    servable_object: Any = None
    rank: ReplicaRank = ReplicaRank()
    world_size: int = 1
    code_version: str = ""
    gang_context: GangContext | None = None
    max_ongoing_requests: int = 0
    actors: Mapping[str, str] = field(default_factory=dict, repr=False)
    actor: DeploymentActorContext | None = field(default=None, repr=False)
    held_models: HeldModels = field(default_factory=HeldModels, repr=False, compare=False)
    batching: WeakSet[Batching] = field(default_factory=WeakSet, repr=False, compare=False)
    user_metrics: UserMetrics = field(default_factory=UserMetrics, repr=False, compare=False)

    @property
    def app_name(self) -> str:
        """Name of the application."""
        return self.deployment_id.app_name

    @property
    def deployment(self) -> str:
        """Name of the deployment."""
        return self.deployment_id.name

    @property
    def replica_tag(self) -> str:
        """The part of the replica's id that is its own, after the `#`."""
        return self.replica_id.unique_id


_context: ReplicaContext | None = None
#: Replicas that share this process (applications in a test), by their ids.
_sharing: dict[str, ReplicaContext] = {}
#: The one of them that the running task works for, outside of requests.
_entered: ContextVar[ReplicaContext | None] = ContextVar("remora_replica", default=None)


def set_replica_context(context: ReplicaContext | None) -> None:
    """Say which replica this process is."""
    global _context
    _context = context


def enter_replica(context: ReplicaContext) -> None:
    """Say which replica of this process the running task works for, with all that it starts.

    Requests need not say so: each knows its replica.
    """
    _sharing[context.replica_id] = context
    _entered.set(context)


def leave_replica(context: ReplicaContext) -> None:
    """A replica that shares this process is over."""
    _sharing.pop(context.replica_id, None)


def replica_context_or_none() -> ReplicaContext | None:
    """The replica that this code runs in; None: in none."""
    if _context is not None or not _sharing:
        return _context
    request = current.get()
    return _entered.get() if request is None else _sharing.get(request.replica_id)


def get_replica_context() -> ReplicaContext:
    """The replica that this code runs in.

    Raises:
        RemoraError: in none.
    """
    context = replica_context_or_none()
    if context is None:
        raise RemoraError(
            "get_replica_context() works only inside a replica: in the constructor or a method "
            "of a deployment"
        )
    return context


def get_trace_context() -> Any:
    """The context of OpenTelemetry for spans of one's own, whose parent is the running request.

    Inside a replica's methods spans have that parent by themselves; where a task or thread of one's own
    goes on without the request's context, pass this to `tracer.start_span(name, context=…)`.

    Returns:
        An `opentelemetry.context.Context`; None: the running request is not traced, or there is none.
    """
    from remora.observe import tracing

    request = current.get()
    if tracing.active() is None or request is None or not request.trace_context:
        return None
    return tracing.current_or_parent(request.trace_context)


def get_deployment_actor_context() -> DeploymentActorContext:
    """The deployment actor that this code runs in.

    Raises:
        RemoraError: in none.
    """
    context = replica_context_or_none()
    if context is None or context.actor is None:
        raise RemoraError(
            "get_deployment_actor_context() works only inside a deployment actor: in the "
            "constructor or a method of its class"
        )
    return context.actor
