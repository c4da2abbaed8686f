"""The base of request routers that users write.

A router of the user's lives in the processes that call its deployment: proxies, replicas, scripts.
It says which replicas a request should go to; sending, queueing, limits and retries stay ours.

Concurrency: every method is called on one thread that belongs to this router object, where a
loop runs: never two at a time, and whatever it does there holds up no other deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from remora.context import ReplicaID
from remora.router.seen import PendingRequest, RunningReplica
from remora.types import LOCAL_NODE, DeploymentID


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
