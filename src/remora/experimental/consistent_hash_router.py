"""Requests of one session to one replica."""

from __future__ import annotations

from typing import Any, ClassVar

from remora.core.routing.consistent_hash import Ring
from remora.router.request_router import RequestRouter
from remora.router.seen import PendingRequest, RunningReplica
from remora.types import ReplicaID as _PlainID

__all__ = ["ConsistentHashRouter"]


class ConsistentHashRouter(RequestRouter):
    """Requests with the same session id (`x-session-id`, `options(session_id=)`) share a replica.

    `request_router_kwargs`: `num_virtual_nodes` (100); `num_fallback_replicas` (2), how many
    others may take a request when its replica is full, 0 for none; `load_factor` (None), above
    which share of the average load a replica is passed by.
    """

    policy_name: ClassVar[str] = "consistent_hash"

    def initialize_state(
        self, num_virtual_nodes: int = 100, num_fallback_replicas: int = 2, **kwargs: Any
    ) -> None:
        """Take the arguments; for classes made from this one."""
        super().initialize_state(**kwargs)
        self._num_virtual_nodes = num_virtual_nodes
        self._num_fallback_replicas = num_fallback_replicas
        self._ring = Ring((), num_virtual_nodes)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Put them on the ring."""
        super().update_replicas(replicas)
        ids = (_PlainID(replica.replica_id) for replica in replicas)
        self._ring = Ring(ids, self._num_virtual_nodes)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replica that the session belongs to, then those that may stand in."""
        if pending_request is None:
            return [candidate_replicas]
        metadata = pending_request.metadata
        by_id = {str(replica.replica_id): replica for replica in candidate_replicas}
        order = self._ring.order(metadata.session_id or metadata.request_id)
        ranked = [by_id[replica_id] for replica_id in order if replica_id in by_id]
        return [[replica] for replica in ranked[: 1 + self._num_fallback_replicas]]
