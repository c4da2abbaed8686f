"""What a request router of the user's gets to see: replicas and requests."""

from __future__ import annotations

import concurrent.futures
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remora.context import ReplicaID
from remora.wire import values
from remora.wire.messages import CallKind, Envelope
from remora.wire.parcel import Body

if TYPE_CHECKING:
    from remora.router.link import ReplicaLink

#: What `on_request_routed` is told of the answer: nothing here, because it is not there yet.
ReplicaResult = Any

_BY_HANDLE = (CallKind.UNARY, CallKind.STREAM)


def internal_id(envelope: Envelope) -> str:
    """Tell a call from others on behalf of the same request."""
    return f"{envelope.request_id}/{id(envelope):x}"


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
