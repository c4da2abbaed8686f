"""Requests to every replica in turn."""

from __future__ import annotations

from typing import Any, ClassVar

from remora.context import ReplicaID
from remora.router.mixins import FIFOMixin, MultiplexMixin
from remora.router.request_router import RequestRouter
from remora.router.seen import PendingRequest, RunningReplica

__all__ = ["RoundRobinRouter"]


class RoundRobinRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Every replica in turn; those that are full are skipped.

    Each process that calls has its own turn. A request for a multiplexed model takes turns among
    the replicas that hold it.
    """

    policy_name: ClassVar[str] = "round_robin"
    _last = ReplicaID("")

    def initialize_state(self, **kwargs: Any) -> None:
        """Take no arguments."""
        super().initialize_state(**kwargs)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All that have room, beginning with the one whose turn it is."""
        left = self.select_available_replicas(candidate_replicas)
        left = self._best_for_model(left, pending_request)
        last = self._last
        left.sort(key=lambda r: (r.replica_id <= last, r.replica_id))
        if left:
            self._last = left[0].replica_id
        return [[replica] for replica in left]
