"""What routers did beside sending a request once: refused, retried, kept waiting.

Counted only where one of these happens, so that a request that goes well pays nothing for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from remora.observe.counters import escaped
from remora.types import DeploymentID


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


def render(rows: Iterable[RoutingRow]) -> str:
    """Write everything in the text format of Prometheus. Pure."""
    requests = ["# TYPE serve_num_router_requests_total counter"]
    queued = ["# TYPE serve_deployment_queued_queries gauge"]
    refused = ["# TYPE serve_num_refused_requests_total counter"]
    retried = ["# TYPE serve_num_retried_requests_total counter"]
    errors = ["# TYPE serve_num_request_router_errors_total counter"]
    for deployment, num_requests, num_queued, counts in sorted(rows, key=lambda row: row[0]):
        labels = (
            f'application="{escaped(deployment.app_name)}",deployment="{escaped(deployment.name)}"'
        )
        requests.append(f"serve_num_router_requests_total{{{labels}}} {num_requests}")
        queued.append(f"serve_deployment_queued_queries{{{labels}}} {num_queued}")
        for lines, name, reasons in (
            (refused, "refused", counts.refused),
            (retried, "retried", counts.retried),
        ):
            lines += [
                f'serve_num_{name}_requests_total{{{labels},reason="{reason}"}} {count}'
                for reason, count in reasons.items()
            ]
        # Another thread counts them.
        errors += [
            f'serve_num_request_router_errors_total{{{labels},reason="{escaped(reason)}"}} {count}'
            for reason, count in counts.router_errors.copy().items()
        ]
    return "\n".join((*requests, *queued, *refused, *retried, *errors, ""))
