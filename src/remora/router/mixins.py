"""Ready-made parts of request routers, and the default as a class to build on."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from remora.context import ReplicaID
from remora.core.routing import locality, multiplex
from remora.router.request_router import RequestRouter
from remora.router.seen import PendingRequest, RunningReplica


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

    def _best_for_model(
        self, replicas: list[RunningReplica], pending_request: PendingRequest | None
    ) -> list[RunningReplica]:
        """Those of `replicas` that suit a request's model best; all, if it is for none."""
        if pending_request is None or not pending_request.metadata.multiplexed_model_id:
            return replicas
        model_id = pending_request.metadata.multiplexed_model_id
        return (self.rank_replicas_via_multiplex(replicas, model_id) or [[]])[0]

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
        left = self._best_for_model(left, pending_request)
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
