"""What custom request routers are made from; see `docs/api.md`, "Request routers"."""

from __future__ import annotations

from remora.context import ReplicaID
from remora.router.mixins import (
    FIFOMixin,
    LocalityMixin,
    MultiplexMixin,
    PowerOfTwoChoicesRequestRouter,
)
from remora.router.request_router import RequestRouter
from remora.router.seen import PendingRequest, ReplicaResult, RunningReplica

__all__ = [
    "FIFOMixin",
    "LocalityMixin",
    "MultiplexMixin",
    "PendingRequest",
    "PowerOfTwoChoicesRequestRouter",
    "ReplicaID",
    "ReplicaResult",
    "RequestRouter",
    "RunningReplica",
]
