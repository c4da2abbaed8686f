"""Requests to the replica that has the most free slots."""

from __future__ import annotations

from typing import Any, ClassVar

from remora.experimental.capacity_queue import CapacityQueue
from remora.router.mixins import FIFOMixin
from remora.router.request_router import RequestRouter
from remora.router.seen import PendingRequest, RunningReplica

__all__ = ["CapacityQueue", "CapacityQueueRouter"]


class CapacityQueueRouter(FIFOMixin, RequestRouter):
    """The replica that has the most free slots.

    Replicas count their slots themselves and tell of free ones, so there is no queue of tokens in
    a process of its own, and `capacity_queue_actor_name` and `max_fault_retries` are not needed:
    they are accepted, and nothing is there that could have a name or a fault.
    """

    policy_name: ClassVar[str] = "capacity_queue"
    #: Arguments of Ray Serve's that have nothing to act on.
    neutral_kwargs: ClassVar[tuple[str, ...]] = ("capacity_queue_actor_name", "max_fault_retries")

    def initialize_state(self, **kwargs: Any) -> None:
        """Take the arguments; for classes made from this one."""
        rest = {key: value for key, value in kwargs.items() if key not in self.neutral_kwargs}
        super().initialize_state(**rest)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All that have room, those with the most of it first."""
        left = self.select_available_replicas(candidate_replicas)
        left.sort(key=lambda replica: replica.load - replica.limit)
        return [[replica] for replica in left]
