"""The base of request routers that users write, and what such a router gets to see.

A router of the user's lives in the processes that call its deployment: proxies, replicas, scripts.
It says which replicas a request should go to; sending, queueing, limits and retries stay ours.

Concurrency: every method is called on one thread that belongs to this router object, where a
loop runs: never two at a time, and whatever it does there holds up no other deployment.
"""

from __future__ import annotations

import concurrent.futures
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from remora.core.routing import locality, multiplex
from remora.types import LOCAL_NODE, DeploymentID
from remora.wire import values
from remora.wire.messages import CallKind, Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.router.link import ReplicaLink

_BY_HANDLE = (CallKind.UNARY, CallKind.STREAM)


def internal_id(envelope: Envelope) -> str:
    """Tell a call from others on behalf of the same request."""
    return f"{envelope.request_id}/{id(envelope):x}"


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


class RunningReplica:
    """A replica that a request may be sent to. What it says is always the latest that is known."""

    __slots__ = ("_link", "replica_id")

    def __init__(self, link: ReplicaLink) -> None:
        self._link = link
        self.replica_id = ReplicaID(link.replica_id)

    @property
    def actor_id(self) -> str:
        """The replica's id: it is a process here, not an actor."""
        return str(self.replica_id)

    @property
    def node_id(self) -> str:
        """The node that it runs on."""
        return self._link.node_id

    @property
    def availability_zone(self) -> str | None:
        """The zone of that node; None: unknown."""
        return self._link.availability_zone or None

    @property
    def multiplexed_model_ids(self) -> set[str]:
        """Models that it holds."""
        return set(self._link.model_ids)

    @property
    def routing_stats(self) -> dict[str, Any]:
        """What its `record_routing_stats` last returned."""
        return self._link.stats

    @property
    def replica_metadata(self) -> dict[str, Any]:
        """What its `record_replica_metadata` returned."""
        return self._link.metadata

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that it works on at a time."""
        return self._link.router.max_ongoing

    @property
    def backend_http_endpoint(self) -> None:
        """None: replicas have no HTTP port of their own."""
        return None

    @property
    def queue_length(self) -> int:
        """Requests that it works on, as far as this process knows."""
        return self._link.load

    @property
    def has_room(self) -> bool:
        """A request sent to it now would be begun at once, as far as this process knows."""
        return self._link.position >= 0

    # What `core.routing` calls these.

    @property
    def model_ids(self) -> frozenset[str]:
        """Models that it holds."""
        return self._link.model_ids

    @property
    def load(self) -> int:
        """Requests that it works on, as far as this process knows."""
        return self._link.load

    @property
    def limit(self) -> int:
        """Requests of this process that it may work on at a time."""
        return self._link.limit

    def __repr__(self) -> str:
        return f"RunningReplica({str(self.replica_id)!r}, queue_length={self.queue_length})"


@dataclass(frozen=True)
class RequestMetadata:
    """What is known of a request beside its arguments."""

    request_id: str
    internal_request_id: str
    call_method: str
    is_streaming: bool
    is_http_request: bool
    multiplexed_model_id: str
    session_id: str
    route: str
    #: Of HTTP requests; empty for others.
    http_method: str = ""
    http_path: str = ""
    http_headers: dict[str, str] = field(default_factory=dict)


@dataclass
class RoutingContext:
    """How the search for a replica goes so far."""

    #: How often `choose_replicas` was called for this request before.
    num_attempts: int = 0


class PendingRequest:
    """A request that has no replica yet.

    Attributes:
        metadata: everything but the arguments.
        created_at: Unix time.
        routing_context: how the search goes so far.
        future: holds the `RunningReplica` once the request was sent.
    """

    def __init__(self, envelope: Envelope, body: Body) -> None:
        head = envelope.http
        self._kind = envelope.kind
        self._how = envelope.request_serialization
        self._body = body
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.created_at = time.time()
        self.routing_context = RoutingContext()
        self.future: concurrent.futures.Future[RunningReplica] = concurrent.futures.Future()
        self.metadata = RequestMetadata(
            request_id=envelope.request_id,
            internal_request_id=internal_id(envelope),
            call_method=envelope.method,
            is_streaming=envelope.kind is CallKind.STREAM,
            is_http_request=head is not None,
            multiplexed_model_id=envelope.multiplexed_model_id,
            session_id=envelope.session_id,
            route=envelope.route,
            http_method=head.method if head is not None else "",
            http_path=head.path if head is not None else "",
            http_headers=(
                {k.decode("latin-1"): v.decode("latin-1") for k, v in head.headers} if head else {}
            ),
        )

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of a call by handle; empty for HTTP, whose body is never opened."""
        return self._opened()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of a call by handle."""
        return self._opened()[1]

    def _opened(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._arguments is None:
            args: Any = ()
            kwargs: Any = {}
            # Only what this process packed itself is opened. A slot that is reserved for later has
            # no arguments yet.
            if self._kind in _BY_HANDLE and len(self._body):
                args, kwargs = values.loads(self._body, self._how)
            self._arguments = tuple(args), kwargs
        return self._arguments

    def __repr__(self) -> str:
        return f"PendingRequest({self.metadata.request_id!r}, {self.metadata.call_method!r})"


class _QueueLengths:
    """Queue lengths by replica id, always the latest that is known."""

    def __init__(self, replicas: dict[ReplicaID, RunningReplica]) -> None:
        self._replicas = replicas

    def get(self, replica_id: str) -> int | None:
        """Requests that a replica works on; None: there is no such replica."""
        found = self._replicas.get(ReplicaID(replica_id))
        return None if found is None else found.queue_length


class RequestRouter:
    """Base of custom request routers: implement `choose_replicas`.

    Whatever a router raises, or not returning for five seconds, costs nothing but its say: the
    request goes where power of two choices would have sent it, and the log tells.
    """

    #: True: an answer is for the request that has waited longest. See `FIFOMixin`.
    first_come: ClassVar[bool] = False

    def __init__(
        self,
        deployment_id: DeploymentID,
        handle_source: str = "",
        self_node_id: str = LOCAL_NODE,
        self_availability_zone: str | None = None,
        *,
        num_pending: Callable[[], int] = lambda: 0,
        initial_backoff_s: float = 0.025,
        backoff_multiplier: float = 2.0,
        max_backoff_s: float = 0.5,
    ) -> None:
        """Called by Remora; put your own state into `initialize_state`."""
        self._deployment_id = deployment_id
        self._handle_source = handle_source
        self._self_node_id = self_node_id
        self._self_availability_zone = self_availability_zone
        self._num_pending = num_pending
        self._replicas: dict[ReplicaID, RunningReplica] = {}
        self._lengths = _QueueLengths(self._replicas)
        self.update_backoff_params(initial_backoff_s, backoff_multiplier, max_backoff_s)

    # -- to be written by users -------------------------------------------------------------

    def initialize_state(self, *args: Any, **kwargs: Any) -> None:
        """Take `request_router_kwargs`; called once, before anything else.

        Raises:
            TypeError: there are some, and nobody takes them.
        """
        if kwargs:
            raise TypeError(
                f"{type(self).__name__} takes no request_router_kwargs ({', '.join(kwargs)}): "
                "write initialize_state"
            )

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Say which replicas a request should go to.

        Args:
            candidate_replicas: all that run, those that are full as well.
            pending_request: what is to be sent.

        Returns:
            ranks, the best first. In a rank, the replica with room that works on the least gets
            the request. When all are full, it waits for the first of them that has room, and
            you are asked again after a while. The same with no replica at all.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement choose_replicas")

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """A request was sent to a replica. `result` is None: its answer is its caller's alone."""

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A replica has answered a request, or lost it."""

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A request was sent to a replica."""

    def on_new_queue_len_info(self, replica_id: ReplicaID, queue_len_info: Any) -> None:
        """A replica has said how much it works on (`queue_len_info.num_ongoing_requests`)."""

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica is gone."""

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """The connection to a replica is interrupted; it may come back."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take over which replicas there are. Call the base when you override it."""
        self._replicas.clear()
        self._replicas.update((replica.replica_id, replica) for replica in replicas)

    # -- to be used by users ----------------------------------------------------------------

    @property
    def curr_replicas(self) -> dict[ReplicaID, RunningReplica]:
        """All replicas, by id."""
        return self._replicas

    @property
    def replica_queue_len_cache(self) -> _QueueLengths:
        """Queue lengths: `get(replica_id)`."""
        return self._lengths

    @property
    def num_pending_requests(self) -> int:
        """Requests of this process that have no replica yet."""
        return self._num_pending()

    def select_available_replicas(
        self, candidates: Iterable[RunningReplica] | None = None
    ) -> list[RunningReplica]:
        """Leave those that have room; None: of all there are."""
        found = self._replicas.values() if candidates is None else candidates
        return [replica for replica in found if replica.has_room]

    def update_backoff_params(
        self, initial_backoff_s: float, backoff_multiplier: float, max_backoff_s: float
    ) -> None:
        """Say when you want to be asked again about a request that found no replica."""
        self.initial_backoff_s = initial_backoff_s
        self.backoff_multiplier = backoff_multiplier
        self.max_backoff_s = max_backoff_s


class FIFOMixin:
    """An answer of `choose_replicas` is used for the request that has waited longest.

    Without it, for the request that it was asked about. Use it when your choice does not depend
    on the request.
    """

    first_come: ClassVar[bool] = True


class LocalityMixin:
    """Prefers replicas that are near. Goes in front of `RequestRouter` among the bases."""

    _self_node_id: str
    _self_availability_zone: str | None
    curr_replicas: Any

    def rank_replicas_via_locality(
        self, replicas: list[RunningReplica]
    ) -> list[list[RunningReplica]]:
        """Rank replicas: the same node, the same zone, any. Empty ranks are left out."""
        here = self._self_node_id, self._self_availability_zone or ""
        near = locality.rank([_Placed(replica) for replica in replicas], *here)
        return [[placed.replica for placed in rank] for rank in near]

    def apply_locality_routing(self, pending_request: PendingRequest) -> set[ReplicaID]:
        """Ids of the nearest replicas; on later attempts for a request, of one rank more each."""
        ranks = self.rank_replicas_via_locality(list(self.curr_replicas.values()))
        return _first_ranks(ranks, pending_request)


class MultiplexMixin:
    """Prefers replicas that hold the model. Goes in front of `RequestRouter` among the bases."""

    curr_replicas: Any

    def rank_replicas_via_multiplex(
        self, replicas: list[RunningReplica], multiplexed_model_id: str
    ) -> list[list[RunningReplica]]:
        """Rank replicas: those that hold the model, those with the fewest models, the others."""
        holders = [r for r in replicas if multiplexed_model_id in r.model_ids]
        rest = [r for r in replicas if multiplexed_model_id not in r.model_ids]
        fewest = list(multiplex.fewest_models([_Placed(r) for r in rest]))
        chosen = [placed.replica for placed in fewest]
        others = [r for r in rest if r not in chosen]
        return [rank for rank in (holders, chosen, others) if rank]

    def apply_multiplex_routing(self, pending_request: PendingRequest) -> set[ReplicaID]:
        """Ids of the replicas that suit a request's model best; of more on later attempts."""
        replicas = list(self.curr_replicas.values())
        model_id = pending_request.metadata.multiplexed_model_id
        if not model_id:
            return {replica.replica_id for replica in replicas}
        return _first_ranks(self.rank_replicas_via_multiplex(replicas, model_id), pending_request)


class PowerOfTwoChoicesRequestRouter(FIFOMixin, LocalityMixin, MultiplexMixin, RequestRouter):
    """The default: of two replicas picked at random the less busy one.

    Given as it is, it costs no detour: the router itself does it. Make your own class from it to
    change something.
    """

    policy_name: ClassVar[str] = "power_of_two"

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Two at random that have room, from the nearest that suit the model."""
        left = self.select_available_replicas(candidate_replicas)
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            model_id = pending_request.metadata.multiplexed_model_id
            left = (self.rank_replicas_via_multiplex(left, model_id) or [[]])[0]
        left = (self.rank_replicas_via_locality(left) or [[]])[0]
        return [random.sample(left, min(2, len(left)))]


class _Placed:
    """A replica with the plain types that `core.routing` wants."""

    __slots__ = (
        "availability_zone",
        "is_coming",
        "limit",
        "load",
        "model_ids",
        "node_id",
        "replica",
    )

    def __init__(self, replica: RunningReplica) -> None:
        self.replica = replica
        self.is_coming = False
        self.load = replica.load
        self.limit = replica.limit
        self.model_ids = replica.model_ids
        self.node_id = replica.node_id
        self.availability_zone = replica.availability_zone or ""

    @property
    def replica_id(self) -> Any:
        """Id of the replica."""
        return self.replica.replica_id


def _first_ranks(
    ranks: list[list[RunningReplica]], pending_request: PendingRequest
) -> set[ReplicaID]:
    count = pending_request.routing_context.num_attempts + 1
    return {replica.replica_id for rank in ranks[:count] for replica in rank}
