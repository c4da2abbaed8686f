"""What routers did beside sending a request once: refused, retried, kept waiting.

Counted only where one of these happens, so that a request that goes well pays nothing for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from remora.observe.metrics import counter, gauge, merged
from remora.types import DeploymentID
from remora.wire.metrics import Family

_LABELS = ("application", "deployment")


class RoutingCounts:
    """Of one router, by reason.

    Attributes:
        refused: `queue_full`, `unavailable`.
        retried: `replica_died` (it had begun, and may run twice), `never_started` (the replica
            left or was lost before), `turned_away` (the replica was full or leaving).
        router_errors: of a request router that users wrote, by what failed and how.
    """

    __slots__ = ("refused", "retried", "router_errors")

    def __init__(self) -> None:
        self.refused = {"queue_full": 0, "unavailable": 0}
        self.retried = {"replica_died": 0, "never_started": 0, "turned_away": 0}
        self.router_errors: Counter[str] = Counter()


class RoutingRow(NamedTuple):
    """One router, as metrics show it."""

    deployment: DeploymentID
    num_requests: int
    num_queued: int
    counts: RoutingCounts


def routing_families(rows: Iterable[RoutingRow]) -> list[Family]:
    """What routers count, under the names of Ray Serve where it has any. Pure."""
    return merged(family for row in rows for family in _families(row))


def _families(row: RoutingRow) -> list[Family]:
    key = (row.deployment.app_name, row.deployment.name)
    reasons = (
        ("serve_num_refused_requests", row.counts.refused),
        ("serve_num_retried_requests", row.counts.retried),
        # Another thread counts them.
        ("serve_num_request_router_errors", row.counts.router_errors.copy()),
    )
    return [
        counter("serve_num_router_requests", _LABELS, {key: row.num_requests}),
        gauge("serve_deployment_queued_queries", _LABELS, {key: row.num_queued}),
        *(
            counter(name, (*_LABELS, "reason"), {(*key, why): n for why, n in counts.items()})
            for name, counts in reasons
        ),
    ]
